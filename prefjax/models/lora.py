"""Low-rank adapters (LoRA, arXiv 2106.09685): a frozen base and small trained matrices, as parameters -> parameters.

An adapted kernel W acts as W + (alpha / rank) A B. Adapters are a tree of their own that `join` lays over the base's:
the decoder multiplies by A and B where it finds them, and W + A B is never formed. So the base is there once, as the
policy's frozen part and as the reference at the same time.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from prefjax.models import quantized
from prefjax.models.parameters import Params
from prefjax.options import check_ranges, option


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapters: which, how large, and what the frozen base is kept in. Rank 0 trains all parameters instead."""

    rank: int = option(0, "columns of A and rows of B; 0: no adapters, all parameters are trained", at_least=0)
    alpha: float = option(16.0, "the product of A and B counts alpha / rank times", above=0)
    targets: str = option(
        "attention/|mlp/",
        'regular expression searched in "attention/query", "mlp/down", ...; the default adapts every projection',
    )
    quantize: str = option(
        "none",
        'the frozen base\'s projections: "none", as they are; "int8"; "nf4" (QLoRA, arXiv 2305.14314)',
        choices=("none", *quantized.FORMATS),
    )

    def __post_init__(self):
        check_ranges(self, "lora")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for field in ("alpha", "targets", "quantize"):
            if not self.rank and getattr(self, field) != defaults[field]:
                raise ValueError(f"lora.{field} has no effect with lora.rank=0: set a rank")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"lora.targets={self.targets!r} is no regular expression: {error}") from error


def init(config: LoraConfig, base: Params, key: jax.Array) -> Params:
    """Fresh adapters for a base's parameters (or their shapes): A uniform in +-1/sqrt(inputs), B zero, so A B = 0.

    Scanned kernels [layers, inputs, outputs] get [layers, inputs, rank] and [layers, rank, outputs].

    Raises:
      ValueError: `targets` matches no projection; lists those there are.
    """
    kernels = dict(_projections(base))
    chosen = [path for path in kernels if re.search(config.targets, "/".join(path[1:]))]
    if not chosen:
        names = ", ".join("/".join(path[1:]) for path in kernels)
        raise ValueError(f"lora.targets={config.targets!r} matches none of {names}")
    adapters: dict[str, Any] = {}
    for path, one in zip(chosen, jax.random.split(key, len(chosen)), strict=True):
        *layers, inputs, outputs = kernels[path].shape
        node = adapters
        for name in path:
            node = node.setdefault(name, {})
        dtype = kernels[path].dtype
        bound = inputs**-0.5
        node["lora_a"] = jax.random.uniform(one, (*layers, inputs, config.rank), dtype, -bound, bound)
        node["lora_b"] = jnp.zeros((*layers, config.rank, outputs), dtype)
    return adapters


def freeze(config: LoraConfig, base: Params) -> Params:
    """The base as training keeps it: its projections quantised as `config` says."""
    return base if config.quantize == "none" else quantized.quantize(base, config.quantize)


def shapes(config: LoraConfig, base: Params) -> Params:
    """Shapes and dtypes of `init`'s adapters; nothing is computed."""
    return jax.eval_shape(lambda: init(config, base, jax.random.key(0)))


def join(config: LoraConfig, base: Params, adapters: Params) -> Params:
    """The policy's parameters: base and adapters in one tree, no array copied but B, which takes the factor.

    Leaves of `adapters` that the base lacks (a value head) are laid over it too.
    """
    factor = config.alpha / config.rank

    def lay_over(below, above):
        joined = dict(below)
        for name, child in above.items():
            if isinstance(child, dict):
                joined[name] = lay_over(below.get(name, {}), child)
            else:
                joined[name] = child * jnp.asarray(factor, child.dtype) if name == "lora_b" else child
        return joined

    return lay_over(base, adapters)


def merge(config: LoraConfig, base: Params, adapters: Params) -> Params:
    """Plain parameters that compute what `join`'s do: W + (alpha / rank) A B, formed in at least float32.

    W of a quantised base is what its codes mean, which is what the adapters were trained on.
    """

    def fold(node):
        if not isinstance(node, dict):
            return node
        folded = {name: fold(child) for name, child in node.items() if not name.startswith("lora_")}
        if "lora_a" in node:
            wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32))
            product = jnp.einsum("...ir,...ro->...io", wide(node["lora_a"]), wide(node["lora_b"]))
            folded["kernel"] = (wide(node["kernel"]) + product).astype(node["kernel"].dtype)
        return folded

    return fold(join(config, quantized.dequantize(base), adapters))


def _projections(params: Params, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path to the module, kernel's shape and dtype) of every projection in the scanned layers."""
    for name, child in params.items():
        if name in ("kernel", "kernel_codes"):
            yield path, jax.ShapeDtypeStruct(child.shape, params.get("kernel_scale", child).dtype)
        elif isinstance(child, dict):
            yield from _projections(child, (*path, name))
