"""prefjax: offline preference algorithms in JAX, on rows that share prompts.

The unit is one prompt with K responses; it travels from the file on disk to the loss without changing shape:
records -> token trees -> packed rows -> hidden states -> response log-probs -> objective -> train step -> report.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
