"""One decoder, its attention under the prefix-sharing mask, log-probs of response tokens, sampling."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
