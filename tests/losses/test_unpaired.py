"""Single responses: KTO, DRO-V, DRO-P and SFT against float64 NumPy, and the identities the papers state."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.losses import Responses, dro, dro_p, ipo, kto, orpo, pmpo, sft

B = 8


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def make(K, seed=0, **replaced):
    """A batch as float64 NumPy fields; KTO's baselines are above the reference, so z0 > 0."""
    rng = np.random.default_rng(seed)
    fields = dict(
        logp=-rng.uniform(5, 40, (B, K)),
        reference_logp=-rng.uniform(5, 40, (B, K)),
        target=rng.integers(0, 2, (B, K)).astype(float),
        value=rng.normal(size=B),
        baseline_reference_logp=-rng.uniform(5, 40, B),
    )
    fields["baseline_logp"] = fields["baseline_reference_logp"] + rng.uniform(-2, 6, B)
    return fields | replaced


def responses(fields):
    return Responses(**{name: jnp.asarray(x, None if x.dtype == bool else jnp.float32) for name, x in fields.items()})


def gradient(loss, fields, name, **options):
    """Gradient of the summed loss with respect to one field."""
    r = responses(fields)
    return jax.jit(jax.grad(lambda x: loss(r.replace(**{name: x}), **options).sum()))(getattr(r, name))


def kto_64(f, z0, beta, desirable_weight, undesirable_weight):
    a = f["logp"] - f["reference_logp"]
    desirable = desirable_weight * (1 - sigmoid(beta * (a - z0)))
    undesirable = undesirable_weight * (1 - sigmoid(beta * (z0 - a)))
    return np.where(f["target"] == 1, desirable, undesirable).mean(-1)


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("options", [(0.1, 1.0, 1.0), (0.3, 1.2, 0.7)])
def test_kto_value_and_gradient(K, options):
    named = dict(zip(("beta", "desirable_weight", "undesirable_weight"), options, strict=True))
    f = make(K)
    z0 = max(0, (f["baseline_logp"] - f["baseline_reference_logp"]).mean())
    assert z0 > 0.5
    np.testing.assert_allclose(jax.jit(lambda r: kto(r, **named))(responses(f)), kto_64(f, z0, *options), rtol=1e-4)
    s = sigmoid(named["beta"] * (f["logp"] - f["reference_logp"] - z0))
    weights = np.where(f["target"] == 1, -named["desirable_weight"], named["undesirable_weight"])
    expected = named["beta"] * weights * s * (1 - s) / K
    np.testing.assert_allclose(gradient(kto, f, "logp", **named), expected, rtol=1e-3, atol=1e-6)


def test_kto_shift_of_policy_and_z0_together_changes_nothing():
    f = make(1)
    shifted = f | {"logp": f["logp"] + 7.0, "baseline_logp": f["baseline_logp"] + 7.0}
    np.testing.assert_allclose(kto(responses(shifted)), kto(responses(f)), rtol=1e-4)


def test_kto_z0_passes_no_gradient():
    for name in ("baseline_logp", "baseline_reference_logp"):
        np.testing.assert_array_equal(gradient(kto, make(2), name), np.zeros(B))


def test_kto_z0_is_clamped_and_taken_over_valid_prompts_only():
    f = make(1)
    below = f | {"baseline_logp": f["baseline_reference_logp"] - 3.0}
    np.testing.assert_allclose(kto(responses(below)), kto_64(f, 0.0, 0.1, 1, 1), rtol=1e-4)
    valid = np.arange(B)[:, None] < 5
    far = f | {"valid": valid, "baseline_logp": np.where(valid[:, 0], f["baseline_logp"], 1e6)}
    z0 = max(0, (f["baseline_logp"] - f["baseline_reference_logp"])[:5].mean())
    np.testing.assert_allclose(kto(responses(far))[:5], kto_64(f, z0, 0.1, 1, 1)[:5], rtol=1e-4)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_kto_on_a_batch_of_one_class(label):
    f = make(1, target=np.full((B, 1), label))
    z0 = (f["baseline_logp"] - f["baseline_reference_logp"]).mean()
    a = (f["logp"] - f["reference_logp"])[:, 0]
    np.testing.assert_allclose(kto(responses(f)), sigmoid(0.1 * (z0 - a) * (1 if label else -1)), rtol=1e-4)
    assert (np.sign(gradient(kto, f, "logp")) == (-1 if label else 1)).all()


