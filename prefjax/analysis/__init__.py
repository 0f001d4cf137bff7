"""From what training wrote to numbers with their uncertainty, a plot and a report. No jax, nothing recomputed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
