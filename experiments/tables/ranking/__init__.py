"""Tables of Preference Learning Algorithms Do Not Learn Preference Rankings (arXiv 2405.19534)."""
