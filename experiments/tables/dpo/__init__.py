"""Tables of DPO (arXiv 2305.18290)."""
