"""Which tiles the Pallas attention kernels visit, in which order, and how large a tile is on each kind of chip.

A tile pairs one block of queries with one block of keys. The rows of a shard are laid end to end: once every row's
`visible_until` is moved by the row's start, the mask of the long row is still `j <= i < visible_until[j]`, no pair
crosses two rows, and kernels need not know of rows. One integer per key decides a tile exactly: it holds a visible pair
iff max(visible_until) > first query and first key <= last query, and hides none iff min(visible_until) > last query and
last key <= first query.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from prefjax.models.attention.tiles import pad_visible_until


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Blocks:
    """The tile of one kind of chip. Positions are powers of two.

    query    query positions of a tile
    key      key positions of a tile
    rows     matrix rows of a tile at most: its query positions, once for each of several heads that share a key head
             and so read a key block once. Equal to `query`: one head per tile
    memory   TPU: bytes of on-chip memory that a kernel may use
    warps    GPU: warps of one program, for heads of up to 128 bytes; wider ones take twice as many
    """

    query: int
    key: int
    rows: int
    memory: int = 0
    warps: int = 0

    def heads(self, group: int) -> int:
        """Heads of one tile: the largest divisor of `group` (query heads per key head) that `rows` admits."""
        return max(n for n in range(1, group + 1) if group % n == 0 and (n == 1 or n * self.query <= self.rows))


# Untuned: chosen so that the compilers accept every head width (TPU: on-chip memory; GPU: shared memory and no or few
# spilled registers in bfloat16). Nothing was timed on a chip: experiments.benchmarks.tune_attention does that. A key is
# how `jax.Device.device_kind` starts; "tpu" and "cuda" serve other chips, and programs lowered without a mesh where no
# chip of that platform is.
BLOCKS = {
    "TPU v4": Blocks(query=256, key=256, rows=512, memory=14 * 2**20),  # 16 MiB on chip
    "TPU v5 lite": Blocks(query=256, key=512, rows=1024, memory=96 * 2**20),  # v5e, 128 MiB
    "TPU v5": Blocks(query=256, key=512, rows=1024, memory=48 * 2**20),  # v5p, 64 MiB
    "TPU v6 lite": Blocks(query=256, key=512, rows=1024, memory=96 * 2**20),  # v6e, 128 MiB
    "TPU7x": Blocks(query=256, key=512, rows=1024, memory=48 * 2**20),  # 64 MiB
    "NVIDIA A100": Blocks(query=64, key=64, rows=64, warps=4),
    "NVIDIA H100": Blocks(query=64, key=64, rows=64, warps=4),
    "NVIDIA H200": Blocks(query=64, key=64, rows=64, warps=4),
    "tpu": Blocks(query=256, key=256, rows=512, memory=14 * 2**20),
    "cuda": Blocks(query=32, key=32, rows=32, warps=4),
}
PLATFORMS = ("tpu", "cuda")
_SMALLEST = {"tpu": 128, "cuda": 16}  # the lanes of a TPU register; the least side of a matrix product on a GPU
_LISTED = 2**16  # tiles that a list may hold on TPU: lists lie in its scalar memory of 1 MiB, three words a tile


class TileList(NamedTuple):
    """The tiles of a shard grouped by their outer block, tiles without a hidden pair first within each group."""

    outer: Int[Array, "tiles"]  # block the kernel accumulates for; live tiles first, the rest of the list is unused
    inner: Int[Array, "tiles"]  # block it streams
    distance: Int[Array, "tiles"]  # least query position minus greatest key position: a window up to this hides all
    bounds: Int[Array, "3*blocks"]  # per outer block: first tile, first tile with a hidden pair, one past the last


class KernelTiles(NamedTuple):
    """What the kernels of one platform read of the mask of a shard's rows; built once per step for all layers."""

    by_query: TileList
    by_key: TileList
    visible_until: Int[Array, "RT"]  # of the padded rows laid end to end
    positions: Int[Array, "RT"]
    blocks: Blocks  # static


def platform_of(mesh: Mesh | None) -> str:
    """The platform ("cpu", "tpu", "cuda") of the mesh's devices, of the default device without one."""
    platform = _device(mesh).platform
    return {"gpu": "cuda"}.get(platform, platform)


def kind_of(platform: str, mesh: Mesh | None) -> str:
    """The kind of chip a program for `platform` will run on; the platform itself where no such chip is known."""
    return _device(mesh).device_kind if platform_of(mesh) == platform else platform


