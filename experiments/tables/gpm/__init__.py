"""Tables of GPM: Beyond Bradley-Terry Models, a General Preference Model (arXiv 2410.02197)."""
