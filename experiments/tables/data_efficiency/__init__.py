"""DPO from a data-efficiency perspective (arXiv 2410.16586)."""
