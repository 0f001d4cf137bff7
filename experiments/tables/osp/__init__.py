"""Tables of OSP: Online Self-Preferring Language Models (arXiv 2405.14103)."""