def test_kto_is_linear_in_its_class_weights():
    f = make(1)
    plain, heavy = kto(responses(f)), kto(responses(f), desirable_weight=3.0, undesirable_weight=0.5)
    np.testing.assert_allclose(heavy, plain * np.where(f["target"][:, 0] == 1, 3.0, 0.5), rtol=1e-6)


def test_kto_with_z0_zero_is_apo_zero():
    """A pair as two labelled responses is 1/2 of the APO-zero pair loss, 1 - sigmoid(beta a_w) + sigmoid(beta a_l)."""
    f = make(2, target=np.tile([1.0, 0.0], (B, 1)))
    f |= {"baseline_logp": f["baseline_reference_logp"]}
    a = f["logp"] - f["reference_logp"]
    pair_sum = 1 - sigmoid(0.1 * a[:, 0]) + sigmoid(0.1 * a[:, 1])
    np.testing.assert_allclose(kto(responses(f)), pair_sum / 2, rtol=1e-4)


def test_kto_ignores_the_extremes():
    f = make(1, logp=np.linspace(-400, 400, B)[:, None], reference_logp=np.zeros((B, 1)))
    push = np.abs(gradient(kto, f, "logp"))[:, 0]
    assert push[0] < 1e-6 and push[-1] < 1e-6 and push.max() > 1e-4


def dro_gap(f, tau):
    """reward - V - tau a, the quantity DRO squares."""
    return f["target"] - f["value"][:, None] - tau * (f["logp"] - f["reference_logp"])


