"""Tables in the manner of DecipherPref (arXiv 2305.14702)."""
