"""Samples in batches of similar prompts, and log-probs of whole sequences by the step's path."""

import jax
import numpy as np

from prefjax.models import ModelConfig, init
from prefjax.training import rollouts
from prefjax.training.mesh import MeshConfig, make_mesh
from tests.training.examples import setup_for

MODEL = ModelConfig(29, 1, 16, 2, 1, 8, 24, tie_embeddings=False)


def test_prompts_of_any_length_come_back_in_order(monkeypatch):
    """Greedy responses do not depend on how prompts are batched, even one at a time."""
    params, rng = init(MODEL, jax.random.key(0)), np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype), params)
    prompts = [rng.integers(3, 29, length).astype(np.int32) for length in (5, 90, 3, 64, 65, 7)]
    options = dict(end_id=2, pad_id=0, max_new_tokens=4, seed=0, temperature=0.0)
    together = rollouts.sample_responses(MODEL, params, prompts, **options)
    monkeypatch.setattr(rollouts, "_PREFILL_BYTES", 1)
    alone = rollouts.sample_responses(MODEL, params, prompts, **options)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len({tuple(response) for response in together}) > 2, "equal responses would hide a wrong order"


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
