"""The mask, its dense oracle, and the tile loop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.models import attention
from prefjax.models.attention import tiles as attention_tiles
from prefjax.rows.layout import lay_out_forest
from prefjax.training.mesh import MeshConfig, make_mesh
from tests.rows.forests import merged_mask


def random_row(rng, length):
    """(visible_until, positions, segment-ancestor mask) of a random forest of deep trees, padded at the end."""
    parents, path = [], []
    lengths = []
    while sum(lengths) < length * 0.8:
        parent = path[rng.integers(len(path))] if path and rng.random() < 0.8 else -1
        path = path[: path.index(parent) + 1] if parent >= 0 else []
        path.append(len(parents))
        parents.append(parent)
        lengths.append(int(rng.integers(1, max(2, length // 8))))
    lengths[-1] = max(1, lengths[-1] - max(0, sum(lengths) - length))
    forest = lay_out_forest(np.array(lengths), np.array(parents))
    used = len(forest.positions)
    pad = np.arange(used, length)
    visible_until = np.concatenate([forest.visible_until, pad + 1])
    positions = np.concatenate([forest.positions, np.zeros(length - used, np.int32)])
    segments = np.concatenate([forest.segment_ids, np.zeros(length - used, np.int32)])
    ancestors = [{0}]
    for node, parent in enumerate(parents):
        ancestors.append({node + 1} | (ancestors[parent + 1] if parent >= 0 else set()))
    mask = np.zeros((length, length), bool)
    for i, j in itertools.product(range(length), range(length)):
        if segments[i] == 0 or segments[j] == 0:
            mask[i, j] = i == j
        else:
            mask[i, j] = j <= i and segments[j] in ancestors[segments[i]]
    return visible_until.astype(np.int32), positions.astype(np.int32), mask


@pytest.mark.parametrize("seed", range(20))
def test_visible_until_is_the_segment_ancestor_rule(seed):
    """Causal, and the key's segment is the query's segment or an ancestor of it: one integer per key says the same."""
    visible_until, _, mask = random_row(np.random.default_rng(seed), 48)
    np.testing.assert_array_equal(np.asarray(attention.visible(jnp.array(visible_until[None])))[0], mask)


@pytest.mark.parametrize("length", [127, 384])
def test_live_tiles_are_exact(length):
    rng = np.random.default_rng(length)
    rows = np.stack(
        [random_row(rng, length)[0] for _ in range(3)] + [merged_mask(length, seed)[0] for seed in range(5)]
    )
    tiles = attention_tiles.live_tiles(jnp.array(rows))
    block, blocks = attention_tiles.BLOCK, -(-length // attention_tiles.BLOCK)
    dense = np.zeros((8, blocks * block, blocks * block), bool)
    dense[:, :length, :length] = attention.visible(jnp.array(rows))
    pad = np.arange(length, blocks * block)
    dense[:, pad, pad] = True
    live = dense.reshape(8, blocks, block, blocks, block).any((2, 4))
    found = np.zeros(live.size, bool)
    found[np.asarray(tiles.index[: int(tiles.count[0])])] = True
    np.testing.assert_array_equal(found.reshape(live.shape), live)
    if blocks > 1:
        assert not live.all(), "a mask without a dead tile does not test skipping"


def inputs(length, heads, kv_heads, dtype, rows=3, seed=0):
    rng = np.random.default_rng(seed)
    masks = [random_row(rng, length) for _ in range(rows - 1)]
    alone = (np.arange(length, dtype=np.int32) + 1, np.zeros(length, np.int32))  # a row of padding only
    visible_until = jnp.array(np.stack([m[0] for m in masks] + [alone[0]]))
    positions = jnp.array(np.stack([m[1] for m in masks] + [alone[1]]))
    draw = lambda n: jnp.array(rng.normal(size=(rows, length, n, 16)), dtype)
    return draw(heads), draw(kv_heads), draw(kv_heads), draw(heads), visible_until, positions


def run(implementation, q, k, v, upstream, visible_until, positions, *, mesh=None, softcap=None, window=None):
    """(output, gradients) of one attention."""

    def loss(q, k, v):
        mask = attention.prepare(visible_until, positions, implementation=implementation, mesh=mesh)
        far = None if window is None else jnp.int32(window)
        output = attention.attend(q, k, v, mask, scale=0.3, softcap=softcap, window=far)
        return (output.astype(upstream.dtype) * upstream).sum(), output

    gradients, output = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return output, *gradients


@pytest.mark.parametrize("softcap,window", [(None, None), (2.0, None), (None, 9), (2.0, 9)])
@pytest.mark.parametrize("length,heads,kv_heads", [(300, 6, 2), (128, 2, 2)])
def test_tiles_equal_the_dense_oracle(length, heads, kv_heads, softcap, window):
    arrays = inputs(length, heads, kv_heads, jnp.float32)
    options = dict(softcap=softcap, window=window)
    for tiled, dense in zip(run("tiled", *arrays, **options), run("dense", *arrays, **options), strict=True):
        np.testing.assert_allclose(tiled, dense, rtol=1e-4, atol=1e-5)


def test_bfloat16_tiles_are_no_worse_than_bfloat16_dense():
    arrays = inputs(300, 4, 2, jnp.float32)
    narrow = [x.astype(jnp.bfloat16) for x in arrays[:3]]
    exact = run("dense", *[x.astype(jnp.float32) for x in narrow], *arrays[3:])
    error = lambda got: [
        float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)) for a, b in zip(got, exact, strict=True)
    ]
    tiled, dense = (error(run(name, *narrow, *arrays[3:])) for name in ("tiled", "dense"))
    assert all(t <= 1.5 * d for t, d in zip(tiled, dense, strict=True)), (tiled, dense)


def test_sharded_tiles_equal_dense():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    arrays = inputs(200, 4, 2, jnp.float32, rows=8)
    for tiled, dense in zip(run("tiled", *arrays, mesh=mesh), run("dense", *arrays), strict=True):
        np.testing.assert_allclose(tiled, dense, rtol=1e-4, atol=1e-5)


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="attention='flash'"):
        attention.prepare(jnp.ones((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32), implementation="flash")
