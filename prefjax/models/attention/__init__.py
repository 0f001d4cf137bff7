"""Attention under the one mask: key j is visible to query i iff j <= i < visible_until[j].

`prepare` turns `visible_until` into a `Mask` once per step; every layer then calls `attend` with it. `dense` is the
plain definition, kept as the oracle; `tiled` and `kernels` visit only tiles that hold a visible pair, the one in plain
XLA, the other on TPU and NVIDIA; `fused` gives both one derivative.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
