"""Tokens: token trees -> packed rows under the one mask, resumable; pure NumPy and Grain, no text and no jax."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
