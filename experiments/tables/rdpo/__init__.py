"""Tables of rDPO: Provably Robust DPO, Aligning Language Models with Noisy Feedback (arXiv 2403.00409)."""
