"""Tables of RSO: Statistical Rejection Sampling Improves Preference Optimization (arXiv 2309.06657)."""
