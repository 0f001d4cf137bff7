"""IPO: A General Theoretical Paradigm to Understand Learning from Human Preferences (arXiv 2310.12036)."""