@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("K", [1, 3])
def test_dro_returns_the_joint_loss_with_the_two_steps_of_the_paper(K, tau):
    f = make(K, target=np.random.default_rng(5).normal(size=(B, K)))
    gap = dro_gap(f, tau)
    np.testing.assert_allclose(jax.jit(lambda r: dro(r, tau=tau))(responses(f)), (gap**2 / 2).mean(-1), rtol=1e-4)
    joint_policy, joint_value = -tau * gap / K, -gap.mean(-1)
    np.testing.assert_allclose(gradient(dro, f, "logp", tau=tau), joint_policy / tau, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(gradient(dro, f, "value", tau=tau), joint_value, rtol=1e-3, atol=1e-5)


def test_dro_is_zero_with_zero_gradients_where_the_value_explains_the_reward():
    tau, f = 0.5, make(1)
    f |= {"value": (f["target"] - tau * (f["logp"] - f["reference_logp"]))[:, 0]}
    np.testing.assert_allclose(dro(responses(f), tau=tau), 0, atol=1e-9)
    for name in ("logp", "value"):
        np.testing.assert_allclose(gradient(dro, f, name, tau=tau), 0, atol=1e-5)


@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
def test_the_half_of_dros_algorithm_moves_off_the_minimum(tau):
    """At V = reward - tau a equation 4 is 0. Its policy step with tau / 2 rests there; with 1/2 at tau = 1 alone."""
    a, f = 3.0, make(1)
    f |= {"logp": f["reference_logp"] + a, "value": f["target"][:, 0] - tau * a}
    step = lambda half: gradient(
        lambda r: -(r.logp * tau * a - half * (r.logp - r.reference_logp) ** 2)[:, 0], f, "logp"
    )
    np.testing.assert_allclose(gradient(dro, f, "logp", tau=tau), step(tau / 2), atol=1e-4)
    np.testing.assert_allclose(step(tau / 2), 0, atol=1e-5)
    np.testing.assert_allclose(step(0.5), (1 - tau) * a, atol=1e-5)


def test_dro_value_is_read_off_exactly_for_very_unlikely_responses():
    """The surrogate is about 1e5 here; its value must cancel exactly, not to float32 rounding of 1e5."""
    f = make(1, logp=np.full((B, 1), -1e5), reference_logp=np.full((B, 1), -1e5))
    np.testing.assert_allclose(dro(responses(f)), dro_gap(f, 1.0)[:, 0] ** 2 / 2, rtol=1e-5)


@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("K", [1, 3])
def test_dro_p_is_half_the_batch_variance(K, tau):
    f = make(K)
    e = f["target"] - tau * (f["logp"] - f["reference_logp"])
    losses = dro_p(responses(f), tau=tau)
    np.testing.assert_allclose(losses, ((e - e.mean()) ** 2 / 2).mean(-1), rtol=1e-4)
    np.testing.assert_allclose(losses.mean(), e.var() / 2, rtol=1e-4)


@pytest.mark.parametrize("K", [1, 3])
def test_dro_p_is_dro_with_the_batch_mean_for_value(K):
    """Also where prompts have different numbers of valid responses; the gradient through the mean cancels."""
    tau = 0.5
    valid = np.ones((B, K), bool)
    valid[3] = False
    valid[5, 1:] = False
    f = make(K, valid=valid)
    e = f["target"] - tau * (f["logp"] - f["reference_logp"])
    prompt_means = [row[alive].mean() for row, alive in zip(e, valid, strict=True) if alive.any()]
    with_mean = f | {"value": np.full(B, np.mean(prompt_means))}
    np.testing.assert_allclose(dro_p(responses(f), tau=tau), dro(responses(with_mean), tau=tau), rtol=1e-4)
    np.testing.assert_allclose(
        gradient(dro_p, f, "logp", tau=tau), tau * gradient(dro, with_mean, "logp", tau=tau), rtol=1e-3, atol=1e-5
    )


def test_dro_p_on_one_labelled_pair_is_ipo_up_to_scale():
    tau = 0.4
    one = {name: x[:1] for name, x in make(2, target=np.tile([1.0, 0.0], (B, 1))).items()}
    np.testing.assert_allclose(dro_p(responses(one), tau=tau), tau**2 / 8 * ipo(responses(one), tau=tau / 2), rtol=1e-4)


def test_sft_per_token_and_per_response():
    f = dict(logp=np.array([[-12.0, -3.0], [-5.0, -7.0]]), length=np.array([[6.0, 2.0], [5.0, 1.0]]))
    f["valid"] = np.array([[True, True], [True, False]])
    np.testing.assert_allclose(sft(responses(f)), [(2 + 1.5) / 2, 1.0])
    np.testing.assert_allclose(sft(responses(f), normalize="none"), [(12 + 3) / 2, 5.0])
    np.testing.assert_allclose(gradient(sft, f, "logp"), [[-1 / 12, -1 / 4], [-1 / 5, 0]], rtol=1e-6)
    sft(responses(f).replace(length=None), normalize="none")
    with pytest.raises(ValueError, match="normalize.*'tokens'"):
        # Past the annotation checker of the tests, as in production.
        inspect.unwrap(sft)(responses(f), normalize="tokens")


def test_pmpo_weighs_both_kinds_alike_however_frequent():
    """Equation 10 on single responses, one of eight desirable: the gradient of each is that of its kind's mean."""
    f = make(1, target=np.array([[1.0]] + [[0.0]] * 7), kl=np.full((B, 1), 3.0))
    expected = -0.25 * f["logp"][0, 0] + 0.75 * f["logp"][1:].mean() + 0.5 * 3
    np.testing.assert_allclose(pmpo(responses(f), alpha=0.25, beta=0.5).mean(), expected, rtol=1e-6)
    slopes = gradient(pmpo, f, "logp", alpha=0.25) / B
    np.testing.assert_allclose(slopes[:, 0], [-0.25] + [0.75 / 7] * 7, rtol=1e-6)
    np.testing.assert_allclose(pmpo(responses(f | {"target": np.ones((B, 1))})), 1.5 - 0.5 * f["logp"][:, 0], rtol=1e-6)


@pytest.mark.parametrize("mean", [-0.7, -1e-3, -2e-6, -1e-6, -1e-8, 0.0])
def test_orpo_near_certainty(mean):
    """Mean token log-probs up to 0, where the odds are infinite: those above -1e-6 count as that, with no slope."""
    logp, length = np.array([[3 * mean, -6.0]]), np.full((1, 2), 3.0)
    held = np.array([min(mean, -1e-6), -2.0])
    odds = held - np.log(-np.expm1(held))
    f = dict(logp=logp, length=length)
    expected = -mean + 0.1 * np.log1p(np.exp(odds[1] - odds[0]))
    np.testing.assert_allclose(orpo(responses(f)), [expected], rtol=1e-4, atol=1e-7)
    miss = 0.1 / (1 + np.exp(odds[0] - odds[1])) / 3
    slope = gradient(orpo, f, "logp")
    per_odds = -1 / np.expm1(held)  # d log odds / d mean
    np.testing.assert_allclose(slope[0, 1], miss * per_odds[1], rtol=1e-3, atol=1e-9)
    if mean < -1e-6:
        np.testing.assert_allclose(slope[0, 0], -1 / 3 - miss * per_odds[0], rtol=1e-3)
    elif mean > -1e-6:
        np.testing.assert_allclose(slope[0, 0], -1 / 3, rtol=1e-6)
