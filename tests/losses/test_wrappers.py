"""Wrappers of losses against float64 NumPy written from their papers, and the objectives that they are of one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prefjax as px
from prefjax.losses import objective
from prefjax.losses.wrappers import WRAPPERS, all_pairs, smooth
from tests.losses import paper_formulas
from tests.losses.zoo import at_reference, make_fields, to_responses


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def batch(K, **changes):
    return to_responses(make_fields(K) | changes, None, jnp.float64)


def value_and_gradient(text, r):
    total = lambda logp: ((losses := objective(text).loss(r.replace(logp=logp))).sum(), losses)
    (_, losses), slope = jax.value_and_grad(total, has_aux=True)(r.logp)
    return losses, slope


@pytest.mark.parametrize(
    "wrapped,plain",
    [
        ("smooth(dpo, rate=0.2)", "cdpo(label_smoothing=0.2)"),
        ("unflip(dpo(beta=0.3), rate=0.2)", "rdpo(beta=0.3, flip_rate=0.2)"),
        ("smooth(dpo, rate=0.0)", "dpo"),
        ("per_token(dpo(beta=5.0))", "dpo_norm(beta=5.0)"),
        ("all_pairs(dpo)", "dpo"),
        ("log_mean_exp(dpo, temperature=1e7)", None),
    ],
)
def test_a_wrapped_dpo_is_the_objective_of_that_name(wrapped, plain):
    r = batch(2)
    r = r.replace(target=jnp.array([[1.0, 0.0]] * 6))
    losses, slope = value_and_gradient(wrapped, r)
    if plain is None:  # the mean over the batch, for every prompt
        other, slopes = value_and_gradient("dpo", r)
        np.testing.assert_allclose(losses, [other.mean()] * 6, rtol=1e-6)
        np.testing.assert_allclose(slope, slopes, rtol=1e-6)
        return
    other, slopes = value_and_gradient(plain, r)
    np.testing.assert_allclose(losses, other, rtol=1e-14)
    np.testing.assert_allclose(slope, slopes, rtol=1e-13)


def test_smoothing_of_other_losses_is_that_of_the_paper():
    f = make_fields(2)
    swapped = {name: x[:, ::-1] if x.ndim > 1 else x for name, x in f.items()}
    for name in ("simpo", "wpo", "bt"):
        own = f | {"features": f["features"][..., :1]}, swapped | {"features": swapped["features"][..., :1]}
        one, other = (getattr(paper_formulas, name)(fields) for fields in own)
        got = objective(f"smooth({name}, rate=0.2)").loss(to_responses(own[0], None, jnp.float64))
        np.testing.assert_allclose(got, 0.8 * one + 0.2 * other, rtol=1e-10)


def test_all_pairs_of_a_ranking_and_ties():
    f = make_fields(4, B=3)
    f["target"][1, 2], f["target"][2] = f["target"][1, 0], 1.0
    valid = np.ones((3, 4), bool)
    valid[0, 1] = False
    a = f["logp"] - f["reference_logp"]
    expected = []
    for row in range(3):
        order = lambda i, j, row=row: valid[row, i] and valid[row, j] and f["target"][row, i] > f["target"][row, j]
        pairs = [np.log1p(np.exp(-0.1 * (a[row, i] - a[row, j]))) for i in range(4) for j in range(4) if order(i, j)]
        expected.append(np.mean(pairs) if pairs else 0)
    r, whole = to_responses(f, valid, jnp.float64), objective("all_pairs(dpo)")
    np.testing.assert_allclose(whole.loss(r), expected, rtol=1e-10)
    assert expected[2] == 0 and whole.requires.reads == "scores" and whole.requires.group_size is None
    start = to_responses(at_reference(f), valid, jnp.float64)
    for wherever in (start, r):
        np.testing.assert_allclose(whole.at_init(wherever), [np.log(2), np.log(2), 0], rtol=1e-12)


def picked(target, valid, pick, apart):
    """Pairs of one ranking, by their definition."""
    score = {i: target[i] for i in range(len(target)) if valid[i]}
    pairs = [(i, j) for i in score for j in score if score[i] > score[j] and score[i] - score[j] >= apart]
    if pick == "best":
        return [(i, j) for i, j in pairs if score[i] == max(score.values())]
    if pick == "adjacent":
        return [(i, j) for i, j in pairs if not any(score[i] > s > score[j] for s in score.values())]
    return pairs


PICKED = [
    ("dpo", "all", 0.0, "mean"),
    ("dpo", "all", 2.0, "sum"),
    ("dpo", "best", 1.5, "mean"),
    ("simpo", "best", 0.0, "sum"),
    ("wpo", "adjacent", 0.0, "mean"),
    ("bt", "adjacent", 2.0, "sum"),
]


def test_pairs_of_a_ranking_are_the_exploded_pairs():
    """Two indices into the responses of a group, or two copies: loss and gradient, weighed alike. Ties, and gaps."""
    f = make_fields(5, B=4)
    f["features"] = f["features"][..., :1]
    f["target"] = np.random.default_rng(0).integers(0, 4, (4, 5)).astype(float)
    f["target"][3] = 2.0
    valid = np.ones((4, 5), bool)
    valid[1, 2] = valid[2, 0] = False
    r = to_responses(f, valid, jnp.float64)

    def together(read):
        texts = (f"all_pairs({n}, pick={p!r}, apart={a}, reduce={t!r})" for n, p, a, t in PICKED)
        return jnp.stack([objective(text).loss(r.replace(**read)).sum() for text in texts])

    def exploded(read):
        totals = []
        for name, pick, apart, reduce in PICKED:
            pairs = [picked(f["target"][b], valid[b], pick, apart) for b in range(4)]
            counts = list(map(len, pairs))
            assert sum(counts) > 2 and counts[3] == 0
            rows, places = np.repeat(np.arange(4), counts), np.array(sum(pairs, []))
            fields = {k: x[rows[:, None], places] for k, x in (vars(r) | read).items() if x is not None and x.ndim > 1}
            losses = objective(name).loss(px.losses.Responses(**fields))
            totals.append(jnp.sum(losses / (np.repeat(counts, counts) if reduce == "mean" else 1)))
        return jnp.stack(totals)

    read = {"logp": r.logp, "features": r.features}
    value, slope = jax.jit(lambda x: (together(x), jax.jacrev(together)(x)))(read)
    expected, slopes = jax.jit(lambda x: (exploded(x), jax.jacrev(exploded)(x)))(read)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for name in read:
        np.testing.assert_allclose(slope[name], slopes[name], rtol=1e-9, atol=1e-14)
        assert np.abs(slope[name]).max() > 0.01


def test_robust_mean_over_the_batch():
    """Dr. DPO: -b log E exp(-L / b), and every prompt's gradient is weighed by exp(-L / b)."""
    valid = np.ones((6, 2), bool)
    valid[4] = False
    r = to_responses(make_fields(2), valid, jnp.float64)
    plain, slopes = value_and_gradient("dpo", r)
    weights = np.exp(-np.asarray(plain) / 0.5) * valid[:, 0]
    losses, slope = value_and_gradient("log_mean_exp(dpo, temperature=0.5)", r)
    total = -0.5 * np.log(weights.sum() / 5)
    np.testing.assert_allclose(losses, total * valid[:, 0], rtol=1e-10)
    np.testing.assert_allclose(slope / 5, weights[:, None] / weights.sum() * slopes, rtol=1e-9, atol=1e-15)
    none = value_and_gradient("log_mean_exp(dpo)", r.replace(valid=jnp.zeros((6, 2), bool)))
    assert all((x == 0).all() for x in none) and objective("log_mean_exp(dpo)").coupled


