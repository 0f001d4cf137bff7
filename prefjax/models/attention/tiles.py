"""Which tiles of the mask hold a visible pair, for the loop in plain XLA.

With `visible_until` that is exact and cheap: a tile (query block, key block) holds one iff max(visible_until over its
keys) > first query  and  first key <= last query.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

BLOCK = 64


class Tiles(NamedTuple):
    """Live tiles of a shard's rows. `index` lists flat (row, query block, key block) ids, live ones first."""

    index: Int[Array, "tiles"]
    count: Int[Array, "shards"]


def live_tiles(visible_until: Int[Array, "R T"]) -> Tiles:
    """Lists the tiles that hold at least one visible pair; exact, O(T + tiles)."""
    visible_until = pad_visible_until(visible_until)
    rows, length = visible_until.shape
    blocks = length // BLOCK
    start = jnp.arange(blocks) * BLOCK
    furthest = visible_until.reshape(rows, 1, blocks, BLOCK).max(-1)
    live = (furthest > start[None, :, None]) & (start[None, None, :] <= start[None, :, None] + BLOCK - 1)
    index = jnp.nonzero(live.reshape(-1), size=live.size, fill_value=0)[0].astype(jnp.int32)
    return Tiles(index=index, count=live.sum(dtype=jnp.int32)[None])


def pad_visible_until(visible_until: Int[Array, "R T"], block: int = BLOCK) -> Int[Array, "R P"]:
    """Rows padded to whole blocks with tokens that see themselves only."""
    length = visible_until.shape[1]
    pad = -length % block
    alone = jnp.broadcast_to(
        jnp.arange(length, length + pad, dtype=visible_until.dtype) + 1, (visible_until.shape[0], pad)
    )
    return jnp.concatenate([visible_until, alone], axis=1)
