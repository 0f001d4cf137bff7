"""Tables of the delta learning hypothesis (arXiv 2507.06187)."""
