"""Finding the Sweet Spot (arXiv 2502.16825)."""
