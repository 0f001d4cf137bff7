"""Checks of what a run is worth: samples, and how many of anything stand behind a number."""

import math

from prefjax.analysis.checks import SOLVED, Check, log_prob_change
from prefjax.analysis.curves import last
from prefjax.analysis.runs import Run
from prefjax.analysis.statistics import FEW, Z90


def _vanished_loss(run: Run, share: float) -> str | None:
    losses, accuracies = run.values("loss", "train"), run.values("reward_accuracy", "train")
    start = (run.record.get("start_check") or {}).get("loss")
    if start is None and len(losses) > 1:
        start = float(losses[0])
    if start is None or not len(losses) or not len(accuracies):
        return None
    final, accuracy = float(losses[-1]), float(accuracies[-1])
    if accuracy < SOLVED or abs(final) >= share * abs(start):
        return ""
    return (
        f"training accuracy is {accuracy:.1%} and the loss fell from {start:.4f} to {final:.4f} by step {run.last_step}"
    )


def _margin_size(run: Run, nats: float) -> str | None:
    chosen, rejected = (log_prob_change(run, name) for name in ("chosen", "rejected"))
    # Reward models have no log-probs, and their rewards start at 0.
    margin = run.newest("margin") if chosen is None or rejected is None else chosen - rejected
    if margin is None:
        return None
    return f"chosen and rejected responses are {margin:.0f} nats apart" if margin > nats else ""


def _malformed(run: Run, points: float) -> str | None:
    before, after = (run.result.get(f"garbled_{name}") for name in ("start", "trained"))
    if before is None or after is None:
        return None
    pooled, count = (before + after) / 2, run.result["gold_trained"]["count"]
    noise = Z90 * math.sqrt(2 * pooled * (1 - pooled) / count)
    odd = after - before > max(points, noise)
    return f"malformed samples rose from {before:.1%} to {after:.1%} of {count}" if odd else ""


def _text_at_all(run: Run, share: float) -> str | None:
    before, after = (run.result.get(f"garbled_{name}") for name in ("start", "trained"))
    if before is None or after is None:
        return None
    return f"{before:.0%} of samples are malformed before training, {after:.0%} after" if after > share else ""


def _unfinished(run: Run, share: float) -> str | None:
    unfinished = run.result.get("unfinished")
    if unfinished is None or run.kl is None:
        return None
    odd = unfinished > share * run.kl.count
    where = "sampling.max_new_tokens cut them: KL and rewards are of what came before"
    return f"{unfinished} of {run.kl.count} samples did not end ({where})" if odd else ""


def _few_samples(run: Run, fewest: float) -> str | None:
    if run.kl is None:
        return None
    odd = run.kl.count < fewest
    return f"KL and all else about samples are of {run.kl.count} (sampling.prompts)" if odd else ""


def _few_pairs(run: Run, fewest: float) -> str | None:
    pairs = last(run.metrics, "pairs", "eval")
    if pairs is None:
        return None
    odd = pairs < fewest
    return f"held-out accuracy is of {pairs:.0f} pairs (data.holdout, or a file for data.eval)" if odd else ""


CHECKS = (
    Check(
        "vanished loss",
        0.01,
        f"the newest training accuracy is at least {SOLVED:g} and its loss below {{}} of the first batch's",
        "Nothing is left to learn: too many passes, a learning rate far too high, or pairs that something trivial "
        "tells apart (length, a template's end, a marker). Look at samples before believing it.",
        "arXiv 2310.12036, section 4.2 (deterministic preferences); the share is this project's",
        _vanished_loss,
        needs="a loss to compare with and pairs in training",
    ),
    Check(
        "margin",
        100.0,
        "log-ratios of chosen and rejected responses have moved more than {} nats apart (rewards, of a reward model)",
        "At beta 0.1, 100 nats claim that the chosen response wins with probability 0.99995, which no people's labels "
        "say. Lower the learning rate, raise beta, train less.",
        "arXiv 2310.12036, section 4.2 (margins without bound); the number is this project's",
        _margin_size,
        needs="a margin of pairs",
    ),
    Check(
        "malformed samples",
        0.02,
        "their share rose by more than {}, and by more than sampling would show once in 20 times",
        "The policy pays for reward with text that is none: too far from the reference, or data that teach it.",
        "one-sided z-test of two shares at 5 %; the least rise is this project's",
        _malformed,
        needs="samples with a gold reward that knows malformed text",
    ),
    Check(
        "samples that are text",
        0.5,
        "more than {} of the trained model's samples are malformed, whatever their share was before",
        "There is no policy to speak of: rewards, win rates and KL compare noise with noise. Train the stage before "
        "for longer, or start from a model that can write.",
        "",
        _text_at_all,
        needs="samples with a gold reward that knows malformed text",
    ),
    Check(
        "unfinished samples",
        0.1,
        "more than {} of the trained model's samples reached the token limit",
        "A sum over a cut response is no log-prob of a response: KL is too small. Many of them also mean a policy that "
        "does not end, as one trained on truncated responses or without their end token.",
        "",
        _unfinished,
        needs="samples",
    ),
    Check(
        "number of samples",
        float(FEW),
        "samples are fewer than {}",
        "± is read by the normal distribution's 1.96; Student's t has 2.09 for 20 values, 2.26 for 10 and 12.7 for 2. "
        "Below, reports show none.",
        "Student's t, two-sided 95 %",
        _few_samples,
        needs="samples",
    ),
    Check(
        "number of held-out pairs",
        float(FEW),
        "held-out pairs are fewer than {}",
        "An accuracy of 20 pairs is known to 20 points either way. Below, reports show no interval.",
        "Wilson's interval at one half",
        _few_pairs,
        needs="held-out pairs",
    ),
)
