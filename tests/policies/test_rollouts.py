"""Samples in batches of similar prompts, and log-probs of whole sequences by the step's path."""

import jax
import numpy as np
import pytest

from prefjax.models import ModelConfig, SamplingOptions, init
from prefjax.policies import rollouts
from prefjax.policies.held_out import score_held_out
from prefjax.rows.store import MemoryTrees
from prefjax.rows.trees import TokenTree
from prefjax.training import tables
from prefjax.training.mesh import MeshConfig, make_mesh
from tests.training.examples import setup_for

MODEL = ModelConfig(29, 1, 16, 2, 1, 8, 24, tie_embeddings=False)


@pytest.mark.slow
def test_prompts_of_any_length_come_back_in_order(monkeypatch):
    """Responses do not depend on how prompts are batched, even one at a time, nor on the mesh."""
    params, rng = init(MODEL, jax.random.key(0)), np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype), params)
    prompts = [rng.integers(3, 29, length).astype(np.int32) for length in (5, 90, 3, 64, 65, 7)]
    draws = [(4, 0), (4, 1), (0, 0), (9, 2), (2, 0), (3, 0)]
    options = dict(options=SamplingOptions(1.0, max_new_tokens=6), seed=0, draws=draws)
    one = rollouts.Sampler(MODEL, params, [2], 0)
    together = rollouts.sample_responses(one, prompts, **options)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    spread = rollouts.sample_responses(one._replace(mesh=mesh), prompts, **options)
    again = rollouts.sample_responses(one, prompts[:1], **(options | {"draws": [(4, 1)]}))
    monkeypatch.setattr(rollouts, "_CACHE_BYTES", 1)
    alone = rollouts.sample_responses(one, prompts, **options)
    for a, *others in zip(together, alone, spread, strict=True):
        for b in others:
            np.testing.assert_array_equal(a.tokens, b.tokens)
            np.testing.assert_allclose(a.logps, b.logps, rtol=1e-4, atol=1e-5)
            assert a.ended == b.ended == (a.tokens[-1] == 2) and len(a.logps) == len(a.tokens)
    assert len({tuple(response.tokens) for response in together}) == 6, "equal responses would hide a wrong order"
    assert again[0].tokens.tolist() != together[0].tokens.tolist(), "another sample of the same prompt"
    with pytest.raises(ValueError, match="without tokens"):
        rollouts.sample_responses(one, [prompts[0][:0]], **(options | {"draws": None}))


def test_few_shapes_are_compiled():
    lengths = np.random.default_rng(0).integers(1, 1000, 500).tolist()
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    parts = rollouts._plan(MODEL, lengths, 32, 64, mesh)
    assert sorted(index for part, _, _ in parts for index in part) == list(range(500))
    for indices, rows, width in parts:
        assert rows % 8 == 0 and len(indices) <= rows <= 64 and rows < 2 * max(len(indices), 8)
        assert max(lengths[index] for index in indices) <= width
    assert len({width for _, _, width in parts}) <= 11
    assert [tables.round_up(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 33, 1000)] == [1, 2, 3, 4, 6, 8, 12, 16, 48, 1024]


def test_sequence_logps_are_sums_of_log_softmax():
    setup = setup_for("dpo", model=MODEL, mesh=make_mesh(MeshConfig(), jax.devices()[:1]))
    params, rng = init(MODEL, jax.random.key(1)), np.random.default_rng(1)
    draw = lambda low, high: rng.integers(3, 29, rng.integers(low, high)).astype(np.int32)
    prompts, responses = [draw(1, 9) for _ in range(5)], [draw(1, 6) for _ in range(5)]
    zeros = jax.tree.map(np.zeros_like, params)
    got, uniform = rollouts.sequence_logps(setup, [params, zeros], prompts, responses)
    lengths = np.array([len(response) for response in responses])
    np.testing.assert_allclose(uniform, -lengths * np.log(29), rtol=1e-6)
    # A prompt and response scored alone, as a batch of one.
    for i in range(5):
        (one,) = rollouts.sequence_logps(setup, [params], prompts[i : i + 1], responses[i : i + 1])
        np.testing.assert_allclose(got[i], one[0], rtol=1e-5)
    assert np.ptp(got) > 0


def test_the_length_of_a_held_out_response_counts_what_is_scored():
    """A turn of the user's inside of it is read alone, so that log-probs per token are of the tokens they sum."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    uniform = jax.tree.map(np.zeros_like, init(MODEL, jax.random.key(0)))
    long = np.array([5, 6, ~7, ~8, ~9, 6, 2], np.int32)
    responses = [(long, long[:2]), (long[:3],)]
    trees = MemoryTrees(TokenTree(np.arange(3, 6), own, np.arange(len(own))[::-1]) for own in responses)
    scored = score_held_out(MODEL, mesh, uniform, uniform, trees)
    assert scored.length.tolist() == [[4, 2], [2, 0]] and scored.target.tolist() == [[1, 0], [0, 0]]
    assert scored.valid.tolist() == [[True, True], [True, False]]
    np.testing.assert_allclose(scored.policy_logp, -scored.length * np.log(29), rtol=1e-6)
