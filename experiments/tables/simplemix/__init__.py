"""SimpleMix (arXiv 2505.02363)."""
