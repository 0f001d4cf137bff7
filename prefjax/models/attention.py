"""Attention under the one mask: key j is visible to query i iff j <= i < visible_until[j].

`prepare` turns `visible_until` into a plan once per step; every layer then calls `attend` with it. `dense_attention`
is the plain definition, kept as the oracle; `tiled_attention` and `pallas_attention` visit only tiles that hold a
visible pair, the one in plain XLA, the other in kernels for TPU and NVIDIA.
"""

import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from prefjax.models import fused_attention, pallas_attention, pallas_tiles, tiled_attention

# Below this row length the tile loop costs more than it skips (measured on CPU), so "auto" takes the dense form.
DENSE_UP_TO = 256
IMPLEMENTATIONS = ("auto", "dense", "tiled", "pallas")
ROW_AXES = ("data", "fsdp")


def visible(visible_until: Int[Array, "R T"]) -> Bool[Array, "R T T"]:
    """The mask written out, [row, query, key]. An oracle for tests and short rows, O(T^2) memory."""
    position = jnp.arange(visible_until.shape[-1])
    query, key = position[None, :, None], position[None, None, :]
    return (key <= query) & (query < visible_until[:, None, :])


@flax.struct.dataclass
class MaskPlan:
    """The mask of one batch of rows in the form the chosen implementation reads; shared by all layers."""

    visible_until: Int[Array, "R T"]
    positions: Int[Array, "R T"]
    tiles: tiled_attention.Tiles | None
    kernels: dict[str, pallas_tiles.KernelPlan]  # by platform
    interpret: bool = flax.struct.field(pytree_node=False)  # emulate the kernels
    mesh: Mesh | None = flax.struct.field(pytree_node=False)

    def spread(self, activations: Float[Array, "R T D"]) -> Float[Array, "R T D"]:
        """Pins activations to rows over ("data", "fsdp"); left alone, the partitioner may cut D like a parameter."""
        if self.mesh is None:
            return activations
        return jax.lax.with_sharding_constraint(activations, NamedSharding(self.mesh, P(ROW_AXES)))


