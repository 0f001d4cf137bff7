"""Choosing remat policies and attention tiles: the commands compare only what computes the same."""

import dataclasses

import jax
import pytest

from experiments.benchmarks.lengths import Lognormal, draw_trees
from experiments.benchmarks.remat import Policies
from experiments.benchmarks.shapes import MODELS
from experiments.benchmarks.tune_attention import Chip, Problem, Tiles, candidates
from prefjax.data.encoding import EncodingPolicy
from prefjax.models.attention import kernels
from prefjax.models.attention.kernel_tiles import BLOCKS
from prefjax.models.decoder import REMAT

CUDA = Chip("cuda", "cuda", "cuda", interpret="cuda")
SMALL = Problem(rows=1, length=640, query_heads=2, key_heads=1, width=32, dtype="float32")


@pytest.mark.slow
def test_remat_policies_are_compared_on_the_same_step():
    model = MODELS["tiny"]
    trees = draw_trees(Lognormal(60, 1, 0.5, 0.5), 4, EncodingPolicy(), vocab_size=model.vocab_size)
    compared = Policies(model, trees)
    rows = compared.measure(repeats=1)
    assert [row["remat"] for row in rows] == list(REMAT)
    assert rows[0]["time"] == rows[0]["memory"] == 1
    assert rows[2]["memory"] < 1, "recomputing everything must save memory"
    assert len(compared.table(rows).splitlines()) == 2 + len(REMAT)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_candidates_start_with_the_table_and_are_distinct(platform):
    current = BLOCKS[platform]
    tiles = candidates(platform, current)
    assert tiles[0] == current and len(set(tiles)) == len(tiles) > 10
    assert all(blocks.memory == current.memory for blocks in tiles)


@pytest.mark.slow
def test_tiles_are_timed_fastest_first_and_refusals_are_listed(monkeypatch):
    current = BLOCKS["cuda"]
    other = dataclasses.replace(current, query=64, key=64, rows=64)
    refused = dataclasses.replace(current, query=128, key=128, rows=128)
    forward = kernels.forward

    def compiler(heads, mask, **options):
        if mask.kernel_tiles["cuda"].blocks == refused:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: shared memory\nmore")
        return forward(heads, mask, **options)

    monkeypatch.setattr(kernels, "forward", compiler)
    compared = Tiles(SMALL, CUDA, [current, other, refused])
    rows = compared.measure(repeats=1)
    assert {row["blocks"] for row in rows[:2]} == {current, other}
    assert rows[0]["milliseconds"] <= rows[1]["milliseconds"]
    assert rows[2] == {"blocks": refused, "refused": "RESOURCE_EXHAUSTED: shared memory"}
    text = compared.table(rows)
    assert text.count("(now)") == 1 and "shared memory" in text
    assert BLOCKS["cuda"] == current, "the table was left changed"


def test_a_tile_that_computes_something_else_is_refused(monkeypatch):
    forward = kernels.forward
    monkeypatch.setattr(
        kernels, "forward", lambda *args, **options: jax.tree.map(lambda x: 1.1 * x, forward(*args, **options))
    )
    with pytest.raises(AssertionError, match="away from plain XLA"):
        Tiles(SMALL, CUDA, [BLOCKS["cuda"]]).measure(repeats=1)
