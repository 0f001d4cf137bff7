"""Where the vocabulary lies on a mesh: the axes that cut it, the cut table, look-up of tokens and logits by it."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Shaped

ROW_AXES = ("data", "fsdp")  # the mesh axes over which rows are spread


def axes(size: int, mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes over which the head cuts a vocabulary of this size: as many of "tensor" and "fsdp" as divide it."""
    for found in (("tensor", "fsdp"), ("tensor",)):
        if size % math.prod(mesh.shape[axis] for axis in found) == 0:
            return found
    return ()


def cut(table: Float[Array, "V D"], mesh: Mesh | None) -> Float[Array, "V D"]:
    """A vocabulary table, its width cut over "fsdp" like any parameter's, with its entries cut instead, each whole.

    Devices exchange slices; none ever holds the table of the whole vocabulary, nor its gradient.
    """
    return table if mesh is None else pin(table, mesh, axes(table.shape[0], mesh) or None, None)


def embed(table: Float[Array, "V D"], tokens: Int[Array, "R T"], mesh: Mesh | None) -> Float[Array, "R T D"]:
    """Rows of the table. Every device looks its slice of the width up for the tokens of all devices along "fsdp".

    The caller pins the result to rows, an exchange of activations: the table and its gradient stay where they are.
    """
    if mesh is None:
        return table[tokens]
    width = "fsdp" if table.shape[1] % mesh.shape["fsdp"] == 0 else None
    return pin(table[pin(tokens, mesh, "data")], mesh, "data", None, width)


def logits(
    states: Float[Array, "*rows D"], head: Float[Array, "V D"], softcap: float | None
) -> Float[Array, "*rows V"]:
    """What the head makes of hidden states, in at least float32.

    Args:
      softcap: logits become softcap * tanh(logits / softcap) (Gemma 2); None is off.
    """
    wide = jnp.promote_types(states.dtype, jnp.float32)
    found = jnp.einsum("...d,vd->...v", states, head.astype(states.dtype), preferred_element_type=wide)
    return found if softcap is None else softcap * jnp.tanh(found / softcap)


def pin(x: Shaped[Array, "*shape"], mesh: Mesh | None, *spec: str | tuple[str, ...] | None) -> Shaped[Array, "*shape"]:
    """`x` laid over the mesh as `spec` says, one entry an axis of `x`; as it is on one device."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))