def test_clipped_tokens():
    f = make_fields(2)
    there = np.arange(f["token_logp"].shape[-1]) < f["length"][..., None]
    a = (np.clip(f["token_logp"] - f["token_reference_logp"], -0.4, 0.6) * there).sum(-1)
    whole = objective("clip_tokens(dpo(beta=1.0), low=0.4, high=0.6)")
    np.testing.assert_allclose(whole.loss(batch(2)), np.log1p(np.exp(-(a[:, 0] - a[:, 1]))), rtol=1e-10)
    assert whole.requires.single_tokens and whole.start is not None


def test_wrappers_in_sums_options_and_python():
    r = batch(2)
    whole = px.objective("0.5*smooth(simpo(beta=2.0), rate=0.2) + sft", smooth_simpo={"gamma": 0.3})
    simpo = smooth(px.objective("simpo", beta=2.0, gamma=0.3), rate=0.2)
    np.testing.assert_allclose(whole.loss(r), (0.5 * simpo + px.objective("sft")).loss(r), rtol=1e-14)
    assert list(whole.terms) == ["smooth_simpo", "sft"] and str(simpo).endswith(", rate=0.2)")
    assert px.objective("clip_tokens(aot)").coupled and not simpo.coupled
    assert simpo.start is None and objective("all_pairs(dpo)").start is not None
    assert objective(str(whole)).options == whole.options and whole.options["smooth_simpo"]["rate"] == 0.2
    nested = objective("log_mean_exp(smooth(dpo))", rate=0.3, temperature=2.0)
    assert nested.options == {"temperature": 2.0, "rate": 0.3, "beta": 0.1} and nested.key == "log_mean_exp_smooth_dpo"
    assert objective("all_pairs(dpo)").loss(batch(3)).shape == (6,) and all_pairs.name in WRAPPERS


@pytest.mark.parametrize(
    "text,message",
    [
        ("smooth(kto)", "smooth does not fit kto: it compares no pairs"),
        ("smooth(aot)", "its pairs depend on each other"),
        ("smooth(mmpo)", "smooth does not fit mmpo: target belongs to the label"),
        ("smooth(slic)", "auxiliary_logp belongs to the label"),
        ("all_pairs(margin_dpo)", "margin is of one pair, and a ranking has many"),
        ("per_token(simpo)", "it reads length, which would stay as it is"),
        ("per_token(kto)", "it reads baseline_logp"),
        ("clip_tokens(simpo)", "it reads no log-ratios"),
        ("smooth(smooth(dpo))", "both have the option 'rate'"),
        ("smooth(dpo, rate=0.5)", "out of range"),
        ("smooth(dpo, rat=0.1)", "takes no option 'rat'"),
        ("smooth(dpo + sft)", "write smooth"),
        ("smooth()", "write smooth"),
        ("smooth(dpo, rate=x)", "rate=x is no number"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(text, message):
    with pytest.raises(ValueError, match=message):
        objective(text)
    with pytest.raises(ValueError, match="wrap its terms"):
        smooth(objective("dpo + sft"))
