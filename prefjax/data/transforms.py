"""Records -> records: what an objective needs, made from what a file holds. Every transform is pure.

A per-record transform yields the records it makes and the findings it has, as `account.collect` takes them.
"""

import array
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from prefjax.data.account import Account, Finding, Notice, Rejection, flow
from prefjax.data.records import Record
from prefjax.requirements import Requirements

RANKING_RULES = ("best_worst", "adjacent", "all")
PAIR_TARGETS = ("labels", "scores")


def rankings_to_pairs(record: Record, rule: str = "best_worst") -> Iterator[Record | Finding]:
    """A ranking -> its pairs, the higher score chosen; other records as they are. Targets become (1, 0).

    Args:
        rule: "best_worst", one pair of the highest and the lowest score; "adjacent", neighbours in the order of scores,
            at most K - 1 pairs; "all", at most K (K - 1) / 2 pairs.

    Two responses of equal score, or of equal text, make no pair; each is counted, and so is which became pairs. A
    ranking that makes no pair at all is rejected. Equal scores keep the file's order.
    """
    if rule not in RANKING_RULES:
        raise ValueError(f"rule must be one of {RANKING_RULES}, got {rule!r}")
    if record.kind != "ranked":
        yield record
        return
    if len(record.responses) < 2:
        yield Rejection("wrong_kind", record.source, "completions", "one response makes no pair")
        return
    order = sorted(range(len(record.targets)), key=lambda k: -record.targets[k])
    pairs = {
        "best_worst": [(order[0], order[-1])],
        "adjacent": itertools.pairwise(order),
        "all": itertools.combinations(order, 2),
    }[rule]
    made: list[str] = []
    skipped = "tie"
    for first, second in pairs:
        where = f"completions[{first}], [{second}]"
        if record.targets[first] == record.targets[second]:
            skipped = "tie"
            yield Notice("tied_pair", record.source, where, f"both {record.targets[first]:g}")
        elif record.responses[first] == record.responses[second]:
            skipped = "identical_responses"
            yield Notice("same_text_pair", record.source, where)
        else:
            made.append(f"[{first}] over [{second}]")
            yield record.select((first, second), (1.0, 0.0), "pair")
    if made:
        detail = f"{', '.join(made)} of {len(order)} by rule {rule!r}"
        yield Notice("pair_of_ranking", record.source, "completions", detail)
    else:
        yield Rejection(skipped, record.source, "scores", f"no pair by rule {rule!r}")


def keep_best(record: Record) -> Iterator[Record | Finding]:
    """The one response worth imitating (SFT): chosen of a pair, the top score of a ranking, an unpaired response
    labelled 1, a demonstration. Its target is 1. Other unpaired responses are rejected, with the reason counted."""
    if record.kind == "unpaired":
        if record.targets not in ((0.0,), (1.0,)):
            detail = f"a reward alone ({record.targets[0]:g}) does not say whether to imitate; give 1/0 labels"
            yield Rejection("bad_label", record.source, "reward", detail)
            return
        if record.targets == (0.0,):
            yield Rejection("undesirable", record.source, "label")
            return
    if record.kind in ("unpaired", "demonstration"):
        yield record
        return
    # The chosen response of a pair is the first one, whatever its targets have been made.
    best = 0 if record.kind == "pair" else record.targets.index(max(record.targets))
    if record.kind == "ranked" and record.targets.count(record.targets[best]) > 1:
        yield Notice("tied_best", record.source, "scores", f"{record.targets[best]:g}")
    yield record.select((best,), (1.0,), "demonstration")


def targets_from_scores(record: Record) -> Iterator[Record | Finding]:
    """The file's ratings become the targets: score_chosen and score_rejected of a pair, the reward beside a label."""
    if record.scores is None:
        detail = (
            "no scores beside the labels; use pair_targets='labels', or a file with score_chosen and score_rejected"
        )
        yield Rejection("missing_field", record.source, "score_chosen" if record.kind == "pair" else "reward", detail)
        return
    yield dataclasses.replace(record, targets=record.scores)


def adapt(
    records: Iterable[Record],
    requires: Requirements,
    *,
    rankings: str | None = None,
    pair_targets: str = "labels",
) -> tuple[list[Record], Account]:
    """All that `stream_adapted` lets through, and its account."""
    account = Account()
    made = stream_adapted(records, requires, account, rankings=rankings, pair_targets=pair_targets)
    return list(made), account


