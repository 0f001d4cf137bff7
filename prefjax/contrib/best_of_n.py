"""Best-of-n from one pool of samples for each prompt: its reward without bias, its KL, and stopping early (mini-N)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import gammaln

from prefjax.analysis.comparison import read_outcome
from prefjax.analysis.report import number, table, with_error, with_interval
from prefjax.analysis.statistics import Mean, mean, share
from prefjax.analysis.style import BLUE, GRAY, INK, RED
from prefjax.contrib.output import ToolOutput, canvas
from prefjax.contrib.table import Table
from prefjax.contrib.tools import tool


def best_of_n_reward(
    reward: Float[np.ndarray, "N"], sizes: Int[np.ndarray, "S"], gold: Float[np.ndarray, "N"] | None = None
) -> Float[np.ndarray, "S"]:
    """Mean gold reward of the sample with the highest reward among n, over all subsets of size n of N samples.

        sum_i C(i - 1, n - 1) / C(N, n) gold_(i),    samples sorted by reward, lowest first

    Unbiased for n independent samples: the estimator of arXiv 2112.09332, appendix I. Among equal rewards every sample
    is as likely to be taken.

    Args:
      sizes: n of each result, 1 to N.
      gold: what the chosen samples are worth; None: the reward that chooses, so that the result is E[max of n].

    Raises:
      ValueError: an n below 1 or above N.
    """
    count = len(reward)
    if sizes.min() < 1 or sizes.max() > count:
        raise ValueError(f"n must lie in 1 .. {count}, the number of samples, got {sizes.tolist()}")
    worth = reward if gold is None else gold
    # A sample's own worth says nothing among ties: each gets their mean.
    _, place, ties = np.unique(reward, return_inverse=True, return_counts=True)
    worth = (np.bincount(place, worth) / ties)[place][np.argsort(reward, kind="stable")]
    rank, n = np.arange(1, count + 1)[None], sizes[:, None]
    possible = rank >= n
    rank = np.maximum(rank, n)
    log_weight = _log_choose(rank - 1, n - 1) - _log_choose(np.full_like(n, count), n)
    return (np.where(possible, np.exp(log_weight), 0.0) * worth[None]).sum(1)


def _log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    return gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)


def best_of_n_kl(sizes: Int[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
    """log n - (n - 1) / n, nats: KL of best-of-n from the sampling policy, arXiv 2009.01325, appendix G.3.

    Exact where equal rewards have probability 0; of responses, which are discrete, an upper bound (arXiv 2401.01879).
    """
    return np.log(sizes) - (sizes - 1) / sizes


class MiniN(NamedTuple):
    """What one prompt's loop came to: the place of the chosen sample, samples drawn, and whether it was accepted."""

    chosen: int
    drawn: int
    accepted: bool


def mini_n(reward: Float[np.ndarray, "N"], *, size: int, loops: int, threshold: float = 0.0) -> MiniN:
    """Best of mini-N in-loop (arXiv 2510.04087): draw `size` samples, stop if the best so far is above the threshold,
    else draw again, `loops` times at most.

    Args:
      reward: in the order of drawing, with 0 where people would rather have no response (the outside option).
    Raises:
      ValueError: fewer samples than size * loops.
    """
    if size < 1 or loops < 1 or size * loops > len(reward):
        raise ValueError(f"{loops} loops of {size} samples need as many in the pool, which has {len(reward)}")
    for loop in range(1, loops + 1):
        best = int(np.argmax(reward[: loop * size]))
        if reward[best] > threshold:
            return MiniN(best, loop * size, True)
    return MiniN(best, loops * size, False)


@tool()
def best_of_n(
    rows: Table,
    *,
    reward: str = "reward",
    gold: str | None = None,
    sizes: tuple[int, ...] = (),
    runs: tuple[str, ...] = (),
) -> ToolOutput:
    """What the best of n samples is worth, and how far choosing it moves from the policy, for growing n.

    Source: arXiv 2112.09332, appendix I (estimator); arXiv 2009.01325, appendix G.3 (KL); the curve as in
    arXiv 2210.10760, section 2.
    Takes: response columns over the samples of each prompt: `reward`, which chooses, and `gold`, what they are worth
    by another judge. `sizes` of n, powers of two up to the smallest pool if none are given. `runs`: workdirs of
    finished runs whose report has gold rewards and a KL, to draw into the same plot.
    Makes: mean rewards of best-of-n over prompts with their standard errors, against log n - (n - 1) / n nats.
    """
    rewards = rows.lists(reward)
    golds = None if gold is None else rows.lists(gold)
    if golds is not None:
        for row, (a, b) in enumerate(zip(rewards, golds, strict=True), 1):
            if len(a) != len(b):
                raise ValueError(f"row {row}: {len(a)} values of {reward!r} and {len(b)} of {gold!r}")
    smallest = min(map(len, rewards))
    chosen = np.array(sizes or [2**power for power in range(smallest.bit_length())])
    if chosen.min() < 1 or chosen.max() > smallest:
        raise ValueError(f"sizes={sizes} must lie in 1 .. {smallest}: the smallest pool has {smallest} samples")
    kl = best_of_n_kl(chosen)
    curves = {"reward": _over_prompts([best_of_n_reward(own, chosen) for own in rewards])}
    if golds is not None:
        curves["gold"] = _over_prompts(
            [best_of_n_reward(own, chosen, worth) for own, worth in zip(rewards, golds, strict=True)]
        )
    outcomes = [read_outcome(run, "") for run in runs]
    for run, outcome in zip(runs, outcomes, strict=True):
        if outcome.kl is None or outcome.gold_trained is None:
            raise ValueError(f"runs: the report of {run} has no gold reward and KL to draw")
    names = {"reward": reward, "gold": gold}
    cells = [
        (int(n), number(float(nats), 3), *(with_error(curve[place], 3) for curve in curves.values()))
        for place, (n, nats) in enumerate(zip(chosen, kl, strict=True))
    ]
    parts = [table(("n", "KL, nats", *(f"`{names[name]}`" for name in curves)), cells)]
    parts += [f"Means over {len(rewards)} prompts ± standard error; the sample is chosen by `{reward}`."]
    if outcomes:
        lines = [
            (f"`{run}`", with_error(o.kl), with_error(o.gold_trained)) for run, o in zip(runs, outcomes, strict=True)
        ]
        parts.append("## Runs\n\n" + table(("run", "KL, nats", "gold reward"), lines))
    first, last = curves["reward"][0].value, curves["reward"][-1].value
    headline = f"Best of {chosen[-1]}: {reward} {number(last)}, of {chosen[0]} {number(first)}, {kl[-1]:.2f} nats away"
    figure, axis = canvas("Best-of-n: reward against distance")
    for (name, curve), color in zip(curves.items(), (GRAY, BLUE), strict=False):
        heights, errors = [m.value for m in curve], [m.standard_error or 0 for m in curve]
        axis.errorbar(kl, heights, errors, color=color, marker="o", ms=4, lw=1.4, label=names[name])
    for outcome in outcomes:
        axis.plot(outcome.kl.value, outcome.gold_trained.value, "D", color=RED, ms=5)
        axis.annotate(outcome.objective, (outcome.kl.value, outcome.gold_trained.value), fontsize=7, color=INK)
    axis.set_xlabel("KL from the sampling policy, nats")
    axis.set_ylabel("mean reward of the chosen sample")
    axis.legend(frameon=False, fontsize=8)
    values = {"n": chosen, "kl": kl, "prompts": len(rewards), **curves}
    values["runs"] = [{"run": run, "kl": o.kl, "gold": o.gold_trained} for run, o in zip(runs, outcomes, strict=True)]
    return ToolOutput(headline, parts, values, figure)


