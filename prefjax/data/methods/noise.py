"""Label noise with known rates, for studying objectives that claim to withstand it."""

from collections.abc import Iterable

from prefjax.data.account import Notice, Refused
from prefjax.data.methods import method
from prefjax.data.methods.stream import Outcome, Outcomes, Seed, each, exchange, generator, rewards, take_kind
from prefjax.data.records import Record
from prefjax.data.synthetic import preference_probability
from prefjax.options import NonNegative, Share


@method()
def flip_labels(
    records: Iterable[Record], *, rate: Share, rate_undesirable: Share | None = None, seed: Seed = 0
) -> Outcomes:
    """Random flips: every label is exchanged with probability `rate`, independently of every other step's draws.

    Source: arXiv 2403.00409 (random preference flips; the noise that rDPO and cDPO assume).
    Takes: pairs, single responses with a label.
    Makes: the same; chosen and rejected exchanged, or the label inverted.

    P(label flipped) = rate. A response labelled undesirable is flipped with probability `rate_undesirable` (None: the
    same), so rates may differ by class. One uniform number is drawn for each record, so the first n records of a longer
    file are treated alike. Ratings and columns stay with their responses; flipped records are counted.

    Raises:
        ValueError: rate_undesirable where a record is a pair.
    """
    rng = generator(seed)

    def step(record: Record) -> Outcome:
        uniform = rng.random()  # drawn first, so that no record changes what happens to the next
        _take_labels(record)
        if record.kind == "pair" and rate_undesirable is not None:
            raise ValueError(f"{record.source}: a pair has one label: rate_undesirable has no meaning, leave it out")
        undesirable = record.targets == (0.0,) and rate_undesirable is not None
        return _flip(record) if uniform < (rate_undesirable if undesirable else rate) else (record,)

    return each(records, step)


@method(response_columns=("reward",))
def bradley_terry_labels(
    records: Iterable[Record], *, temperature: NonNegative = 1.0, reward: str | None = None, seed: Seed = 0
) -> Outcomes:
    """Labels drawn from rewards: P(a beats b) = sigmoid((r_a - r_b) / temperature), the Bradley-Terry model.

    Source: arXiv 2305.18290, equation 1 (Bradley and Terry 1952), with a temperature.
    Takes: pairs with two scores, or the response column `reward`.
    Makes: pairs; the winner of the draw is chosen, whatever the label was.

    Small differences are mislabelled most, as people do. temperature 0 labels by the reward without noise; a tie is
    then a coin toss. Rewards and temperature have one unit.
    """
    rng = generator(seed)

    def step(record: Record) -> Outcome:
        uniform = rng.random()
        take_kind(record, "pair")
        _take_labels(record)
        first, second = rewards(record, reward)
        return (record,) if uniform < preference_probability(float(first - second), temperature) else _flip(record)

    return each(records, step)


def _take_labels(record: Record) -> None:
    take_kind(record, "pair", "unpaired")
    if record.targets not in ((1.0, 0.0), (1.0,), (0.0,)):
        detail = "the targets are no labels (1, 0): leave out pair_targets='scores' and rewards without labels"
        raise Refused("bad_label", record.field(0), detail)


def _flip(record: Record) -> Outcome:
    notice = Notice("flipped", record.source, "chosen" if record.kind == "pair" else "label")
    if record.kind == "pair":
        return (exchange(record), notice)
    return (record.select((0,), (1.0 - record.targets[0],), "unpaired"), notice)
