"""Labels by routing and by the policy's own reward; graded labels."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefjax.data.methods.relabelling import bradley_terry_targets, route, self_label
from prefjax.data.records import Record


def routed(n, gain, human, judge):
    columns = {"gain": gain, "human": human, "judge": judge}
    return Record(f"p{n}", ("a", "b"), (1.0, 0.0), "pair", source=f"f:{n}", columns=columns)


def judged(n, policy, reference=(0.0, 0.0)):
    columns = {"policy": policy, "sft": reference}
    return Record(f"p{n}", ("a", "b"), (1.0, 0.0), "pair", source=f"f:{n}", response_columns=columns)


def records_of(outcomes):
    return [item for outcome in outcomes for item in outcome if isinstance(item, Record)]


NAMES = dict(gain="gain", people="human", model="judge")


def test_routing_by_hand():
    records = [routed(0, 0.1, -1, 1), routed(1, 0.9, -1, 1), routed(2, 0.5, 1, -1), routed(3, 0.3, 1, 0)]
    for share, chosen in ((0.0, "aab-"), (0.25, "abb-"), (0.5, "aba-"), (1.0, "bbaa")):
        outcomes = list(route(records, **NAMES, share=share))
        assert "".join(getattr(outcome[0], "responses", "-")[0] for outcome in outcomes) == chosen
    assert outcomes[0][1].reason == "flipped"
    ((tie,),) = route([routed(0, 1, 0, 1)], **NAMES, share=1.0)
    assert (tie.reason, tie.field) == ("tie", "human")


@given(st.lists(st.tuples(st.floats(-1, 1), st.sampled_from([-1, 1]), st.sampled_from([-1, 1])), max_size=12))
def test_routing_everything_is_either_label_alone(rows):
    records = [routed(n, *row) for n, row in enumerate(rows)]
    for share, column in ((0.0, "judge"), (1.0, "human")):
        made = records_of(route(records, **NAMES, share=share))
        assert [m.responses[0] for m in made] == ["ab"[r.columns[column] < 0] for r in records]


def test_self_label_by_hand():
    # log-ratios: +1, -3, 0, 0.5, all against a reference of 1 that cancels
    differences = [1.0, -3.0, 0.0, 0.5]
    records = [judged(n, (-10 + d, -12.0), (-10.0, -12.0)) for n, d in enumerate(differences)]
    outcomes = list(self_label(records, policy="policy", reference="sft", least_confident=0.34))
    assert [outcome[0].responses for outcome in outcomes[:3]] == [("a", "b"), ("b", "a"), ("a", "b")]
    assert [outcome[0].target_probability for outcome in outcomes[:3]] == [1.0, 1.0, 0.9]  # floor(0.34 * 3) = 1
    assert outcomes[1][1].reason == "flipped"
    assert outcomes[3][0].reason == "tie"


@given(st.lists(st.floats(-5, 5).filter(lambda x: abs(x) > 1e-3), min_size=1, max_size=15), st.floats(0, 1))
def test_the_smoothed_are_the_least_confident(differences, share):
    records = [judged(n, (d, 0.0)) for n, d in enumerate(differences)]
    made = records_of(self_label(records, policy="policy", reference="sft", least_confident=share, smoothing=0.2))
    soft = [abs(d) for d, m in zip(differences, made, strict=True) if m.target_probability == 0.8]
    sure = [abs(d) for d, m in zip(differences, made, strict=True) if m.target_probability == 1.0]
    assert len(soft) == int(share * len(made) + 1e-9) and len(soft) + len(sure) == len(made)
    assert not soft or not sure or max(soft) <= min(sure)
    assert [m.responses[0] for m in made] == ["ab"[d < 0] for d in differences]


def test_bradley_terry_targets():
    record = Record("p", ("a", "b"), (1.0, 0.0), "pair", scores=(3.0, 1.0))
    ((made,),) = bradley_terry_targets([record], temperature=2.0)
    assert made.margin == 2.0 and made.target_probability == pytest.approx(1 / (1 + math.exp(-1)))
    assert made.responses == ("a", "b")
    low = Record("p", ("a", "b"), (1.0, 0.0), "pair", response_columns={"rm": (0, 1)})
    ((made,),) = bradley_terry_targets([low], reward="rm")
    assert made.margin == -1.0 and made.target_probability == pytest.approx(1 / (1 + math.e))


def test_what_is_refused():
    for call in (
        lambda: route([], **NAMES, share=1.5),
        lambda: self_label([], policy="a", reference="b", beta=0.0),
        lambda: self_label([], policy="a", reference="b", smoothing=0.5),
        lambda: self_label([], policy="a", reference="b", least_confident=2.0),
        lambda: bradley_terry_targets([], temperature=0.0),
    ):
        with pytest.raises(ValueError):
            list(call())
    missing = Record("p", ("a", "b"), (1.0, 0.0), "pair")
    for ((item,),) in (
        list(route([missing], **NAMES, share=1.0)),
        list(self_label([missing], policy="policy", reference="sft")),
        list(bradley_terry_targets([missing])),
    ):
        assert item.reason == "missing_field"
