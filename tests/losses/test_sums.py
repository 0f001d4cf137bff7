"""Weighted sums of objectives: the sum of their terms in everything, or refused with the term and the reason."""

import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prefjax as px
from prefjax.losses import COMPOSITIONS, OBJECTIVES, Sum, for_pairs, objective
from prefjax.losses.sums import Extreme, maximum, minimum
from tests.losses.zoo import at_reference, make_fields, to_responses

MPO = COMPOSITIONS["mpo"].text


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def batch(K, **changes):
    """A batch in which a prompt has no valid response, and one lacks its last."""
    valid = np.ones((6, K), bool)
    valid[1], valid[4, -1] = False, False
    return to_responses(make_fields(K) | changes, valid, jnp.float64)


def best_only(r):
    """The same batch with no response but the one worth imitating, written out for K = 2 and rankings."""
    k = r.shape[1]
    best = [0] * len(r.logp) if k == 2 else np.argmax(np.where(r.valid, r.target, -np.inf), axis=-1)
    return r.replace(valid=r.valid & (np.arange(k) == np.array(best)[:, None]))


def value_and_gradient(loss, r):
    """Per-prompt losses, and the gradient of their weighted sum by the log-probs."""
    weights = jnp.arange(1.0, len(r.logp) + 1)
    total = lambda logp: ((losses := loss(r.replace(logp=logp))) @ weights, losses)
    (_, losses), gradient = jax.value_and_grad(total, has_aux=True)(r.logp)
    return losses, gradient


@pytest.mark.parametrize(
    "text,K",
    [(MPO, 2), ("0.5*dro_p + 0.3*pl_dpo(beta=0.3) + 1.0*sft", 3), ("1.0*bco + 0.5*dpo", 2)],
)
def test_a_sum_is_the_sum_of_its_terms(text, K):
    """Losses, gradients and start value; prompts count that count for all terms, for coupled terms too."""
    whole, r = objective(text), batch(K)
    if "bco" in whole.terms:
        r = r.replace(target=(r.target > 1).astype(r.logp.dtype))
    elif K > 2:  # below the 0 that stands in an invalid slot
        r = r.replace(target=r.target - 3)
    counts = whole.valid_prompts(r)
    assert counts.tolist() == [True, False, True, True, K > 2, True]
    seen = r.masked(whole_groups=K == 2, min_responses=2)
    start = to_responses(at_reference({f: np.asarray(getattr(r, f)) for f in make_fields(K)}), r.valid, jnp.float64)
    best = best_only(seen)

    @jax.jit
    def both(r, seen, best, start):
        expected, gradient, starting = jnp.zeros(6), jnp.zeros((6, K)), jnp.zeros(6)
        for weight, term in whole.terms.values():
            own = best if term.name == "sft" else seen
            losses, slope = value_and_gradient(term.loss, own)
            expected, gradient = expected + weight * losses, gradient + weight * slope
            starting += weight * (losses if term.start is None else term.at_init(own))
        starts = whole.at_init(start), whole.loss(start), whole.at_init(r), starting
        return expected, gradient, *value_and_gradient(whole.loss, r), whole.parts(r), *starts

    expected, gradient, got, got_gradient, parts, at_init, loss_at_reference, *closed = both(r, seen, best, start)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(got_gradient, gradient, rtol=1e-12, atol=1e-15)
    assert (got[~counts] == 0).all() and (got[counts] != 0).all()
    np.testing.assert_allclose(sum(whole.terms[key].weight * part for key, part in parts.items()), got, rtol=1e-12)
    np.testing.assert_allclose(at_init, loss_at_reference, rtol=1e-12)
    np.testing.assert_allclose(*closed, rtol=1e-12)  # in closed form wherever the policy is
    assert whole.coupled == bool({"dro_p", "bco"} & set(whole.terms)) and whole.start is not None