def stream_adapted(
    records: Iterable[Record],
    requires: Requirements,
    account: Account,
    *,
    rankings: str | None = None,
    pair_targets: str = "labels",
) -> Iterator[Record]:
    """Makes records what an objective requires; what cannot be made is rejected with the requirement in the reason.

    Under group_size 2 records are pairs, and rankings become pairs; under None they keep all responses below their
    prompt. An objective that imitates gets `keep_best` of every record, and takes neither option.

    Args:
        account: gets the stage "adapt", see `flow`.
        rankings: the rule that makes pairs of rankings, see `rankings_to_pairs`. None means "best_worst" under
            group_size 2, and rankings as they are otherwise.
        pair_targets: targets of a pair: "labels", 1 and 0, or "scores", score_chosen and score_rejected.
    Raises:
        ValueError: an unknown value, or options that contradict the objective.
    """
    group_size = requires.group_size
    if group_size not in (None, 2):
        raise ValueError(f"group_size must be None or 2, got {group_size}")
    if pair_targets not in PAIR_TARGETS:
        raise ValueError(f"pair_targets must be one of {PAIR_TARGETS}, got {pair_targets!r}")
    if requires.imitates and (group_size == 2 or rankings is not None or pair_targets != "labels"):
        raise ValueError("an objective that imitates keeps single responses: drop group_size=2, rankings, pair_targets")
    if requires.reads == "labels" and pair_targets == "scores":
        raise ValueError("reads='labels' takes the 1/0 labels of a pair: drop pair_targets='scores'")
    if requires.group_size == 2 and requires.reads == "scores" and pair_targets == "labels":
        raise ValueError(
            "this objective reads the scores of a pair, and pair_targets='labels' are 1 and 0 for all of them: set it "
            "to 'scores', the file's score_chosen and score_rejected"
        )
    rule = rankings or ("best_worst" if group_size == 2 else None)
    if rule is not None and rule not in RANKING_RULES:
        raise ValueError(f"rankings must be one of {RANKING_RULES}, got {rule!r}")

    def step(record: Record) -> Iterator[Record | Finding]:
        made: Iterable[Record | Finding] = (record,)
        if requires.imitates:
            made = keep_best(record)
        elif record.kind == "ranked" and rule is not None:
            made = rankings_to_pairs(record, rule)
        for item in made:
            if isinstance(item, Record) and item.kind == "pair" and pair_targets == "scores":
                item = next(targets_from_scores(item))
            yield item if isinstance(item, Finding) else _unmet(item, requires) or item

    return flow(account, "adapt", records, step)


def _unmet(record: Record, requires: Requirements) -> Rejection | None:
    if requires.group_size == 2 and record.kind != "pair":
        detail = (
            "a pairwise objective needs a chosen and a rejected response to every prompt; "
            f"this record is {record.kind}: use an objective for single responses (kto, dro, sft)"
        )
        return Rejection("wrong_kind", record.source, record.field(0), detail)
    for name in requires.pair_numbers:
        if getattr(record, name) is None:
            detail = f"this objective reads a {name} of every pair: add it, and name its column in format.{name}_field"
            return Rejection("missing_field", record.source, name, detail)
    if requires.token_labels and record.spans is None:
        detail = "this objective reads weighted spans: add them, and name their column in format.spans_field"
        return Rejection("missing_field", record.source, "spans", detail)
    if (count := len(record.responses)) < requires.min_responses:
        least = requires.min_responses
        detail = f"this objective compares at least {least} responses to a prompt, this record has {count}"
        return Rejection("wrong_kind", record.source, record.field(0), detail)
    reads = requires.reads
    if reads != "nothing" and record.kind == "demonstration":
        return Rejection(
            "wrong_kind", record.source, "label", f"this objective reads {reads}, a demonstration has none"
        )
    if reads == "labels" and not set(record.targets) <= {0.0, 1.0}:
        detail = (
            f"this objective reads targets as labels, 1 desirable and 0 undesirable; got {_numbers(record.targets)}: "
            "make pairs of rankings (rankings='best_worst'), or use an objective that reads rewards (dro)"
        )
        return Rejection("bad_label", record.source, "scores" if record.kind == "ranked" else "reward", detail)
    if reads == "probabilities" and not all(0 <= target <= 1 for target in record.targets):
        detail = (
            f"this objective reads targets as probabilities of winning, in [0, 1]; got {_numbers(record.targets)}: use "
            "pair_targets='labels', or an objective that reads scores (gpo_score, odpo)"
        )
        return Rejection("bad_label", record.source, "scores", detail)
    return None


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values[:4]) + (", ..." if len(values) > 4 else "")


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Constants of `normalize_targets`: the mean and the standard deviation of the raw targets."""

    mean: float
    std: float


def normalize_targets(
    records: Sequence[Record], constants: Normalization | None = None
) -> tuple[list[Record], Normalization]:
    """Targets with mean 0 and variance 1 over all responses of all records (DRO's rewards, arXiv 2405.19107).

    Args:
        constants: those of the training set, to normalise another set alike; None measures them on these records.
    Returns:
        the records, and the constants used: normalised = (raw - mean) / std, std with divisor n.
    Raises:
        ValueError: no records, or all targets are equal.
    """
    constants = measure_targets(records) if constants is None else constants
    return [normalized(record, constants) for record in records], constants


def measure_targets(records: Iterable[Record]) -> Normalization:
    """The constants of some records, of which the targets alone are held. Raises ValueError where there are none."""
    targets = array.array("d", (target for record in records for target in record.targets))
    if not targets:
        raise ValueError("no targets to normalise")
    mean = math.fsum(targets) / len(targets)
    return Normalization(mean, math.sqrt(math.fsum((t - mean) ** 2 for t in targets) / len(targets)))


def normalized(record: Record, constants: Normalization) -> Record:
    """The record with normalised targets. Raises ValueError where all targets were equal."""
    if constants.std <= 0:
        raise ValueError(f"all targets are {constants.mean:g}: there is nothing to normalise, or to learn")
    targets = tuple((target - constants.mean) / constants.std for target in record.targets)
    return dataclasses.replace(record, targets=targets)
