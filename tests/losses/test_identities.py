"""What one objective must equal of another: the identities that papers state or that follow from their formulas."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prefjax.losses as L
from prefjax.losses import Responses
from tests.losses import paper_formulas
from tests.losses.zoo import make_fields, to_responses

R = to_responses(make_fields(2, seed=3))
R3 = to_responses(make_fields(3, seed=3))
SCORED = R.replace(target=jnp.tile(jnp.array([[1.0, 0.0]]), (6, 1)))  # labels of pairs
GAP = (R.logp - R.reference_logp)[:, 0] - (R.logp - R.reference_logp)[:, 1]
UNIFORM = R.replace(reference_logp=jnp.zeros_like(R.logp))
EQUAL_LENGTHS = R.replace(length=jnp.full((6, 2), 4.0))
# A batch whose sums are those of its tokens, so that what looks at tokens can be compared with what looks at sums.
THERE = jnp.arange(R.token_logp.shape[-1])[None, None] < R.length[..., None]
SUMMED = R.replace(
    **{name: jnp.where(THERE, getattr(R, f"token_{name}"), 0).sum(-1) for name in ("logp", "reference_logp", "kl")}
)
ONES = SUMMED.replace(token_weight=jnp.ones_like(R.token_weight), token_segment=jnp.ones_like(R.token_segment))
SAME_LENGTH = SUMMED.replace(length=jnp.full((6, 2), 9.0))


def resummed(r):
    return r.replace(logp=r.token_logp.sum(-1), reference_logp=r.token_reference_logp.sum(-1))


def constant(r, **fields):
    return r.replace(**{name: jnp.full(6, value) for name, value in fields.items()})


def widened(r, *, alive):
    """A fourth response with the second score, ranked behind the one that has it; or one that does not count."""
    again = jax.tree.map(lambda x: jnp.concatenate([x, x[:, :1]], axis=1) if x.ndim > 1 else x, r)
    second = jnp.sort(r.target, axis=1)[:, 1:2]
    return again.replace(
        target=jnp.concatenate([r.target, second], axis=1),
        valid=jnp.tile(jnp.array([[True, True, True, alive]]), (6, 1)),
    )


IDENTITIES = {
    "soft_ce at p = 1 is dpo": lambda: (L.soft_ce(constant(R, target_probability=1.0)), L.dpo(R)),
    "soft_ce at p = 1 - e is cdpo": lambda: (L.soft_ce(constant(R, target_probability=0.9)), L.cdpo(R)),
    "mmpo is soft_ce with the Bradley-Terry probability": lambda: (
        L.mmpo(R, gamma=2.0),
        L.soft_ce(R.replace(target_probability=jax.nn.sigmoid(2.0 * (R.target[:, 0] - R.target[:, 1])))),
    ),
    "mmpo with a large gamma is dpo": lambda: (L.mmpo(SCORED, gamma=100.0), L.dpo(R)),
    "margin_dpo without a margin is dpo": lambda: (L.margin_dpo(constant(R, margin=0.0)), L.dpo(R)),
    "odpo with a score difference of 1 is dpo": lambda: (L.odpo(SCORED, beta=0.1), L.dpo(R)),
    "odpo is margin_dpo with log differences": lambda: (
        L.odpo(SCORED.replace(target=3 * SCORED.target), alpha=2.0),
        L.margin_dpo(constant(R, margin=2 * np.log(3.0)), beta=0.5),
    ),
    "backward KL is mmpo less an entropy": lambda: (
        L.reward_rpo(R, eta=2.0) - L.mmpo(R, gamma=2.0),
        L.reward_rpo(R.replace(logp=R.reference_logp), eta=2.0) - np.log(2),
    ),
    "rso_sigmoid is dpo": lambda: (L.rso_sigmoid(R, gamma=0.05), L.dpo(R, beta=0.05)),
    "rso_hinge_raw is rso_hinge with a uniform reference": lambda: (L.rso_hinge_raw(R), L.rso_hinge(UNIFORM)),
    "rso_hinge_raw is gamma times slic's hinge": lambda: (
        L.rso_hinge_raw(R, gamma=0.05),
        0.05 * L.slic(R.replace(auxiliary_logp=None), delta=20.0, regularizer_weight=0.0),
    ),
    "gpo's logistic member is dpo": lambda: (L.gpo(R, link="logistic"), L.dpo(R)),
    "gpo's hinge member is rso_hinge": lambda: (L.gpo(R, link="hinge"), L.rso_hinge(R, gamma=0.1)),
    "gpo's squared member is ipo": lambda: (L.gpo(R, beta=0.2, link="squared"), 4 * 0.1**2 * L.ipo(R, tau=0.1)),
    "dpo_norm on equal lengths is dpo": lambda: (L.dpo_norm(EQUAL_LENGTHS, beta=0.4), L.dpo(R, beta=0.1)),
    "r_dpo on equal lengths is dpo": lambda: (L.r_dpo(EQUAL_LENGTHS, alpha=0.5), L.dpo(R)),
    "r_dpo without alpha is dpo": lambda: (L.r_dpo(R, alpha=0.0), L.dpo(R)),
    "dpop is dpo where the chosen is above the reference": lambda: (
        L.dpop(R.replace(reference_logp=R.logp - 3.0), beta=0.1),
        L.dpo(R.replace(reference_logp=R.logp - 3.0)),
    ),
    "hypo is dpo where the reference ranks rightly": lambda: (
        L.hypo(R.replace(reference_logp=-jnp.sort(-R.reference_logp))),
        L.dpo(R.replace(reference_logp=-jnp.sort(-R.reference_logp))),
    ),
    "hypo ignores a reference that ranks wrongly": lambda: (
        L.hypo(R.replace(reference_logp=jnp.sort(R.reference_logp))),
        L.dpo(UNIFORM),
    ),
    "wpo on text the policy would sample is dpo": lambda: (L.wpo(R.replace(log_sum_p2=R.logp), beta=0.1), L.dpo(R)),
    "rpo_nll without the likelihood is dpo": lambda: (L.rpo_nll(R, alpha=0.0), L.dpo(R)),
    "rpo_nll is dpo plus sft on the chosen": lambda: (
        L.rpo_nll(R, alpha=0.2) - L.dpo(R),
        0.2 * L.sft(R.replace(valid=jnp.tile(jnp.array([[True, False]]), (6, 1)))),
    ),
    "rationale_dpo without gamma is dpo": lambda: (L.rationale_dpo(R, gamma=0.0), L.dpo(R)),
    "tdpo1 where the KLs are equal is dpo": lambda: (L.tdpo1(R.replace(kl=jnp.full((6, 2), 3.0))), L.dpo(R)),
    "tdpo2 without alpha is dpo": lambda: (L.tdpo2(R, alpha=0.0), L.dpo(R)),
    "tdpo2 at alpha = 1 has the value of tdpo1": lambda: (L.tdpo2(R, alpha=1.0), L.tdpo1(R)),
    "ld_dpo at alpha = 1 is dpo": lambda: (L.ld_dpo(SUMMED, alpha=1.0), L.dpo(SUMMED)),
    "ld_dpo on equal lengths is dpo": lambda: (L.ld_dpo(SAME_LENGTH, alpha=0.3), L.dpo(resummed(SAME_LENGTH))),
    "sampo on equal lengths is dpo": lambda: (L.sampo(SAME_LENGTH), L.dpo(resummed(SAME_LENGTH))),
    "sampo that draws the first tokens is ld_dpo without a tail": lambda: (
        L.sampo(SUMMED.replace(token_draw=jnp.broadcast_to(jnp.linspace(0, 0.9, 9)[None, None], R.token_draw.shape))),
        L.ld_dpo(SUMMED, alpha=0.0),
    ),
    "target_dpo whose errors are everywhere is dpo": lambda: (L.target_dpo(ONES), L.dpo(SUMMED)),
    "target_dpo without errors learns the chosen alone": lambda: (
        L.target_dpo(SUMMED.replace(token_weight=jnp.zeros_like(R.token_weight))),
        -jax.nn.log_sigmoid(0.1 * (SUMMED.logp - SUMMED.reference_logp)[:, 0]),
    ),
    "sparsepo with all tokens is tdpo1": lambda: (L.sparsepo(ONES), L.tdpo1(SUMMED)),
    "two_d_dpo on one segment of weight 1 is dpo": lambda: (L.two_d_dpo(ONES), L.dpo(SUMMED)),
    "two_d_dpo on one segment of weight 2 is dpo with twice the beta": lambda: (
        L.two_d_dpo(ONES.replace(token_weight=2 * ONES.token_weight)),
        L.dpo(SUMMED, beta=0.2),
    ),
    "fdpo under the reverse KL is dpo": lambda: (L.fdpo(R, alpha=0.0), L.dpo(R)),
    "fdpo tends to dpo": lambda: (L.fdpo(R, alpha=1e-5), L.dpo(R)),
    "alphapo without a shape is simpo": lambda: (
        L.alphapo(R, alpha=0.0),
        L.simpo(R, beta=2.5, gamma=0.1),
    ),
    "cpo without likelihood is dpo with a uniform reference": lambda: (L.cpo(R, alpha=0.0), L.dpo(UNIFORM)),
    "simpo without a margin is dpo_norm with a uniform reference": lambda: (
        L.simpo(R, gamma=0.0),
        L.dpo_norm(UNIFORM, beta=2.0),
    ),
    "apo_zero is twice apo_zero_unpaired": lambda: (L.apo_zero(R), 2 * L.apo_zero_unpaired(SCORED)),
    "bco_pair is twice ulma_binary": lambda: (L.bco_pair(R), 2 * L.ulma_binary(SCORED)),
    "kto with z0 = 0 is apo_zero_unpaired": lambda: (
        L.kto(SCORED.replace(baseline_logp=SCORED.baseline_reference_logp)),
        L.apo_zero_unpaired(SCORED),
    ),
    "nca_pair is bco_pair plus a difference": lambda: (
        L.nca_pair(R) - L.bco_pair(R),
        0.5 * (jax.nn.softplus(0.1 * (R.logp - R.reference_logp)) @ jnp.array([1.0, -1.0])),
    ),
    "cal_dpo's calibration is sppo on labels": lambda: (
        L.cal_dpo(R, beta=0.1) - L.dpo(R, beta=1.0),
        0.5 * L.sppo(SCORED, beta=0.1),
    ),
    "gpo_score is half sppo with scores for P - 1/2": lambda: (
        2 * L.gpo_score(R.replace(target=R.target - 0.5), beta=0.1),
        L.sppo(R, beta=0.1),
    ),
    "aot on one pair is dpo": lambda: (L.aot(jax.tree.map(lambda x: x[:1], R), beta=0.1), L.dpo(R)[:1]),
    "pl_dpo on two is dpo": lambda: (L.pl_dpo(SCORED), L.dpo(R)),
    "infonca on two with all reward on one is dpo": lambda: (
        L.infonca(SCORED, beta=0.1, reward_temperature=0.01),
        L.dpo(R),
    ),
    "nca on two with all reward on one is nca_pair": lambda: (
        L.nca(SCORED, beta=0.1, reward_temperature=0.01),
        L.nca_pair(R),
    ),
    "exo_rw on two with log-odds for rewards is exo_pair": lambda: (
        L.exo_rw(SCORED.replace(target=SCORED.target * np.log(999.0)), beta=0.1, reward_temperature=1.0),
        L.exo_pair(R),
    ),
    "tpo_l is simpo on the second and the worst, with likelihood of the best": lambda: (
        L.tpo_l(R3.replace(target=jnp.tile(jnp.array([[0.0, 2.0, 1.0]]), (6, 1))), alpha=0.3),
        L.simpo(jax.tree.map(lambda x: x[:, [2, 0]] if x.ndim > 1 else x, R3), gamma=1.6)
        + 0.3 * L.sft(R3.replace(valid=jnp.tile(jnp.array([[False, True, False]]), (6, 1)))),
    ),
    "tpo of three is tpo of four with a dead slot, and of four with one between": lambda: (
        jnp.concatenate([L.tpo(R3), L.tpo(R3)]),
        jnp.concatenate([L.tpo(widened(R3, alive=False)), L.tpo(widened(R3, alive=True))]),
    ),
    "slic_list on two is slic": lambda: (L.slic_list(SCORED), L.slic(R)),
    "slic_list's regulariser falls back on the best": lambda: (
        L.slic_list(SCORED.replace(auxiliary_logp=None)),
        L.slic(R.replace(auxiliary_logp=None)),
    ),
    "dpo_rw less the entropy is zero at the optimum": lambda: (
        L.dpo_rw(
            R3.replace(logp=R3.reference_logp + 3 + R3.target, target=R3.target), beta=1.0, reward_temperature=1.0
        ),
        -(jax.nn.softmax(R3.target) * jax.nn.log_softmax(R3.target)).sum(-1),
    ),
}


@pytest.mark.parametrize("identity", IDENTITIES)
def test_identity(identity):
    left, right = IDENTITIES[identity]()
    np.testing.assert_allclose(left, right, rtol=2e-4, atol=2e-5)


def test_lipo_on_two_is_dpo_times_a_constant_per_prompt():
    weight = L.lipo_lambda(R) / L.dpo(R, beta=0.05)
    gain = jnp.abs(2 ** R.target[:, 0] - 2 ** R.target[:, 1])
    better = jnp.where(R.target[:, 0] > R.target[:, 1], 1, 0)
    expected = gain * (1 / np.log(2) - 1 / np.log(3))
    np.testing.assert_allclose(weight[better == 1], expected[better == 1], rtol=1e-4)


def test_bco_and_bco_pair_bound_dpo_from_above_for_every_shift():
    for shift in (-3.0, 0.0, 2.0):
        shifted = SCORED.replace(logp=SCORED.logp - shift / 0.1)
        assert (L.bco_pair(shifted) >= L.dpo(R) - 1e-5).all()
    assert (2 * L.bco(SCORED, beta=0.1) >= L.dpo(R) - 1e-5).all()


def test_bco_does_not_see_a_common_shift_and_passes_no_gradient_through_its_own():
    shifted = SCORED.replace(logp=SCORED.logp + 11.0)
    np.testing.assert_allclose(L.bco(shifted), L.bco(SCORED), rtol=1e-4)
    gradient = jax.grad(lambda logp: L.bco(SCORED.replace(logp=logp)).sum())(SCORED.logp)
    assert (gradient[:, 0] < 0).all() and (gradient[:, 1] > 0).all()


def test_sorted_objectives_ignore_how_the_reference_side_is_ordered():
    order = jnp.array([3, 1, 5, 0, 2, 4])
    shuffled = R.replace(reference_logp=R.reference_logp[order])
    np.testing.assert_allclose(L.aot(shuffled), L.aot(R), rtol=1e-5)
    rejected = lambda x: jnp.stack([x[:, 0], x[order, 1]], 1)
    other = R.replace(logp=rejected(R.logp), reference_logp=rejected(R.reference_logp))
    np.testing.assert_allclose(L.aot_unpaired(other), L.aot_unpaired(R), rtol=1e-5)


def pairs_with(a_w, a_l):
    return Responses(
        logp=jnp.stack([jnp.asarray(a_w, float), jnp.asarray(a_l, float)], -1), reference_logp=jnp.zeros((len(a_w), 2))
    )


@pytest.mark.parametrize(
    ("loss", "best"),
    [
        (L.exo_pair, np.log(999) / 0.1),
        (lambda r: L.soft_ce(constant(r, target_probability=0.8), beta=0.1), np.log(4) / 0.1),
        (lambda r: L.reward_rpo(r.replace(target=jnp.tile(jnp.array([[2.0, 0.5]]), (6, 1)))), 1.5 / 0.1),
        (lambda r: L.mmpo(r.replace(target=jnp.tile(jnp.array([[2.0, 0.5]]), (6, 1)))), 1.5 / 0.1),
    ],
)
def test_minimal_at_the_margin_the_paper_states(loss, best):
    h = best + jnp.array([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0])
    slopes = jax.grad(lambda h: loss(pairs_with(h / 2, -h / 2)).sum())(h)
    assert (slopes[:3] < 0).all() and (slopes[3:] > 0).all()


def test_nca_pair_rests_at_a_chosen_reward_of_log_2():
    slope = jax.grad(lambda a: L.nca_pair(pairs_with(a, jnp.zeros(3)), beta=0.1).sum())(
        np.log(2) / 0.1 + jnp.arange(-1.0, 2)
    )
    assert slope[0] < 0 < slope[2] and abs(slope[1]) < 1e-7


def test_kto_pair_estimates_how_far_each_half_is_from_the_other_one():
    """Both estimates above 0, where they count, and with the gradient that flows through them."""
    a = np.array([[2.0, 3.0], [5.0, -1.0]])  # means 3.5 and 1
    oracle = lambda a: paper_formulas.kto_pair(dict(logp=a, reference_logp=np.zeros((2, 2))), beta=0.5)
    loss = lambda a: L.kto_pair(pairs_with(a[:, 0], a[:, 1]), beta=0.5)
    np.testing.assert_allclose(loss(a), oracle(a), rtol=1e-5)
    steps = 1e-6 * np.eye(4).reshape(4, 2, 2)
    slopes = [(oracle(a + step) - oracle(a - step)).sum() / 2e-6 for step in steps]
    np.testing.assert_allclose(jax.grad(lambda a: loss(a).sum())(jnp.asarray(a)).ravel(), slopes, rtol=1e-3, atol=1e-5)


def test_first_steps_from_the_reference():
    """d loss / d (logp_w, logp_l) at policy == reference with beta = 0.1."""
    start = pairs_with([0.0], [0.0])

    def step(loss, **options):
        return jax.grad(lambda logp: loss(start.replace(logp=logp), **options).sum())(start.logp)[0]

    np.testing.assert_allclose(step(L.apo_zero), [-0.025, 0.025], rtol=1e-5)
    np.testing.assert_allclose(step(L.apo_down), [0.0, 0.025], atol=1e-8)
    np.testing.assert_allclose(step(L.bco_pair), [-0.05, 0.05], rtol=1e-5)
    np.testing.assert_allclose(step(L.nca_pair), [-0.025, 0.025], rtol=1e-5)
    np.testing.assert_allclose(step(L.exo_pair), np.array([-1, 1]) * 0.025 * np.log(999), rtol=1e-5)
    np.testing.assert_allclose(step(L.fdpo), [-0.05, 0.05], rtol=1e-5)
    np.testing.assert_allclose(step(L.fdpo_js), [-0.025, 0.025], rtol=1e-5)
    np.testing.assert_allclose(step(L.dpop, beta=0.1), [-0.05, 0.05], rtol=1e-5)  # 51 times that with torch.clamp
    wrong_way = step(L.discopop)
    np.testing.assert_allclose(wrong_way, np.array([1, -1]) * 0.05 * ((1 - np.log(2)) / 0.2 - 0.75), rtol=1e-4)
    assert wrong_way[0] > 0


def test_wpo_passes_no_gradient_through_its_weights_and_caps_them():
    gradient = jax.grad(lambda x: L.wpo(R.replace(log_sum_p2=x)).sum())(R.log_sum_p2)
    np.testing.assert_array_equal(gradient, np.zeros((6, 2)))
    np.testing.assert_allclose(L.wpo(R.replace(log_sum_p2=R.logp - 100.0), beta=0.1), L.dpo(R), rtol=1e-5)


def test_tdpo2_learns_from_the_rejected_kl_alone_and_tdpo1_from_both():
    """Against the gradient of the margin: 1 per nat of h."""
    for loss, expected in ((L.tdpo1, [1.0, -1.0]), (L.tdpo2, [0.0, -0.5])):
        by_kl = jax.grad(lambda kl, loss=loss: loss(R.replace(kl=kl)).sum())(R.kl)
        by_h = jax.grad(lambda logp, loss=loss: loss(R.replace(logp=logp)).sum())(R.logp)[:, :1]
        np.testing.assert_allclose(by_kl / by_h, np.tile(expected, (6, 1)), rtol=1e-5, atol=1e-7)


def test_two_d_dpo_by_hand():
    """The best of two chosen segments against the worst of three rejected ones, then the other against the next."""
    r = Responses(
        logp=jnp.zeros((1, 2)),
        length=jnp.array([[4.0, 3.0]]),
        token_logp=jnp.array([[[1.0, 2.0, 4.0, 8.0], [1.0, 3.0, 9.0, 100.0]]]),
        token_reference_logp=jnp.zeros((1, 2, 4)),
        token_segment=jnp.array([[[1.0, 1.0, 0.0, 2.0], [1.0, 2.0, 3.0, 4.0]]]),
        token_weight=jnp.array([[[2.0, 2.0, 50.0, 3.0], [1.0, 0.5, 4.0, 0.0]]]),
    )
    expected = np.log1p(np.exp(-(3 * 8 - 0.5 * 3))) + np.log1p(np.exp(-(2 * 3 - 1 * 1)))
    np.testing.assert_allclose(L.two_d_dpo(r, beta=1.0), [expected], rtol=1e-6)


def test_plackett_luce_breaks_ties_by_slot_and_lipo_ignores_them():
    tied = R3.replace(target=jnp.zeros_like(R3.target))
    np.testing.assert_allclose(
        L.pl_dpo(tied), L.pl_dpo(R3.replace(target=jnp.tile(jnp.array([[3.0, 2.0, 1.0]]), (6, 1))))
    )
    np.testing.assert_array_equal(L.lipo_lambda(tied), np.zeros(6))


@pytest.mark.parametrize(
    ("loss", "options"),
    [(L.gpo, dict(link="savage")), (L.reward_rpo, dict(distance="js")), (L.exo_pair, dict(label_smoothing=0.0))],
)
def test_impossible_options_are_refused(loss, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}"):
        inspect.unwrap(loss)(R, **options)  # past the annotation checker of the tests, as in production
