"""Selective DPO (arXiv 2502.09650)."""
