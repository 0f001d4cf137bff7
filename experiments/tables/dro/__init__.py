"""Tables of DRO: Offline Regularised Reinforcement Learning for Large Language Models Alignment (arXiv 2405.19107)."""
