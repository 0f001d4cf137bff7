"""Pairs: first steps, kinks, and the identities the papers state."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.losses import Responses, cdpo, dpo, ipo, rdpo, rso_hinge, slic

LOG2 = np.log(2)


def softplus(x):
    return np.logaddexp(0, x)


def pairs(h, level=-50.0):
    """Pairs with margin h against a reference that puts both responses at `level` nats."""
    h = jnp.atleast_1d(jnp.asarray(h, float))
    logp = jnp.stack([level + h / 2, level - h / 2], axis=-1)
    return Responses(logp=logp, reference_logp=jnp.full_like(logp, level))


def swapped(r):
    return r.replace(logp=r.logp[:, ::-1], reference_logp=r.reference_logp[:, ::-1])


def slope(loss, h, **options):
    """d loss / d h, per pair."""
    return jax.grad(lambda h: loss(pairs(h), **options).sum())(jnp.atleast_1d(jnp.asarray(h, float)))


MARGINS = np.linspace(-60, 60, 41)


@pytest.mark.parametrize(
    ("loss", "options", "value", "at_chosen"),
    [
        (dpo, dict(beta=0.1), LOG2, -0.05),
        (cdpo, dict(beta=0.1, label_smoothing=0.2), LOG2, -0.1 * (0.5 - 0.2)),
        (rdpo, dict(beta=0.1, flip_rate=0.2), LOG2, -0.1 / (2 * (1 - 0.4))),
        (ipo, dict(tau=0.1), 25.0, -10.0),
        (rso_hinge, dict(gamma=0.05), 1.0, -0.05),
    ],
)
def test_first_step_from_the_reference(loss, options, value, at_chosen):
    start = pairs([0.0])
    np.testing.assert_allclose(loss(start, **options), [value], rtol=1e-6)
    gradient = jax.grad(lambda logp: loss(start.replace(logp=logp), **options).sum())(start.logp)
    np.testing.assert_allclose(gradient, [[at_chosen, -at_chosen]], rtol=1e-6)


def test_without_noise_rdpo_and_cdpo_are_dpo():
    r = pairs(MARGINS)
    np.testing.assert_array_equal(rdpo(r, flip_rate=0.0), dpo(r))
    np.testing.assert_array_equal(cdpo(r, label_smoothing=0.0), dpo(r))


def test_rdpo_and_cdpo_are_dpo_plus_a_line_in_opposite_directions():
    r, z, e = pairs(MARGINS), 0.1 * MARGINS, 0.2
    np.testing.assert_allclose(rdpo(r, flip_rate=e), dpo(r) - e / (1 - 2 * e) * z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cdpo(r, label_smoothing=e), dpo(r) + e * z, rtol=1e-5, atol=1e-6)


def test_rdpo_averaged_over_label_flips_is_clean_dpo():
    r, e = pairs(MARGINS), 0.3
    average = (1 - e) * rdpo(r, flip_rate=e) + e * rdpo(swapped(r), flip_rate=e)
    np.testing.assert_allclose(average, dpo(r), rtol=1e-4, atol=1e-5)


def test_rdpo_is_negative_for_well_separated_pairs():
    np.testing.assert_allclose(rdpo(pairs([1000.0])), [-12.5], rtol=1e-4)  # z = 100, flip_rate 0.1


@pytest.mark.parametrize("flip_rate", [0.5, 0.7, -0.1])
def test_rdpo_refuses_an_impossible_flip_rate_when_traced(flip_rate):
    with pytest.raises(ValueError, match=f"flip_rate.*{flip_rate}"):
        jax.jit(lambda r: rdpo(r, flip_rate=flip_rate))(pairs([1.0]))


@pytest.mark.parametrize("e", [0.1, 0.3])
def test_cdpo_is_minimal_at_the_log_odds_of_the_smoothed_label(e):
    best = np.log((1 - e) / e) / 0.1
    slopes = slope(cdpo, [best - 1, best, best + 1], label_smoothing=e)
    assert slopes[0] < 0 < slopes[2] and abs(slopes[1]) < 1e-7


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_ipo_over_noisy_pairs_is_minimal_at_the_paper_margin(p):
    best, tau = (2 * p - 1) / (2 * 0.1), 0.1

    def population_slope(h):
        return p * slope(ipo, h, tau=tau) - (1 - p) * slope(ipo, -h, tau=tau)

    slopes = population_slope(jnp.array([best - 1, best, best + 1]))
    np.testing.assert_allclose(slopes, [-2, 0, 2], atol=1e-5)


def test_ipo_minimum_is_zero_and_overshoot_costs_like_undershoot():
    np.testing.assert_allclose(ipo(pairs([5.0, 3.0, 7.0]), tau=0.1), [0, 4, 4], atol=1e-5)


def test_ipo_by_length_divides_each_log_ratio_by_its_own_length():
    r = Responses(
        logp=jnp.array([[-4.0, -9.0]]), reference_logp=jnp.array([[-10.0, -5.0]]), length=jnp.array([[3.0, 8.0]])
    )
    np.testing.assert_allclose(ipo(r, tau=0.25, normalize="length"), [(6 / 3 + 4 / 8 - 2) ** 2], rtol=1e-6)
    np.testing.assert_allclose(ipo(r, tau=0.25), [(6 + 4 - 2) ** 2], rtol=1e-6)
    with pytest.raises(ValueError, match="needs length: "):
        ipo(r.replace(length=None), normalize="length")
    with pytest.raises(ValueError, match="normalize.*'tokens'"):
        # Past the annotation checker of the tests, as in production.
        inspect.unwrap(ipo)(r, normalize="tokens")


def test_rso_hinge_is_gamma_times_a_slic_hinge_with_margin_one_over_gamma():
    """On a uniform reference (the same for both responses) h is logp(chosen) - logp(rejected)."""
    r = pairs(MARGINS)
    np.testing.assert_allclose(
        rso_hinge(r, gamma=0.05), 0.05 * slic(r, delta=20.0, regularizer_weight=0.0), rtol=1e-5, atol=1e-6
    )


def test_slic_regularises_on_the_auxiliary_response_when_there_is_one():
    r = Responses(logp=jnp.array([[-10.0, -12.0], [-12.0, -10.0]]))
    with_target = r.replace(auxiliary_logp=jnp.array([-30.0, -40.0]))
    np.testing.assert_allclose(slic(r, regularizer_weight=0.5), [0 + 5, 3 + 6], rtol=1e-6)
    np.testing.assert_allclose(slic(with_target, regularizer_weight=0.5), [0 + 15, 3 + 20], rtol=1e-6)

    def total(logp, auxiliary):
        return slic(Responses(logp=logp, auxiliary_logp=auxiliary), regularizer_weight=0.5).sum()

    on_pairs, on_target = jax.grad(total, argnums=(0, 1))(with_target.logp, with_target.auxiliary_logp)
    np.testing.assert_allclose(on_pairs, [[0, 0], [-1, 1]])
    np.testing.assert_allclose(on_target, [-0.5, -0.5])


def test_hinges_have_subgradient_zero_at_the_kink():
    assert slope(rso_hinge, [16.0], gamma=0.0625) == 0  # 1 - gamma h is exactly 0
    at_kink = pairs([1.0])  # delta - logp(chosen) + logp(rejected) is exactly 0
    gradient = jax.grad(lambda logp: slic(at_kink.replace(logp=logp), regularizer_weight=0.0).sum())(at_kink.logp)
    np.testing.assert_array_equal(gradient, [[0, 0]])


@pytest.mark.parametrize("loss", [dpo, cdpo, rdpo, ipo, rso_hinge])
def test_only_the_margin_matters(loss):
    r = pairs(MARGINS)
    shifted = r.replace(logp=r.logp - 37.0)
    np.testing.assert_allclose(loss(shifted), loss(r), rtol=1e-4, atol=1e-4)
    gradient = jax.grad(lambda logp: loss(r.replace(logp=logp)).sum())(r.logp)
    np.testing.assert_array_equal(gradient[:, 0], -gradient[:, 1])


def test_dpo_swap_is_antisymmetric_up_to_the_margin():
    r = pairs(MARGINS)
    np.testing.assert_allclose(dpo(r) - dpo(swapped(r)), -0.1 * MARGINS, rtol=1e-5, atol=1e-6)


def test_dpo_loss_below_the_reference_threshold_means_correct_ranking():
    """arXiv 2405.19534, theorem 4.1: logp(chosen) >= logp(rejected) iff loss <= -log sigmoid(beta c)."""
    rng = np.random.default_rng(3)
    lp, lr = -rng.uniform(5, 60, (200, 2)), -rng.uniform(5, 60, (200, 2))
    loss = dpo(Responses(logp=jnp.asarray(lp, jnp.float32), reference_logp=jnp.asarray(lr, jnp.float32)))
    threshold = softplus(-0.1 * (lr[:, 1] - lr[:, 0]))
    np.testing.assert_array_equal(loss <= threshold, lp[:, 0] >= lp[:, 1])


def test_tails_are_linear_not_saturated():
    """At |h| = 1e4 the losses keep their slopes (no log of an underflown sigmoid)."""
    np.testing.assert_allclose(dpo(pairs([-1e4, 1e4])), [1e3, 0], rtol=1e-6)
    np.testing.assert_allclose(slope(dpo, [-1e4, 1e4]), [-0.1, 0], rtol=1e-6)
    np.testing.assert_allclose(slope(cdpo, [-1e4, 1e4]), [-0.1 * 0.9, 0.1 * 0.1], rtol=1e-5)
    np.testing.assert_allclose(slope(rdpo, [-1e4, 1e4]), [-0.1 * 0.9 / 0.8, -0.1 * 0.1 / 0.8], rtol=1e-5)
