"""A check of a run, and those of its curves and facts: threshold, reason and source each."""

import dataclasses
from collections.abc import Callable

import numpy as np

from prefjax.analysis.curves import last
from prefjax.analysis.runs import Run

SOLVED = 0.99  # training accuracy with which no pair is left to learn
_FEWEST = 8  # logged lines that a trend needs
_BEFORE = 10  # lines that say what a gradient norm usually is
_LEAST_DROP = 1.0  # nats of a response that a log-prob must fall before its fall is worth a note


@dataclasses.dataclass(frozen=True)
class Check:
    """find(run, threshold) -> what is odd, "" where nothing is, None where the run did not measure it.

    odd_when  the rule in words, with {} for the threshold
    why       the reason for the rule and for its threshold
    source    paper, documentation or issue; "" where the threshold is this project's own judgement
    needs     what a run must have logged for it
    """

    name: str
    threshold: float
    odd_when: str
    why: str
    source: str
    find: Callable[[Run, float], str | None]
    needs: str

    @property
    def rule(self) -> str:
        return self.odd_when.format(f"{self.threshold:g}")


def _start_loss(run: Run, tolerance: float) -> str | None:
    start = run.record.get("start_check") or {}
    loss, expected = start.get("loss"), start.get("expected_loss")
    if loss is None or expected is None:
        return None
    off = abs(loss - expected) > tolerance * max(1.0, abs(expected))
    return f"the first batch had a loss of {loss:.4f}, and {expected:.4f} is its closed form" if off else ""


def _beyond_context(run: Run, share: float) -> str | None:
    splits = run.record.get("data")
    if splits is None:
        return None
    found = [
        f"{facts['beyond_context']} of {facts['trees']} {name} records, up to {facts['longest']} tokens"
        for name, facts in splits.items()
        if facts.get("beyond_context", 0) > share * facts["trees"]
    ]
    return f"{' and '.join(found)}: set data.encoding.max_length={run.record['context']}" if found else ""


def _prompts_in_training(run: Run, share: float) -> str | None:
    splits = run.record.get("data")
    if splits is None:
        return None
    facts = {"prompts_in_training": 0, "records_in_training": 0, "trees": 0} | splits.get("eval", {})
    odd = facts["prompts_in_training"] > share * facts["trees"]
    whole = f", {facts['records_in_training']} of them with the same responses" * bool(facts["records_in_training"])
    return f"{facts['prompts_in_training']} of {facts['trees']} held-out records{whole}" if odd else ""


def _finite(run: Run, _: float) -> str | None:
    numbers = [(row["step"], name, x) for row in run.metrics for name, x in row.items() if isinstance(x, float)]
    if not numbers:
        return None
    bad = [(step, name) for step, name, x in numbers if not np.isfinite(x)]
    return f"{bad[0][1]} is not finite at step {bad[0][0]}" if bad else ""


def _learning_rate(run: Run, share: float) -> str | None:
    rates = run.values("learning_rate", "train")[1:-1]  # a warm-up begins at 0, and a schedule may end there
    if not len(rates):
        return None
    zero = int(np.sum(rates == 0))
    return f"the learning rate is 0 at {zero} of {len(rates)} logged steps" if zero > share * len(rates) else ""


def _loss_falls(run: Run, share: float) -> str | None:
    ends = _quarters(run.values("loss", "train"))
    if ends is None:
        return None
    first, final = (float(part.mean()) for part in ends)
    if first - final >= share * abs(first):
        return ""
    return f"the training loss went from {first:.4f} (mean of the first quarter) to {final:.4f} (of the last)"


def _gradient_spikes(run: Run, factor: float) -> str | None:
    norms = run.values("grad_norm", "train")
    if len(norms) < _FEWEST:
        return None
    # The lines before are what it is compared with: over a run the norm may shrink by orders of magnitude.
    usual = np.array([np.median(norms[max(0, i - _BEFORE) : i]) for i in range(3, len(norms))])
    spikes = np.flatnonzero(norms[3:] > factor * usual)
    if not len(spikes):
        return ""
    worst = spikes[np.argmax(norms[3:][spikes] / usual[spikes])]
    step = [row["step"] for row in run.metrics if row["split"] == "train" and "grad_norm" in row][3 + worst]
    count = f", one of {len(spikes)} such lines" if len(spikes) > 1 else ""
    return f"the gradient norm is {norms[3 + worst]:.3g} at step {step}, {usual[worst]:.3g} in the lines before{count}"


def _better_than_chance(run: Run, chance: float) -> str | None:
    accuracy = run.accuracy
    if accuracy is None:
        return None
    worse = accuracy.high < chance
    return f"reward accuracy is {accuracy.value:.1%}, surely below one half: are labels swapped?" if worse else ""


