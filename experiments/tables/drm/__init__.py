"""Rethinking Diverse Human Preference Learning through Principal Component Analysis (arXiv 2502.13131)."""
