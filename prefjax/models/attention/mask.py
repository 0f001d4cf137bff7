"""The mask of one batch of rows, prepared once per step in the form that the chosen implementation reads."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from prefjax.models import vocabulary
from prefjax.models.attention.kernel_tiles import PLATFORMS, KernelTiles, kind_of, list_tiles, platform_of
from prefjax.models.attention.tiles import Tiles, live_tiles
from prefjax.models.vocabulary import ROW_AXES

# Below this row length the tile loop costs more than it skips (measured on CPU), so "auto" takes the dense form.
DENSE_UP_TO = 256
IMPLEMENTATIONS = ("auto", "dense", "tiled", "pallas")


def visible(visible_until: Int[Array, "R T"]) -> Bool[Array, "R T T"]:
    """The mask written out, [row, query, key]. An oracle for tests and short rows, O(T^2) memory."""
    position = jnp.arange(visible_until.shape[-1])
    query, key = position[None, :, None], position[None, None, :]
    return (key <= query) & (query < visible_until[:, None, :])


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Setting:
    """mesh       where rows and heads lie; None on one device
    interpret  emulate the kernels
    """

    mesh: Mesh | None = None
    interpret: bool = False


class Mask(NamedTuple):
    """Who sees whom in one batch of rows; shared by all layers but for `window`, which each sets for itself.

    visible_until  end (exclusive) of the queries that may see each key
    positions      rotary positions, in which a window is measured
    tiles          for plain XLA: the tiles that hold a visible pair; None where it is not used
    kernel_tiles   the same for the kernels of each platform
    window         keys farther back than this many positions are hidden; None hides none
    setting        static
    """

    visible_until: Int[Array, "R T"]
    positions: Int[Array, "R T"]
    tiles: Tiles | None = None
    kernel_tiles: dict[str, KernelTiles] = {}
    window: Int[Array, ""] | None = None
    setting: Setting = Setting()

    @property
    def mesh(self) -> Mesh | None:
        """Where rows and heads lie; None on one device."""
        return self.setting.mesh

    def pin_to_rows(self, activations: Float[Array, "R T D"]) -> Float[Array, "R T D"]:
        """Pins activations to rows over ("data", "fsdp"); left alone, the partitioner may cut D like a parameter."""
        return vocabulary.pin(activations, self.mesh, ROW_AXES)


def prepare(
    visible_until: Int[Array, "R T"],
    positions: Int[Array, "R T"],
    *,
    implementation: str = "auto",
    mesh: Mesh | None = None,
    interpret: str | None = None,
) -> Mask:
    """Makes the mask, once per step.

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
    if interpret is not None and (implementation != "pallas" or interpret not in PLATFORMS):
        raise ValueError(f"interpret={interpret!r}: one of {PLATFORMS}, and only with attention='pallas'")
    if implementation == "auto" and visible_until.shape[1] <= DENSE_UP_TO:
        implementation = "dense"
    platforms = {"auto": PLATFORMS, "pallas": (interpret or platform_of(mesh),)}.get(implementation, ())
    if implementation == "pallas" and platforms[0] not in PLATFORMS:
        raise ValueError(
            f"attention='pallas' has kernels for {PLATFORMS}, not for {platforms[0]!r}: set attention='auto' or 'tiled'"
        )
    rows = P(ROW_AXES)
    live, listed = None, {}
    if implementation in ("auto", "tiled"):
        live = over_shards(live_tiles, mesh, in_specs=(rows,), out_specs=rows)(visible_until)
    for platform in platforms:
        lister = functools.partial(list_tiles, platform=platform, kind=kind_of(platform, mesh))
        lister = over_shards(lister, mesh, in_specs=(rows, rows), out_specs=rows)
        listed[platform] = lister(visible_until, positions)
    return Mask(visible_until, positions, live, listed, setting=Setting(mesh, interpret is not None))


def over_shards(function: Callable, mesh: Mesh | None, *, in_specs: Any, out_specs: Any) -> Callable:
    """`function` per shard of rows and heads: a dynamic tile loop cannot be partitioned by the compiler."""
    if mesh is None or mesh.size == 1:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
