"""A frozen base in 8 or 4 bits under trained adapters (QLoRA, arXiv 2305.14314): numbers by qwix, layout as everywhere.

A quantised projection holds `kernel_codes` and `kernel_scale` in place of `kernel`, so parameters stay a plain dict of
arrays that sharding rules and checkpoints see. Every block of inputs of one output has a scale of its own. The kernel
is formed where it is multiplied, one layer at a time, and again in the backward pass.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.models.parameters import Params

FORMATS = ("int8", "nf4")
BLOCK = 64  # weights under one scale, as in QLoRA, section 3; all inputs where 64 does not divide them


def quantize(params: Params, form: str) -> Params:
    """Every projection kernel of the layers in `form`; embeddings, head, norms and biases as they are.

    int8: 127 even steps each side of 0. nf4: the 16 quantiles of a normal distribution (arXiv 2305.14314, section 3),
    kept as uint4. Scales are the largest magnitude of their block, in the kernel's dtype; QLoRA's second quantisation,
    of the scales, is left out (it would save 0.4 bit a weight of float32 scales).
    """
    if form not in FORMATS:
        raise ValueError(f"quantized format {form!r}: choose one of {FORMATS}")

    def visit(node):
        if not isinstance(node, dict):
            return node
        visited = {name: visit(child) for name, child in node.items() if name != "kernel"}
        if "kernel" in node:
            visited["kernel_codes"], visited["kernel_scale"] = _encode(node["kernel"], form)
        return visited

    return params | {"layers": visit(params["layers"])}


def dequantize(params: Params) -> Params:
    """Plain parameters with the kernels that a quantised tree computes with, in the dtype of their scales."""
    kept = ((name, child) for name, child in params.items() if not name.startswith("kernel_"))
    plain = {name: dequantize(child) if isinstance(child, dict) else child for name, child in kept}
    if "kernel_codes" in params:
        plain["kernel"] = decode(params["kernel_codes"], params["kernel_scale"])
    return plain


def decode(codes: Array, scale: Float[Array, "*L B O"]) -> Float[Array, "*L I O"]:
    """The kernel, inputs in B blocks; what the codes mean follows from their dtype."""
    import qwix

    form = {"int8": jnp.int8, "uint4": "nf4"}[str(codes.dtype)]
    return qwix.dequantize(qwix.QArray(codes, scale, qtype=form))


@jax.custom_vjp
def matmul(x: Float[Array, "N I"], codes: Array, scale: Float[Array, "B O"]) -> Float[Array, "N O"]:
    """x @ kernel in x's dtype, differentiable in x alone. The backward pass keeps the codes, never the kernel."""
    return x @ decode(codes, scale).astype(x.dtype)


def _forward(x, codes, scale):
    return matmul(x, codes, scale), (codes, scale)


def _backward(residuals, gradient):
    return gradient @ decode(*residuals).astype(gradient.dtype).T, None, None


matmul.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=1)
def _encode(kernel: Float[Array, "*L I O"], form: str):
    import qwix

    inputs = kernel.ndim - 2
    block = BLOCK if kernel.shape[inputs] % BLOCK == 0 else kernel.shape[inputs]
    apart = [axis for axis in range(kernel.ndim) if axis != inputs]
    qtype = jnp.int8 if form == "int8" else form
    coded = qwix.quantize(kernel, qtype, channelwise_axes=apart, tiled_axes={inputs: block})
    return coded.qvalue, coded.scale
