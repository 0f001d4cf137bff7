"""Sampling against the plain forward pass: greedy choices, log-probs, what the cuts keep, independence."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.models import Prompts, SamplingOptions, sample, vocabulary_head
from prefjax.models.sampling import restrict
from prefjax.training.mesh import MeshConfig, make_mesh, parameter_shardings, row_sharding
from tests.models.test_decoder import FAMILIES, SMALL, causal, lively


def keys(count, seed=2):
    return jax.random.split(jax.random.key(seed), count)


def full_logps(config, params, tokens):
    """[L, V] log-probs of the token after each of a plain sequence's."""
    logits = causal(config, params, np.asarray(tokens))[0] @ vocabulary_head(config, params).T
    if config.logit_softcap is not None:
        logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
    return np.asarray(jax.nn.log_softmax(logits))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_sampling_follows_the_full_forward_pass(family):
    config = FAMILIES[family]
    params = lively(config, seed=1)
    prompts = jax.random.randint(jax.random.key(1), (4, 6), 3, 29)
    lengths = jnp.array([6, 3, 1, 4])
    greedy = SamplingOptions(temperature=0.0, max_new_tokens=7)
    got = sample(config, params, Prompts(prompts, lengths, keys(4)), greedy, stop_ids=(2,), pad_id=0)
    varied = set()
    for row in range(4):
        start, count = int(lengths[row]), int(got.lengths[row])
        sequence = np.concatenate([prompts[row, :start], got.tokens[row, :count]])
        logps = full_logps(config, params, sequence)[start - 1 : -1]
        np.testing.assert_array_equal(logps.argmax(-1), got.tokens[row, :count])
        np.testing.assert_allclose(got.logps[row, :count], logps.max(-1), rtol=1e-4, atol=1e-5)
        assert not np.any(got.logps[row, count:])
        varied |= set(sequence[start:].tolist())
    assert len(varied) > 3


