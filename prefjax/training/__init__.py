"""One train step and what surrounds it: scoring, the reference, the loop, checkpoints, the mesh, runs from configs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
