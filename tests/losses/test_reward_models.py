"""Objectives of reward models: what they are equal to, what they refuse, and extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.losses import Responses, bt, bt_margin, bt_ranking, dpo, gpm, pl_dpo, pl_ranking
from prefjax.losses.reward_models import preference_scores, skew_score


def features(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def pair(**fields):
    fields = {"features": features(6, 2, 1), "target": jnp.tile(jnp.array([[1.0, 0.0]]), (6, 1))} | fields
    return Responses(**fields)


def test_rankings_of_two_are_pairs():
    r = pair()
    np.testing.assert_allclose(bt_ranking(r), bt(r), rtol=1e-6)
    np.testing.assert_allclose(pl_ranking(r), bt(r), rtol=1e-6)


def test_a_margin_of_zero_is_none():
    r = pair(margin=jnp.zeros(6))
    np.testing.assert_array_equal(bt_margin(r, centering=0.2), bt(r, centering=0.2))
    np.testing.assert_allclose(bt_margin(r.replace(margin=jnp.full(6, 40.0))) - bt(r), 40, atol=3.0)


def test_centring_is_the_only_term_that_sees_a_shift():
    r = pair()
    shifted = r.replace(features=r.features + 3)
    np.testing.assert_allclose(bt(r), bt(shifted), rtol=1e-4)
    rewards = r.features[..., 0].sum(-1)
    np.testing.assert_allclose(bt(shifted, centering=0.5) - bt(r), 0.5 * (rewards + 6) ** 2, rtol=1e-4)


def test_they_are_dpo_with_a_reward_in_place_of_the_implicit_one():
    rewards = features(5, 3, 1)
    policy = Responses(logp=rewards[..., 0], reference_logp=jnp.zeros((5, 3)), target=features(5, 3, seed=1))
    model = Responses(features=rewards, target=policy.target)
    np.testing.assert_allclose(pl_ranking(model), pl_dpo(policy, beta=1.0), rtol=1e-6)
    two = policy.replace(**{name: getattr(policy, name)[:, :2] for name in ("logp", "reference_logp", "target")})
    np.testing.assert_allclose(bt(Responses(features=rewards[:, :2])), dpo(two, beta=1.0), rtol=1e-5)


@pytest.mark.parametrize("width", [2, 6])
def test_preference_scores_are_skew_symmetric(width):
    v, other = features(7, width), features(7, width, seed=1)
    np.testing.assert_allclose(skew_score(v, other), -skew_score(other, v), rtol=1e-6)
    np.testing.assert_allclose(skew_score(v, v), 0, atol=1e-6)
    r = Responses(features=jnp.stack([v, other], 1))
    exchanged = r.replace(features=r.features[:, ::-1])
    np.testing.assert_allclose(jnp.exp(-gpm(r)) + jnp.exp(-gpm(exchanged)), 1, rtol=1e-5)
    scores = preference_scores(features(3, 4, width))
    np.testing.assert_allclose(scores, -scores.swapaxes(1, 2), atol=1e-6)


def test_gpm_with_a_constant_second_coordinate_is_bradley_terry():
    r = pair()
    embedded = r.replace(features=jnp.concatenate([r.features, jnp.full((6, 2, 1), 0.1)], -1))
    np.testing.assert_allclose(gpm(embedded, tau=0.1), bt(r), rtol=1e-5)


@pytest.mark.slow
def test_gpm_learns_a_cycle_and_bradley_terry_cannot():
    """a beats b beats c beats a: three responses, known by their one-hot vectors."""
    pairs = jnp.array([[0, 1], [1, 2], [2, 0]])

    def fitted(loss, width):
        table = 0.1 * features(3, width)
        total = lambda table: loss(Responses(features=table[pairs])).mean()
        step = jax.jit(lambda table: table - 0.3 * jax.grad(total)(table))
        for _ in range(300):
            table = step(table)
        return float(total(table))

    assert fitted(gpm, 2) < 0.01
    assert fitted(bt, 1) == pytest.approx(np.log(2), abs=1e-4)


def test_equal_scores_make_no_pair_and_do_not_dilute():
    r = Responses(features=features(1, 3, 1), target=jnp.array([[1.0, 0.0, 0.0]]))
    two = [Responses(features=r.features[:, [0, k]], target=r.target[:, [0, k]]) for k in (1, 2)]
    np.testing.assert_allclose(bt_ranking(r), (bt(two[0]) + bt(two[1])) / 2, rtol=1e-6)
    assert bt_ranking(r.replace(target=jnp.zeros((1, 3))))[0] == 0


@pytest.mark.parametrize("loss", [bt, gpm, bt_ranking, pl_ranking, bt_margin])
def test_extreme_rewards_are_finite(loss):
    width = 2 if loss is gpm else 1
    for scale in (1e2, 1e4):
        r = pair(features=scale * features(6, 2, width), margin=scale * features(6))
        losses, gradient = jax.value_and_grad(lambda x, r=r: loss(r.replace(features=x)).sum())(r.features)
        assert np.isfinite(losses) and np.isfinite(gradient).all()


def test_the_width_of_the_head_must_fit():
    with pytest.raises(ValueError, match="reads a scalar reward, but features has m = 2: set reward_head.width=1"):
        bt(pair(features=features(6, 2, 2)))
    with pytest.raises(ValueError, match="m = 3: make it even"):
        gpm(pair(features=features(6, 2, 3)))


def test_a_policy_objective_asks_for_log_probs():
    with pytest.raises(ValueError, match="^this objective needs reference_logp"):
        dpo(pair())
    with pytest.raises(ValueError, match="needs logp, a policy's log-probs"):
        dpo(pair(reference_logp=jnp.zeros((6, 2))))
