"""Choosing remat policies and attention tiles: the commands compare only what computes the same."""

import dataclasses

import jax
import pytest

from experiments.benchmarks import core, remat, tune_attention
from experiments.benchmarks.lengths import Lognormal, draw_trees
from experiments.benchmarks.tune_attention import Problem, candidates, measure
from prefjax.data.encoding import EncodingPolicy
from prefjax.models import pallas_attention
from prefjax.models.decoder import REMAT
from prefjax.models.pallas_tiles import BLOCKS

SMALL = Problem(rows=1, length=640, query_heads=2, key_heads=1, width=32, dtype="float32")


def test_remat_policies_are_compared_on_the_same_step():
    model = core.MODELS["tiny"]
    trees = draw_trees(Lognormal(60, 1, 0.5, 0.5), 4, EncodingPolicy(), vocab_size=model.vocab_size)
    rows = remat.measure(model, trees, repeats=1)
    assert [row["remat"] for row in rows] == list(REMAT)
    assert rows[0]["time"] == rows[0]["memory"] == 1
    assert rows[2]["memory"] < 1, "recomputing everything must save memory"
    assert len(remat.table(rows).splitlines()) == 2 + len(REMAT)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_candidates_start_with_the_table_and_are_distinct(platform):
    current = BLOCKS[platform]
    tiles = candidates(platform, current)
    assert tiles[0] == current and len(set(tiles)) == len(tiles) > 10
    assert all(blocks.memory == current.memory for blocks in tiles)


def test_tiles_are_timed_fastest_first_and_refusals_are_listed(monkeypatch):
    current = BLOCKS["cuda"]
    other = dataclasses.replace(current, query=64, key=64, rows=64)
    refused = dataclasses.replace(current, query=128, key=128, rows=128)
    forward = pallas_attention.forward

    def compiler(*args, **options):
        if BLOCKS["cuda"] == refused:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: shared memory\nmore")
        return forward(*args, **options)

    monkeypatch.setattr(pallas_attention, "forward", compiler)
    rows = measure(SMALL, "cuda", "cuda", [current, other, refused], repeats=1, interpret="cuda")
    assert {row["blocks"] for row in rows[:2]} == {current, other}
    assert rows[0]["milliseconds"] <= rows[1]["milliseconds"]
    assert rows[2] == {"blocks": refused, "refused": "RESOURCE_EXHAUSTED: shared memory"}
    text = tune_attention.table(rows, current)
    assert text.count("(now)") == 1 and "shared memory" in text
    assert BLOCKS["cuda"] == current, "the table was left changed"


def test_a_tile_that_computes_something_else_is_refused(monkeypatch):
    forward = pallas_attention.forward
    monkeypatch.setattr(
        pallas_attention, "forward", lambda *args, **options: jax.tree.map(lambda x: 1.1 * x, forward(*args, **options))
    )
    with pytest.raises(AssertionError, match="away from plain XLA"):
        measure(SMALL, "cuda", "cuda", [BLOCKS["cuda"]], repeats=1, interpret="cuda")
