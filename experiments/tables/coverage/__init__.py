"""The Importance of Online Data: Understanding Preference Fine-tuning via Coverage (arXiv 2406.01462)."""
