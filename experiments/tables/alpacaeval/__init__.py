"""Tables of AlpacaEval: An Automatic Evaluator, and its length-controlled successor (arXiv 2404.04475)."""
