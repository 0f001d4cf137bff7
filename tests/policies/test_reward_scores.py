"""What a reward model reads: the hidden state of every response's last token, in every layout, and no vocabulary."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.data.encoding import encode
from prefjax.data.records import Message, Record
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.models import apply, init
from prefjax.models.reward_head import RewardHead, features
from prefjax.policies.rewards import RewardModel
from prefjax.rows.arrays import LAYOUTS
from prefjax.rows.trees import token_ids
from prefjax.training.scoring import Scores, response_features, response_states, score, score_reference
from prefjax.training.step import init_params, loss_and_gradients
from tests.training.examples import MODEL, VOCABULARY, parameters, rows_for, setup_for, trees

EXAMPLES = 12


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def by_example(values, rows):
    """{example: [K, ...]} of an array [B, G, K, ...]."""
    return {int(i): values[place] for place, i in np.ndenumerate(rows.example_id) if i >= 0}


@jax.jit
def plain_states(params, tokens):
    """Hidden states [T, D] of one sequence alone."""
    length = tokens.shape[1]
    return apply(MODEL, params, tokens, jnp.arange(length)[None], jnp.full((1, length), length))[0]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gather_is_the_last_state_of_the_plain_sequence(layout):
    setup, examples = setup_for("bt"), trees(EXAMPLES, responses=3)
    params = parameters(setup)[0]["policy"]
    rows = rows_for(setup, layout, examples, length=480)
    states, prompts = jax.jit(lambda p, r: response_states(setup, p, r))(params, rows)
    states, prompts = by_example(np.asarray(states), rows), by_example(np.asarray(prompts), rows)

    for tree in examples:
        for k, response in enumerate(tree.responses):
            used = len(tree.prompt) + len(response)
            sequence = np.zeros((1, 32), np.int32)
            sequence[0, :used] = np.concatenate([tree.prompt, token_ids(response)])
            expected = np.asarray(plain_states(params, sequence))
            np.testing.assert_allclose(states[tree.example_id][k], expected[used - 1], rtol=1e-10)
            np.testing.assert_allclose(prompts[tree.example_id], expected[len(tree.prompt) - 1], rtol=1e-10)


def test_what_stands_after_a_response_or_in_its_neighbour_changes_nothing():
    setup, examples = setup_for("bt"), trees(EXAMPLES)
    params = parameters(setup)[0]["policy"]
    score_all = jax.jit(lambda p, r: response_features(setup, p, r))
    rows = rows_for(setup, "shared_packed", examples)
    changed = rows_for(
        setup,
        "shared_packed",
        [dataclasses.replace(t, responses=(t.responses[0], (t.responses[1] + 1) % VOCABULARY)) for t in examples],
    )
    before, after = np.asarray(score_all(params, rows)), np.asarray(score_all(params, changed))
    real = rows.example_id >= 0
    np.testing.assert_array_equal(before[real][:, 0], after[real][:, 0])
    assert (before[real][:, 1] != after[real][:, 1]).all()


@pytest.mark.slow
def test_a_reward_model_has_no_vocabulary_head_and_computes_no_logits():
    """Neither in the parameters that are trained nor in the program: no array has the vocabulary as an axis but the
    embedding and what its gradient is made of."""
    untied = dataclasses.replace(MODEL, tie_embeddings=False, vocab_size=97)
    setup = setup_for("bt", model=untied)
    params = init_params(setup, init(untied, jax.random.key(0)))
    assert "head" not in params["policy"] and "reward_head" in params["policy"]
    rows = jax.tree.map(jnp.asarray, rows_for(setup, "shared_packed", trees(EXAMPLES)))
    traced = jax.make_jaxpr(lambda p, r: score(setup, p, r, score_reference(setup, None, r)))(params, rows)
    assert all(97 not in v.aval.shape for e in equations(traced.jaxpr) for v in e.outvars)
    scores = jax.eval_shape(lambda p, r: score(setup, p, r, score_reference(setup, None, r)), params, rows)
    assert scores.logp is None and isinstance(scores, Scores)
    gradients, metrics = jax.jit(lambda p, r: loss_and_gradients(setup, p, None, r))(params, rows)
    assert not {"chosen_logp", "kl_estimate"} & set(metrics) and "chosen_reward" in metrics
    assert np.abs(gradients["policy"]["reward_head"]).max() > 0


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for one in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(one, "jaxpr", one)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def test_the_gate_weighs_blocks_by_the_prompt_and_lengths_are_one():
    rng = np.random.default_rng(0)
    states, prompts = jnp.asarray(rng.normal(size=(2, 3, 2, 16))), jnp.asarray(rng.normal(size=(2, 3, 16)))
    params = {"reward_head": rng.normal(size=(16, 6)), "reward_gate": rng.normal(size=(16, 3))}
    params = jax.tree.map(jnp.asarray, params)
    unit = features(RewardHead(6, normalize=True), params, states)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=-1), 1, rtol=1e-9)
    gated = features(RewardHead(6, normalize=True, gate=True), params, states, prompts)
    weights = jax.nn.softmax(prompts @ params["reward_gate"])
    np.testing.assert_allclose((gated / unit) ** 2, np.repeat(weights, 2, -1)[:, :, None] * np.ones((1, 1, 2, 1)))


def test_heads_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="reward_head.width=3: 1 for a scalar reward, or even"):
        RewardHead(3)
    with pytest.raises(ValueError, match="reward_head.normalize is of embeddings"):
        RewardHead(normalize=True)
    with pytest.raises(ValueError, match="reward_head has no effect: objective dpo trains no reward model"):
        dataclasses.replace(setup_for("dpo"), reward_head=RewardHead(2))


def test_a_step_of_a_begun_turn_is_scored_as_it_was_trained_on():
    """It goes on where the prompt ends, and no end follows it; equal responses are encoded once."""
    begun = (Message("user", "2 + 2?"), Message("assistant", "It is"))
    steps = tuple((Message("assistant", text),) for text in (" four", " five", " four"))
    record = Record(begun, steps, (1.0, 0.0, 1.0), "ranked", begun=True, ends=(False,) * 3)
    model = RewardModel(setup_for("bt"), {}, ByteTokenizer())
    ((_, tree, places),) = model._encode(record)
    expected = encode(record, ByteTokenizer())
    assert places == [0, 1, 0]
    np.testing.assert_array_equal(tree.prompt, expected.prompt)
    for mine, trained in zip(tree.responses, expected.responses[:2], strict=True):
        np.testing.assert_array_equal(mine, trained)