def _over_prompts(found: Sequence[np.ndarray]) -> list[Mean]:
    return [mean(column) for column in np.stack(found).T]


@tool()
def mini_best_of_n(
    rows: Table,
    *,
    reward: str = "reward",
    size: int = 4,
    loops: int = 4,
    threshold: float = 0.0,
    acceptable: str | None = None,
) -> ToolOutput:
    """Best of mini-N in-loop: samples in small batches until one is good enough, against best-of-N of the same budget.

    Source: arXiv 2510.04087 (abstract: the budget in sequential loops with an early exit); the threshold is yours, its
    calibration could not be read.
    Takes: the response column `reward` over the samples of each prompt in the order of drawing, 0 where people would
    rather have none (the outside option); the response column `acceptable`, 1 or 0 by another judge.
    Makes: samples drawn, prompts with a sample above the threshold, the reward of the chosen sample; with `acceptable`
    also how many of the accepted ones are not acceptable.

    Below the threshold a guardrail gives no response and an accelerator the best one; both are reported.
    """
    rewards = rows.lists(reward)
    try:
        ends = [mini_n(own, size=size, loops=loops, threshold=threshold) for own in rewards]
    except ValueError as error:
        raise ValueError(f"column {reward!r}: {error}") from None
    budget = size * loops
    best = [int(np.argmax(own[:budget])) for own in rewards]
    accepted = np.array([end.accepted for end in ends])
    worth = lambda places: mean(np.array([own[place] for own, place in zip(rewards, places, strict=True)]))
    drawn, chosen, ceiling = (
        mean(np.array([float(end.drawn) for end in ends])),
        worth(e.chosen for e in ends),
        worth(best),
    )
    taken = share(float(accepted.mean()), len(ends))
    cells = [
        ("samples drawn", with_error(drawn), f"{budget}"),
        ("reward of the best one drawn", with_error(chosen, 3), with_error(ceiling, 3)),
        (f"prompts with a sample above {threshold:g}", with_interval(taken), with_interval(taken)),
    ]
    values = {"drawn": drawn, "budget": budget, "reward": chosen, "best_of_n_reward": ceiling, "accepted": taken}
    if acceptable is not None:
        judged = rows.lists(acceptable)
        wrong = {}
        for name, places, kept in (
            ("mini_n", [e.chosen for e in ends], accepted),
            ("best_of_n", best, [True] * len(best)),
        ):
            bad = [1 - own[place] for own, place, keep in zip(judged, places, kept, strict=True) if keep]
            wrong[name] = share(float(np.mean(bad)), len(bad)) if bad else None
        shown = ["none accepted" if part is None else with_interval(part) for part in wrong.values()]
        cells.append(("not acceptable, of the responses given (guardrail)", *shown))
        values["not_acceptable"] = wrong
    parts = [table(("measure", f"{loops} loops of {size}", f"best of {budget}"), cells)]
    headline = f"{drawn.value:.1f} of {budget} samples drawn, {taken.value:.1%} of {taken.count} prompts accepted"
    figure, axis = canvas("Samples drawn until one is good enough")
    counts = [sum(end.drawn == size * loop and end.accepted for end in ends) for loop in range(1, loops + 1)]
    axis.bar(range(1, loops + 1), np.array(counts) / len(ends), color=BLUE, width=0.7)
    axis.bar([loops + 1], [1 - taken.value], color=GRAY, width=0.7)
    axis.set_xticks(range(1, loops + 2), [*(str(size * loop) for loop in range(1, loops + 1)), "never"])
    axis.set_xlabel("samples drawn")
    axis.set_ylabel("share of prompts")
    return ToolOutput(headline, parts, values, figure)