def test_text_options_and_objects_say_the_same():
    r, dpo = batch(2), objective("dpo")
    text = objective("0.8*dpo(beta=2.0) + bco_pair*0.2 + sft")
    objects = 0.8 * objective("dpo", beta=2) + 0.2 * objective("bco_pair") + objective("sft")
    named = px.objective("mpo", dpo={"beta": 2.0})
    for other in (objects, named, objective(str(text)), objective(MPO, **{"dpo.beta": 2})):
        assert str(other) == str(text) == "0.8*dpo(beta=2.0) + 0.2*bco_pair + 1.0*sft"
        np.testing.assert_array_equal(other.loss(r), text.loss(r))
    assert text.options["dpo"] == {"beta": 2.0} and text.options["sft"] == {"normalize": "length"}
    np.testing.assert_array_equal(text.loss(r, dpo={"beta": 0.1}), objective(MPO).loss(r))
    twice = 2 * (dpo + objective("dpo", beta=1.0)) + -1 * dpo
    assert list(twice.terms) == ["dpo", "dpo_2", "dpo_3"] and [term.weight for term in twice.terms.values()] == [
        2,
        2,
        -1,
    ]
    np.testing.assert_allclose(twice.loss(r), dpo.loss(r) + 2 * dpo.loss(r, beta=1.0), rtol=1e-12)
    away = objective("sft + -0.5*dpo")
    assert [term.weight for term in away.terms.values()] == [1.0, -0.5]
    assert str(objective(str(away))) == str(away)
    alone = objective("dpo(beta=2.0)")
    assert not isinstance(alone, Sum) and alone.options == {"beta": 2.0} and alone.parts(r) == {}


@pytest.mark.parametrize("pick,extreme", [("max", np.maximum), ("min", np.minimum)])
def test_the_least_and_the_greatest_of_some_losses(pick, extreme):
    """Per prompt, gradients included; a number among them; alone, in a sum and as objects."""
    r = batch(2)
    counts = np.array([True, False, True, True, False, True])
    texts = ("dpo(beta=0.3)", "simpo", f"{pick}(dpo(beta=0.3), 0.5*simpo)", f"{pick}(dpo(beta=0.3), 0.7)")
    text = f"2.0*{texts[2]} + sft"
    both = jax.jit(lambda r: [value_and_gradient(objective(one).loss, r) for one in (*texts, text)])
    (dpo, dpo_slope), (simpo, simpo_slope), got, bounded, (summed, _) = both(r)
    taken = extreme(dpo, 0.5 * simpo)
    assert (taken == dpo)[counts].any() and (taken != dpo).any()
    np.testing.assert_allclose(got[0], taken, rtol=1e-12)
    np.testing.assert_allclose(got[1], np.where((taken == dpo)[:, None], dpo_slope, 0.5 * simpo_slope), rtol=1e-12)
    kept = (extreme(dpo, 0.7) == dpo) & counts
    assert kept.any() and not kept[counts].all()
    np.testing.assert_allclose(bounded[0], np.where(counts, extreme(dpo, 0.7), 0), rtol=1e-12)
    np.testing.assert_allclose(bounded[1], np.where(kept[:, None], dpo_slope, 0), rtol=1e-12)
    whole = objective(text)
    np.testing.assert_allclose(summed, 2 * taken + whole.parts(r)["sft"], rtol=1e-12)
    function = {"max": maximum, "min": minimum}[pick]
    other = 2 * function(objective("dpo", beta=0.3), 0.5 * objective("simpo")) + objective("sft")
    assert str(other) == str(objective(str(whole))) == str(whole) and list(whole.terms) == [f"{pick}_dpo_simpo", "sft"]
    assert whole.options[f"{pick}_dpo_simpo"]["dpo"] == {"beta": 0.3}
    for given in ({f"{pick}_dpo_simpo": {"dpo": {"beta": 1.0}}}, {f"{pick}_dpo_simpo.dpo.beta": 1.0}):
        assert objective(text, **given).options[f"{pick}_dpo_simpo"]["dpo"] == {"beta": 1.0}
    start = objective(texts[3])
    np.testing.assert_allclose(start.at_init(r), np.where(counts, extreme(np.log(2), 0.7), 0), rtol=1e-12)
    assert isinstance(start, Extreme) and start.parts(r).keys() == {"dpo"} and whole.requires.group_size == 2


def test_fixed_sums_are_lines_of_the_same():
    r = batch(2)
    rpo = objective(COMPOSITIONS["llama3_dpo"].text)
    np.testing.assert_allclose(rpo.loss(r), objective("rpo_nll", alpha=0.2).loss(r), rtol=1e-12)
    free = r.replace(reference_logp=jnp.zeros_like(r.logp))
    cpo = objective("dpo(beta=0.1) + sft(normalize='none')")
    np.testing.assert_allclose(cpo.loss(free), objective("cpo", alpha=1.0).loss(free), rtol=1e-12)


