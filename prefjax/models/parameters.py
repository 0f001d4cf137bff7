"""A model's parameters, as every room passes them on."""

from typing import Any

# A plain nested dict of arrays, or of their shapes: what `decoder.init` makes, adapters and quantised kernels included.
Params = dict[str, Any]