def test_log_probs_are_those_of_the_model_whatever_the_draw():
    """Temperature and cuts change which tokens are drawn, not what the model thinks of them."""
    config = FAMILIES["gemma2"]
    params, prompts = lively(config, seed=1), jnp.array([[5, 9, 17], [8, 3, 0]])
    asked = Prompts(prompts, jnp.array([3, 2]), keys(2))
    options = SamplingOptions(temperature=1.7, top_k=20, top_p=0.9, max_new_tokens=9)
    got = sample(config, params, asked, options, stop_ids=(), pad_id=0)
    for row, start in enumerate((3, 2)):
        logps = full_logps(config, params, np.concatenate([prompts[row, :start], got.tokens[row]]))[start - 1 : -1]
        expected = np.take_along_axis(logps, np.asarray(got.tokens[row])[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(got.logps[row], expected, rtol=1e-4, atol=1e-5)
        assert (logps.argmax(-1) != got.tokens[row]).any()


def kept_by_sorting(logits, top_k, top_p):
    """The cuts as the papers say them, one token after another. Logits differ."""
    order = np.argsort(-logits)[: top_k or len(logits)]
    shares = np.exp(logits[order] - logits[order].max())
    shares /= shares.sum()
    kept, total = [], 0.0
    for token, share in zip(order, shares, strict=True):
        kept.append(token)
        total += share
        if total >= top_p:
            break
    return set(kept)


@pytest.mark.parametrize("top_k,top_p", [(0, 0.5), (0, 0.95), (5, 1.0), (5, 0.7), (1, 0.3), (40, 0.9), (0, 1e-6)])
def test_the_cuts_keep_what_the_papers_say(top_k, top_p):
    logits = 2 * np.random.default_rng(top_k).normal(size=(50, 29)).astype(np.float32)
    got = np.asarray(restrict(jnp.asarray(logits), top_k=top_k, top_p=None if top_p == 1 else top_p))
    sizes = set()
    for row in range(50):
        kept = np.flatnonzero(np.isfinite(got[row]))
        assert set(kept.tolist()) == kept_by_sorting(logits[row].astype(np.float64), top_k, top_p)
        np.testing.assert_array_equal(got[row, kept], logits[row, kept])
        sizes.add(len(kept))
    assert top_k == 1 or top_p in (1e-6, 1.0) or len(sizes) > 2


def test_equally_likely_tokens_share_a_fate():
    logits = jnp.array([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    assert np.isfinite(restrict(logits, top_k=2)).tolist() == [[False, True, True, True, True, False]]
    assert restrict(logits) is logits


@pytest.mark.parametrize("top_k,top_p,temperature", [(0, 1.0, 1.0), (6, 1.0, 0.8), (0, 0.6, 1.3), (12, 0.8, 1.0)])
def test_tokens_come_as_often_as_they_should(top_k, top_p, temperature):
    draws, params = 4000, lively(SMALL, seed=3)
    prompts = Prompts(jnp.full((draws, 2), 5), jnp.full(draws, 2), keys(draws, seed=0))
    options = SamplingOptions(temperature, top_k, top_p, max_new_tokens=1)
    got = np.asarray(sample(SMALL, params, prompts, options, stop_ids=(), pad_id=0).tokens[:, 0])
    logits = full_logps(SMALL, params, [5, 5])[-1].astype(np.float64) / temperature
    kept = sorted(kept_by_sorting(logits, top_k, min(top_p, 1.0 - 1e-12)))
    expected = np.zeros(29)
    expected[kept] = np.exp(logits[kept]) / np.exp(logits[kept]).sum()
    seen = np.bincount(got, minlength=29) / draws
    assert not seen[expected == 0].any()
    assert np.abs(seen - expected).max() < 4 * np.sqrt(0.25 / draws)
    assert len(kept) > 2 and (len(kept) < 29 or not (top_k or top_p < 1))


def test_draws_are_independent_from_token_to_token():
    uniform = jax.tree.map(jnp.zeros_like, lively(SMALL))
    prompts = Prompts(jnp.full((2000, 1), 5), jnp.ones(2000, int), keys(2000))
    options = SamplingOptions(max_new_tokens=3)
    tokens = np.asarray(sample(SMALL, uniform, prompts, options, stop_ids=(), pad_id=0).tokens)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert np.mean(tokens[:, a] == tokens[:, b]) == pytest.approx(1 / 29, abs=4 * np.sqrt(1 / 29 / 2000))


def test_any_stop_token_ends_a_response():
    params = lively(SMALL, seed=3)
    prompts = Prompts(jnp.full((500, 2), 5), jnp.full(500, 2), keys(500))
    options = SamplingOptions(max_new_tokens=5)
    got = jax.device_get(sample(SMALL, params, prompts, options, stop_ids=(7, 11), pad_id=0))
    stopped = np.isin(got.tokens, (7, 11))
    np.testing.assert_array_equal(stopped.any(1), got.ended)
    ends = set()
    for row in range(500):
        length = got.lengths[row]
        assert stopped[row].sum() == got.ended[row] and (length == 5 or got.ended[row])
        assert not got.ended[row] or stopped[row, length - 1]
        assert (got.tokens[row, length:] == 0).all() and (got.logps[row, :length] < 0).all()
        ends.add(int(got.tokens[row, length - 1]))
    assert {7, 11} < ends and 0 < got.ended.sum() < 500


@pytest.mark.slow
def test_a_response_depends_on_its_own_prompt_and_key_alone():
    """Not on its neighbours, padding, the room left after it, or the mesh: the same draws, to rounding of float64."""
    with jax.enable_x64(True):
        for family, attention, meshes in (
            ("gemma2", "dense", [(2, 2, 2)]),
            ("llama", "tiled", [(8, 1, 1), (1, 4, 2)]),
        ):
            config = dataclasses.replace(
                FAMILIES[family], dtype="float64", param_dtype="float64", attention=attention, vocab_size=32
            )
            params = lively(config, seed=1)
            rng = np.random.default_rng(0)
            lengths = np.array([6, 3, 1, 4, 2, 6, 5, 0])
            prompts = rng.integers(3, 29, (8, 6))
            options = SamplingOptions(temperature=1.2, top_k=25, top_p=0.95, max_new_tokens=8)
            draw = functools.partial(sample, config, options=options, stop_ids=(2, 9), pad_id=0)
            own = keys(8)
            whole = jax.device_get(draw(params, Prompts(prompts, lengths, own)))
            assert whole.lengths[7] == 0 and whole.ended[7]
            assert len({tuple(tokens) for tokens in whole.tokens[:7].tolist()}) == 7

            def same(got, rows, whole=whole):
                for name in ("tokens", "lengths", "ended"):
                    np.testing.assert_array_equal(getattr(got, name)[: len(rows)], getattr(whole, name)[rows])
                np.testing.assert_allclose(got.logps[: len(rows)], whole.logps[rows], rtol=1e-9, atol=1e-9)

            order = [5, 2, 0]
            few = np.full((3, 11), 30)  # wider, with other padding
            few[:, :6] = prompts[order]
            same(draw(params, Prompts(few, lengths[order], own[jnp.array(order)])), order)
            for sizes in meshes:
                mesh = make_mesh(MeshConfig(*sizes))
                place = lambda x, mesh=mesh: jax.device_put(x, row_sharding(mesh))
                spread = jax.device_put(params, parameter_shardings(mesh, params))
                got = draw(spread, Prompts(*map(place, (prompts, lengths, own))), mesh=mesh)
                same(jax.device_get(got), np.arange(8))


@pytest.mark.parametrize(
    "options,message",
    [
        (dict(temperature=-1.0), "temperature"),
        (dict(top_k=-1), "top_k"),
        (dict(top_p=0.0), "top_p"),
        (dict(top_p=1.5), "top_p"),
        (dict(max_new_tokens=0), "max_new_tokens"),
        (dict(temperature=0.0, top_k=3), "have no effect"),
    ],
)
def test_options_that_mean_nothing_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingOptions(**options)
