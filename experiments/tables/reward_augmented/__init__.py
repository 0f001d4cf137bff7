"""Reward-augmented data (arXiv 2410.08067)."""