def _ties(run: Run, share: float) -> str | None:
    ties = run.newest("reward_ties")
    if ties is None:
        return None
    return f"{ties:.1%} of pairs have equal rewards at the end" if ties > share else ""


def _saturation(run: Run, accuracy: float) -> str | None:
    reached, margins = _quarters(run.values("reward_accuracy", "train")), run.values("margin", "train")
    if reached is None or len(margins) < _FEWEST:
        return None
    final, before, after = float(reached[1].mean()), float(margins[-1 - len(margins) // 4]), float(margins[-1])
    if final < accuracy or after <= before:
        return ""
    return f"training accuracy is {final:.1%} and the margin still grows, from {before:.2f} to {after:.2f} nats"


def _gap(run: Run, points: float) -> str | None:
    train, held_out = _quarters(run.values("reward_accuracy", "train")), run.accuracy
    if train is None or held_out is None or last(run.metrics, "reward_accuracy", "eval") is None:
        return None
    reached = float(train[1].mean())
    if reached - held_out.value <= points or reached <= held_out.high:
        return ""
    return f"accuracy is {reached:.1%} in training and {held_out.value:.1%} on held-out pairs"


def _held_out_loss(run: Run, share: float) -> str | None:
    losses = run.values("loss", "eval")
    if len(losses) < 3:
        return None
    best = int(losses.argmin())
    gained, lost = float(losses[0] - losses[best]), float(losses[-1] - losses[best])
    if lost == 0 or lost <= share * gained:
        return ""
    step = [row["step"] for row in run.metrics if row["split"] == "eval" and "loss" in row][best]
    return f"the held-out loss was best at step {step} ({losses[best]:.4f}) and is {losses[-1]:.4f} now"


def _displacement(run: Run, ratio: float) -> str | None:
    chosen, rejected = (log_prob_change(run, name) for name in ("chosen", "rejected"))
    if chosen is None or rejected is None:
        return None
    if chosen > -_LEAST_DROP or (rejected < 0 and chosen > ratio * rejected):
        return ""
    return f"log π − log ref of chosen responses is {_signed(chosen)} nats, of rejected ones {_signed(rejected)}"


def _distance(run: Run, nats: float) -> str | None:
    if run.kl is not None:
        far = run.kl.value > nats
        return f"samples are {run.kl.value:.1f} nats from the starting model" if far else ""
    estimate = run.newest("kl_estimate")
    if estimate is None:
        return None
    return f"log ref − log π of the data's responses is {estimate:.1f} nats on average" if estimate > nats else ""


def _fill(run: Run, share: float) -> str | None:
    fills = run.values("fill", "train")
    if not len(fills):
        return None
    filled = float(fills.mean())
    return f"{1 - filled:.0%} of the positions are padding (rows.layout, rows.row_length)" if filled < share else ""


def _speed(run: Run, share: float) -> str | None:
    ends = _quarters(run.values("tokens_per_second", "train"))
    if ends is None:
        return None
    first, final = (float(np.median(part)) for part in ends)
    return f"{first:.0f} tokens/s at first, {final:.0f} at the end" if final < share * first else ""


def _dead_reference_point(run: Run, level: float) -> str | None:
    ratios = run.values("mismatched_log_ratio", "train")
    if len(ratios) < _FEWEST:
        return None
    late = ratios[len(ratios) // 2 :]
    if (late > level).any():
        return ""
    return f"the mismatched log-ratio never left {late.max():.2f} upwards in the second half: z0 is clamped to 0"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _quarters(values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The first and the last quarter; None where there are too few values."""
    quarter = len(values) // 4
    return None if len(values) < _FEWEST else (values[:quarter], values[-quarter:])


def log_prob_change(run: Run, name: str) -> float | None:
    """Against the reference, else (objectives without one) since the first logged step of training; nats."""
    change = run.newest(f"{name}_logp_change")
    if change is not None:
        return change
    logp = run.values(f"{name}_logp", "train")
    return float(logp[-1] - logp[0]) if len(logp) > 1 else None


_LINES = f"{_FEWEST} logged lines of training (train.log_every)"

CHECKS = (
    Check(
        "start loss",
        0.02,
        "the first loss is off its closed form by more than {} of it, or of 1 where it is smaller",
        "With policy == reference the loss is known (log 2 for DPO): a wrong reference, template or mask shows here "
        "first. 2 % is what bfloat16 leaves.",
        "NeMo-RL bounds the first loss in its CI; the share is this project's",
        _start_loss,
        needs="a check of the first batch",
    ),
    Check(
        "context",
        0.0,
        "more than {} of the records are longer than the positions that the model was made for",
        "Positions that a model never saw give noise for log-probs.",
        "alignment-handbook issue 65",
        _beyond_context,
        needs="facts about the data",
    ),
    Check(
        "held-out prompts",
        0.0,
        "more than {} of the held-out records have a prompt that was trained on",
        "What was trained on does not measure what is new.",
        "",
        _prompts_in_training,
        needs="facts about the data",
    ),
    Check(
        "finite numbers",
        0.0,
        "any number is NaN or infinite",
        "Nothing after it can be trusted.",
        "",
        _finite,
        needs="a logged line",
    ),
    Check(
        "learning rate",
        0.1,
        "the learning rate is 0 at more than {} of the logged steps, the first and the last one aside",
        "A schedule that ended before the run trains nothing.",
        "",
        _learning_rate,
        needs="three logged lines of training",
    ),
    Check(
        "training loss",
        0.0,
        "the mean of the last quarter is not below that of the first by more than {} of it",
        "Flat or rising: broken data, or a learning rate that is too high or too low.",
        "axolotl, docs/agents/preference_tuning.md, Healthy Training Indicators",
        _loss_falls,
        needs=_LINES,
    ),
    Check(
        "gradient norm",
        10.0,
        f"it is above {{}} times its median over the {_BEFORE} lines before",
        "A spike is a batch unlike the others, or a step that is too long. Absolute norms scale with the loss (a sum "
        "over tokens, beta), so the run is compared with itself.",
        "",
        _gradient_spikes,
        needs=_LINES,
    ),
    Check(
        "accuracy against chance",
        0.5,
        "the upper end of the 95 % interval of reward accuracy is below {}",
        "Worse than guessing is a sign error or swapped labels, not bad luck.",
        "axolotl, as above",
        _better_than_chance,
        needs="pairs",
    ),
    Check(
        "ties",
        0.05,
        "more than {} of the pairs have equal rewards at the end",
        "Equal rewards mean equal responses, or a policy that still is its reference.",
        "TRL issue 1311",
        _ties,
        needs="pairs",
    ),
    Check(
        "saturation",
        SOLVED,
        "training accuracy in the last quarter is at least {} while the margin grows",
        "Nothing is left to learn from the order of pairs; where preferences are deterministic DPO's regularisation "
        "fades and the margin grows without bound. Train less, raise beta, or take ipo.",
        "arXiv 2310.12036, section 4.2",
        _saturation,
        needs=_LINES,
    ),
    Check(
        "train and held-out accuracy",
        0.10,
        "training accuracy is above the held-out one by more than {}, and above its 95 % interval",
        "The policy knows its training pairs, not the preference.",
        "",
        _gap,
        needs=f"{_LINES} and held-out pairs",
    ),
    Check(
        "held-out loss",
        0.2,
        "the newest held-out loss gave back more than {} of the best gain",
        "An earlier checkpoint is better. Direct alignment methods often pass their best within one epoch.",
        "arXiv 2406.02900 (deterioration before an epoch is over); the share is this project's",
        _held_out_loss,
        needs="three evaluations (train.eval_every)",
    ),
    Check(
        "likelihood displacement",
        0.5,
        f"chosen responses lost more than {_LEAST_DROP:g} nat, and at least {{}} of what rejected ones lost",
        "The loss only asks for a difference: both may fall, and probability goes to responses nobody compared. Some "
        "fall is common after SFT on the chosen responses. Remedies: dpop, rpo_nll, fewer near-identical pairs.",
        "arXiv 2402.13228 (DPOP) and 2410.08847; the share is this project's",
        _displacement,
        needs="log-probs of chosen and rejected responses",
    ),
    Check(
        "distance from the reference",
        20.0,
        "KL of samples, else mean log ref − log π of the data's responses, is above {} nats",
        "The best of n samples is log n − (n−1)/n nats away, so 20 nats is the best of a billion: rewards far out are "
        "extrapolated. Quality falls at high KL; where depends on data and length, so look at samples.",
        "arXiv 2406.02900 and 2210.10760 (falls at high KL); the number is this project's",
        _distance,
        needs="samples or a reference",
    ),
    Check(
        "fill",
        0.75,
        "less than {} of the positions hold a token",
        "Padding costs what tokens cost. Packed layouts reach 0.9 and more.",
        "",
        _fill,
        needs="a logged line",
    ),
    Check(
        "speed",
        0.7,
        "tokens/s in the last quarter are below {} of those in the first",
        "Something else uses the machine, or data cannot keep up.",
        "",
        _speed,
        needs=_LINES,
    ),
    Check(
        "KTO's reference point",
        0.0,
        "the mismatched log-ratio stays at or below {} in the second half",
        "z0 is clamped at 0, and there KTO compares with no reference point at all.",
        "HALOs issue 24, ms-swift issue 7342",
        _dead_reference_point,
        needs=f"{_LINES} of an objective with mismatched responses",
    ),
)