def vocabulary_axes(size: int, mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes over which the head cuts a vocabulary of this size: as many of "tensor" and "fsdp" as divide it."""
    for axes in (("tensor", "fsdp"), ("tensor",)):
        if size % math.prod(mesh.shape[axis] for axis in axes) == 0:
            return axes
    return ()


def cut_vocabulary(table: Float[Array, "V D"], mesh: Mesh | None) -> Float[Array, "V D"]:
    """A vocabulary table, its width cut over "fsdp" like any parameter's, with its entries cut instead, each whole.

    Devices exchange slices; none ever holds the table of the whole vocabulary, nor its gradient.
    """
    if mesh is None:
        return table
    spec = P(vocabulary_axes(table.shape[0], mesh) or None, None)
    return jax.lax.with_sharding_constraint(table, NamedSharding(mesh, spec))


def embed(table: Float[Array, "V D"], tokens: Int[Array, "R T"], mesh: Mesh | None) -> Float[Array, "R T D"]:
    """Rows of the table. Every device looks its slice of the width up for the tokens of all devices along "fsdp".

    The caller spreads the result over rows, an exchange of activations: the table and its gradient stay where they are.
    """
    if mesh is None:
        return table[tokens]
    pin = lambda x, *spec: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))
    width = "fsdp" if table.shape[1] % mesh.shape["fsdp"] == 0 else None
    return pin(table[pin(tokens, "data")], "data", None, width)


def prepare(
    visible_until: Int[Array, "R T"],
    positions: Int[Array, "R T"],
    *,
    implementation: str = "auto",
    mesh: Mesh | None = None,
    interpret: str | None = None,
) -> MaskPlan:
    """Plans the mask once per step.

    Args:
      visible_until: end (exclusive) of the queries that may see each key.
      positions: rotary positions; sliding windows are measured in them.
      implementation: "dense", "tiled", "pallas" (TPU and NVIDIA only), or "auto": dense up to 256 positions; beyond,
        pallas in a program lowered for TPU or NVIDIA and tiled elsewhere.
      mesh: rows are spread over axes ("data", "fsdp") and heads over "tensor"; None on one device.
      interpret: "tpu" or "cuda" emulates that platform's kernels on CPU, slowly, to test them; only with "pallas".

    Raises:
      ValueError: unknown implementation, or "pallas" where there are no kernels.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention={implementation!r}: choose one of {IMPLEMENTATIONS}")
    if interpret is not None and (implementation != "pallas" or interpret not in pallas_tiles.PLATFORMS):
        raise ValueError(f"interpret={interpret!r}: one of {pallas_tiles.PLATFORMS}, and only with attention='pallas'")
    if implementation == "auto" and visible_until.shape[1] <= DENSE_UP_TO:
        implementation = "dense"
    platforms = {"auto": pallas_tiles.PLATFORMS, "pallas": (interpret or pallas_tiles.platform_of(mesh),)}
    if implementation == "pallas" and platforms["pallas"][0] not in pallas_tiles.PLATFORMS:
        raise ValueError(
            f"attention='pallas' has kernels for {pallas_tiles.PLATFORMS}, not for {platforms['pallas'][0]!r}: "
            "set attention='auto' or 'tiled'"
        )
    rows = P(ROW_AXES)
    tiles, kernels = None, {}
    if implementation in ("auto", "tiled"):
        tiles = _sharded(tiled_attention.live_tiles, mesh, in_specs=(rows,), out_specs=rows)(visible_until)
    for platform in platforms.get(implementation, ()):
        plan = functools.partial(pallas_tiles.plan_tiles, platform=platform, kind=pallas_tiles.kind_of(platform, mesh))
        kernels[platform] = _sharded(plan, mesh, in_specs=(rows, rows), out_specs=rows)(visible_until, positions)
    return MaskPlan(
        visible_until=visible_until,
        positions=positions,
        tiles=tiles,
        kernels=kernels,
        interpret=interpret is not None,
        mesh=mesh,
    )


def attend(
    query: Float[Array, "R T N H"],
    key: Float[Array, "R T M H"],
    value: Float[Array, "R T M H"],
    plan: MaskPlan,
    *,
    scale: float,
    softcap: float | None = None,
    window: Int[Array, ""] | None = None,
) -> Float[Array, "R T N H"]:
    """Softmax attention of N query heads over M key heads (N a multiple of M) under the plan's mask.

    Args:
      scale: factor on query . key.
      softcap: logits become softcap * tanh(logits / softcap) (Gemma 2, arXiv 2408.00118 section 2); None is off.
      window: a key farther back than this many positions is hidden (sliding window); None is off.
    """
    options = dict(scale=scale, softcap=softcap)
    window = None if window is None else window.astype(jnp.int32)
    if plan.tiles is None and not plan.kernels:
        return dense_attention(query, key, value, plan.visible_until, plan.positions, window, **options)
    heads, rows = P(ROW_AXES, None, "tensor", None), P(ROW_AXES)
    plans = {name: plan.kernels[name] for name in plan.kernels if pallas_attention.supports(query, name)}
    if plan.tiles is None and not plans:
        raise ValueError(
            f"attention='pallas' has no {', '.join(plan.kernels)} kernel for {query.dtype.name} heads "
            f"{query.shape[-1]} wide: set attention='auto' or 'tiled'"
        )
    if plans:
        function = functools.partial(fused_attention.attention, interpret=plan.interpret, **options)
        masks = (plan.visible_until, plan.positions, plan.tiles, plans, window)
    else:
        function = functools.partial(tiled_attention.attention, **options)
        masks = (plan.visible_until, plan.positions, plan.tiles, window)
    specs = (heads, heads, heads, *[rows] * (len(masks) - 1), P())
    return _sharded(function, plan.mesh, in_specs=specs, out_specs=heads)(query, key, value, *masks)


def dense_attention(query, key, value, visible_until, positions, window, *, scale, softcap):
    """The definition: full [R, N, T, T] logits, masked, softmax in at least float32. Shapes as in `attend`."""
    rows, length, heads, width = query.shape
    accumulate = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(rows, length, key.shape[2], -1, width)
    logits = jnp.einsum("rimgh,rjmh->rmgij", grouped, key, preferred_element_type=accumulate) * scale
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    mask = visible(visible_until)
    if window is not None:
        mask &= positions[:, :, None] - positions[:, None, :] < window
    logits = jnp.where(mask[:, None, None], logits, jnp.finfo(accumulate).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    output = jnp.einsum("rmgij,rjmh->rimgh", weights, value, preferred_element_type=accumulate)
    return output.reshape(rows, length, heads, width).astype(query.dtype)


def _sharded(function, mesh, *, in_specs, out_specs):
    """`function` per shard of rows and heads: a dynamic tile loop cannot be partitioned by the compiler."""
    if mesh is None or mesh.size == 1:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