def _device(mesh: Mesh | None) -> jax.Device:
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def listed_kind(platform: str, kind: str) -> str:
    """The entry of `BLOCKS` that serves a kind of chip."""
    return max((name for name in BLOCKS if kind.startswith(name)), key=len, default=platform)


def choose_blocks(platform: str, kind: str, rows: int, length: int) -> Blocks:
    """The table's tile for a kind of chip, smaller where padding rows of `length` to it would add over an eighth."""
    blocks = BLOCKS[listed_kind(platform, kind)]

    def fit(block):
        while block > _SMALLEST[platform] and -length % block > length // 8:
            block //= 2
        return block

    blocks = dataclasses.replace(blocks, query=fit(blocks.query), key=fit(blocks.key))
    while platform == "tpu" and blocks.query < blocks.rows and rows * _causal_tiles(blocks, length) > _LISTED:
        blocks = dataclasses.replace(blocks, query=2 * blocks.query)
    return blocks


def _causal_tiles(blocks: Blocks, length: int) -> int:
    """Tiles of one row that hold a pair with key <= query."""
    last = range(blocks.query - 1, -(-length // blocks.query) * blocks.query, blocks.query)
    return sum(query // blocks.key + 1 for query in last)


def list_tiles(
    visible_until: Int[Array, "R T"], positions: Int[Array, "R T"], *, platform: str, kind: str
) -> KernelTiles:
    """Lists the tiles that hold a visible pair, by query block and by key block; exact, O(T + tiles log tiles).

    Rows are padded to whole blocks with tokens that see themselves only.

    Args:
      platform: "tpu" or "cuda".
      kind: of chip, from `kind_of`.
    """
    rows, length = visible_until.shape
    blocks = choose_blocks(platform, kind, rows, length)
    visible_until = pad_visible_until(visible_until.astype(jnp.int32), max(blocks.query, blocks.key))
    padded = visible_until.shape[1]
    positions = jnp.pad(positions.astype(jnp.int32), ((0, 0), (0, padded - length)))

    by_query = lambda x: x.reshape(rows, -1, 1, blocks.query)
    by_key = lambda x: x.reshape(rows, 1, -1, blocks.key)
    query = jnp.arange(padded, dtype=jnp.int32).reshape(1, -1, 1, blocks.query)
    key = jnp.arange(padded, dtype=jnp.int32).reshape(1, 1, -1, blocks.key)
    live = (by_key(visible_until).max(-1) > query.min(-1)) & (key.min(-1) <= query.max(-1))
    full = (by_key(visible_until).min(-1) > query.max(-1)) & (key.max(-1) <= query.min(-1))
    distance = by_query(positions).min(-1) - by_key(positions).max(-1)

    room = rows * _causal_tiles(blocks, padded)
    starts = jnp.arange(rows, dtype=jnp.int32)[:, None] * padded
    return KernelTiles(
        by_query=_group_tiles(live, full, distance, room),
        by_key=_group_tiles(*(x.swapaxes(1, 2) for x in (live, full, distance)), room),
        visible_until=(visible_until + starts).reshape(-1),
        positions=positions.reshape(-1),
        blocks=blocks,
    )


def _group_tiles(
    live: Bool[Array, "R outer inner"],
    full: Bool[Array, "R outer inner"],
    distance: Int[Array, "R outer inner"],
    room: int,
) -> TileList:
    rows, outers, inners = live.shape
    outer = jnp.arange(rows * outers, dtype=jnp.int32)[:, None]
    inner = outer // outers * inners + jnp.arange(inners, dtype=jnp.int32)[None]
    live, full, distance = (x.reshape(rows * outers, inners) for x in (live, full, distance))
    rank = jnp.where(live, 2 * outer + ~full, 2 * rows * outers)
    order = jnp.argsort(rank.reshape(-1), stable=True)[:room]
    count, unmasked = live.sum(-1, dtype=jnp.int32), full.sum(-1, dtype=jnp.int32)
    stop = jnp.cumsum(count, dtype=jnp.int32)
    return TileList(
        outer=jnp.broadcast_to(outer, live.shape).reshape(-1)[order],
        inner=inner.reshape(-1)[order],
        distance=distance.reshape(-1)[order],
        bounds=jnp.stack([stop - count, stop - count + unmasked, stop], axis=-1).reshape(-1),
    )
