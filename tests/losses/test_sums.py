"""Weighted sums of objectives: the sum of their terms in everything, or refused with the term and the reason."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prefjax as px
from prefjax.losses import COMPOSITIONS, OBJECTIVES, Sum, for_pairs, objective
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
    counts = whole.valid_prompts(r)
    assert counts.tolist() == [True, False, True, True, K > 2, True]
    seen = r.masked(whole_groups=K == 2, min_responses=2)
    start = to_responses(at_reference({f: np.asarray(getattr(r, f)) for f in make_fields(K)}), r.valid, jnp.float64)
    best = best_only(seen)

    @jax.jit
    def both(r, seen, best, start):
        expected, gradient = jnp.zeros(6), jnp.zeros((6, K))
        for weight, term in whole.terms.values():
            losses, slope = value_and_gradient(term.loss, best if term.name == "sft" else seen)
            expected, gradient = expected + weight * losses, gradient + weight * slope
        starts = whole.at_init(start), whole.loss(start)
        return expected, gradient, *value_and_gradient(whole.loss, r), whole.parts(r), *starts

    expected, gradient, got, got_gradient, parts, at_init, loss_at_reference = both(r, seen, best, start)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(got_gradient, gradient, rtol=1e-12, atol=1e-15)
    assert (got[~counts] == 0).all() and (got[counts] != 0).all()
    np.testing.assert_allclose(sum(whole.terms[key].weight * part for key, part in parts.items()), got, rtol=1e-12)
    np.testing.assert_allclose(at_init, loss_at_reference, rtol=1e-12)
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
    alone = objective("dpo(beta=2.0)")
    assert not isinstance(alone, Sum) and alone.options == {"beta": 2.0} and alone.parts(r) == {}


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
    ],
)
def test_an_impossible_sum_says_which_term_and_why(text, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace("+", r"\+")):
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