@pytest.mark.parametrize(
    "text,message",
    [
        ("dpo + bt", "bt trains a reward model and dpo a policy"),
        ("kto + mmpo", "kto reads the targets as 1/0 labels and mmpo as scores"),
        ("dro + sft", "sft imitates the best response of a prompt, and no other term says which"),
        ("dpo + dpq", "no objective named 'dpq'; near it: dpo"),
        ("dpo(gamma=1)", "dpo takes no option 'gamma'"),
        ("dpo - sft", "'dpo - sft' is no term; write weight"),
        ("0.0*dpo", "the weight 0.0 of dpo must be a finite number other than 0"),
        ("1e999*dpo", "the weight inf of dpo must be"),
        ("dpo +", "invalid syntax; write weight"),
        ("dpo(2.0)", "not of the form name"),
        ("2 + dpo", "'2' is no term"),
        ("max(dpo)", "max takes two or more terms, of which one may be a number"),
        ("min(0.5, 1.0, dpo)", "min takes two or more terms, of which one may be a number"),
        ("min(0.5, 1.0)", "min takes two or more terms"),
        ("min(dpo, 1e999)", "min: inf must be a finite number"),
        ("max(dpo, bt)", "max(1.0*dpo, 1.0*bt): bt trains a reward model and dpo a policy"),
        ("max(dpo + sft, ipo)", "max takes terms with a weight, and 1.0*dpo + 1.0*sft is a sum of several"),
        ("max(dpo, ipo, beta=1)", "max takes no option 'beta'"),
        ("smooth(max(dpo, ipo))", "smooth does not fit max(1.0*dpo, 1.0*ipo): wrap its terms"),
    ],
)
def test_an_impossible_sum_says_which_term_and_why(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        objective(text)


def test_a_sum_names_the_term_that_lacks_something():
    whole = objective("0.5*dpo + 0.5*margin_dpo")
    with pytest.raises(ValueError, match="margin_dpo needs margin: a required margin per pair"):
        whole.check_inputs(batch(2).replace(margin=None))
    assert whole.reader("margin") == "margin_dpo, a term of 0.5*dpo + 0.5*margin_dpo,"
    for wrong in ({"ipo": {}}, {"dpo": 2.0}, {"dpo": {"gamma": 1}}, {"beta": 1.0}):
        with pytest.raises(ValueError, match="takes no option"):
            whole.with_options(wrong)


def test_what_labels_and_rankings_say_is_imitated():
    r = batch(3, target=np.array([[1, 0, 1]] * 5 + [[0, 0, 0]]))
    labelled = objective("apo_zero_unpaired + sft").parts(r)["sft"]
    np.testing.assert_allclose(labelled[0], -(r.logp[0, ::2] / r.length[0, ::2]).mean(), rtol=1e-12)
    assert labelled[5] == 0
    assert objective("sft + sft").requires.imitates


def test_a_sum_reads_the_targets_that_serve_all_terms():
    for text, reads in (("gpo_score + sppo", "probabilities"), ("sppo + apo_zero_unpaired", "labels")):
        assert objective(text).requires.reads == reads
    assert objective("dpo + slic").requires.optional == {"auxiliary_logp"}


def test_a_loss_of_ones_own_enters_a_sum(monkeypatch):
    monkeypatch.setattr(OBJECTIVES, "_entries", dict(OBJECTIVES._entries))
    monkeypatch.setattr(OBJECTIVES, "_ordered", None)

    @for_pairs({"reference_logp"})
    def of_a_cell(r, *, beta: float = 1.0):
        return beta * r.logp.sum(-1)

    module = types.ModuleType("losses_of_mine")
    module.of_a_cell = of_a_cell
    monkeypatch.setitem(sys.modules, "losses_of_mine", module)
    r = batch(2)
    expected = objective("dpo").loss(r)[0] + r.logp[0].sum()
    for whole in (
        0.25 * px.objective(of_a_cell, beta=4.0) + px.objective("dpo"),
        px.objective("0.25*losses_of_mine:of_a_cell(beta=4.0) + dpo"),
        px.objective("dpo + 0.25*of_a_cell", of_a_cell={"beta": 4}),
    ):
        np.testing.assert_allclose(whole.loss(r)[0], expected, rtol=1e-12)
