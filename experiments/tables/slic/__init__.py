"""Tables of SLiC-HF: Sequence Likelihood Calibration with Human Feedback (arXiv 2305.10425)."""
