"""Tables of Accelerating Direct Preference Optimization with Prefix Sharing (arXiv 2410.20305)."""
