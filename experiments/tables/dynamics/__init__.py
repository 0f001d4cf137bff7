"""Understanding the Learning Dynamics of Alignment with Human Feedback (arXiv 2403.18742)."""
