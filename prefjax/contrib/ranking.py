"""Ranking accuracy, the loss at which a pair's ranking turns, and the ideal policy's accuracy (arXiv 2405.19534)."""

import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from prefjax.analysis.report import number, table, with_interval
from prefjax.analysis.statistics import Share, share
from prefjax.analysis.style import BLUE, GRAY, RED
from prefjax.contrib.output import ToolOutput, canvas
from prefjax.contrib.table import Table
from prefjax.contrib.tools import tool

UNANIMOUS = 1e-3  # what a proportion of 0 or 1 is moved by: the paper's epsilon, appendix C.4
BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)  # those of the paper's code


def ranked_rightly(logp: Float[np.ndarray, "N K"]) -> Bool[np.ndarray, "N"]:
    """Whether a policy ranks responses as people do: definition 2.3 for pairs, A.8 (the whole ranking) for K > 2.

    Args:
      logp: log pi(y|x), nats, best response first (chosen, rejected); divided by lengths for the normalised accuracy.

    Equal log-probs count as right for pairs and as wrong for longer rankings, as in the definitions.
    """
    if logp.shape[1] < 2:
        raise ValueError("a ranking needs at least two responses")
    if logp.shape[1] == 2:
        return logp[:, 0] >= logp[:, 1]
    return (np.diff(logp, axis=1) < 0).all(axis=1)


def threshold_loss(reference_logp: Float[np.ndarray, "N 2"], beta: float) -> Float[np.ndarray, "N"]:
    """-log sigmoid(beta c), c = log ref(rejected) - log ref(chosen), nats: theorem 4.1.

    The policy ranks a pair rightly if and only if its DPO loss is at most this.
    """
    return np.logaddexp(0, beta * (reference_logp[:, 0] - reference_logp[:, 1]))


def dpo_loss(
    logp: Float[np.ndarray, "N 2"], reference_logp: Float[np.ndarray, "N 2"], beta: float
) -> Float[np.ndarray, "N"]:
    """-log sigmoid(beta h) of every pair, definition 2.2; chosen first."""
    ratios = logp - reference_logp
    return np.logaddexp(0, beta * (ratios[:, 1] - ratios[:, 0]))


def ideally_ranked(
    reference_logp: Float[np.ndarray, "N 2"], proportion: Float[np.ndarray, "N"], beta: float
) -> Bool[np.ndarray, "N"]:
    """Whether the optimum of DPO and RLHF ranks each pair rightly: corollary 3.3, in logs.

        log ref(chosen) - log ref(rejected) + log(alpha / (1 - alpha)) / beta > 0

    Args:
      reference_logp: nats, chosen first; divided by lengths for the normalised one.
      proportion: alpha, the share of raters who prefer the chosen response. 0 and 1 are moved by 1e-3 (appendix C.4).

    The paper's code divides the two summed log-probs where the formula subtracts them; this follows the formula.

    Raises:
      ValueError: a proportion outside [0, 1], or beta not above 0.
    """
    if not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    if ((proportion < 0) | (proportion > 1)).any():
        raise ValueError(f"proportions must lie in [0, 1], got {proportion.min():g} to {proportion.max():g}")
    alpha = np.clip(proportion, UNANIMOUS, 1 - UNANIMOUS)
    return reference_logp[:, 0] - reference_logp[:, 1] + np.log(alpha / (1 - alpha)) / beta > 0


@tool()
def ranking_accuracy(
    rows: Table,
    *,
    policy: str = "policy_logp",
    reference: str | None = None,
    length: str | None = None,
    proportion: str | None = None,
    beta: float = 0.1,
) -> ToolOutput:
    """How often the policy finds the better response likelier, and how often its ideal would.

    Source: arXiv 2405.19534, definitions 2.2, 2.3 and A.8, theorem 4.1, corollary 3.3, appendix C.4.
    Takes: response columns, best response first (chosen, rejected): `policy` and `reference` log-probs of whole
    responses, nats; `length` in tokens; and the column `proportion`, the share of raters who prefer the chosen one.
    `beta` of the DPO loss. Rankings of more than two take `policy` and `length` only.
    Makes: accuracy of sums and per token; with a reference also reward accuracy, pairs whose ranking training turned,
    and each pair's loss beside its threshold; with proportions the idealised accuracy for five betas.

    This is not the reward accuracy that trainers log, which compares log pi - log ref.
    """
    logps = rows.lists(policy)
    lengths = None if length is None else rows.lists(length)
    if any(len(own) != 2 for own in logps):
        if reference is not None or proportion is not None:
            raise ValueError("reference and proportion are read for pairs: give rankings without them")
        return _of_rankings(logps, lengths)
    logp = np.stack(logps)
    per_token = None if lengths is None else rows.pairs(length)
    if per_token is not None and not (per_token > 0).all():
        raise ValueError(f"column {length!r}: lengths must be above 0")
    measured = _accuracies("policy", logp, per_token)
    ideal: list[dict[str, Any]] = []
    parts, values, figure = [], {"pairs": len(logp), "beta": beta}, None
    if per_token is not None:
        shorter = (per_token[:, 0] < per_token[:, 1]) + 0.5 * (per_token[:, 0] == per_token[:, 1])
        measured["the shorter response (ties half)"] = share(float(shorter.mean()), len(logp))
    if reference is not None:
        base = rows.pairs(reference)
        measured |= _accuracies("reference", base, per_token)
        loss, threshold = dpo_loss(logp, base, beta), threshold_loss(base, beta)
        difference = (logp - base)[:, 0] - (logp - base)[:, 1]
        rewarded = (difference > 0) + 0.5 * (difference == 0)
        measured["reward accuracy (ties half)"] = share(float(rewarded.mean()), len(logp))
        wrong = ~ranked_rightly(base)
        if wrong.any():
            turned = share(float(ranked_rightly(logp)[wrong].mean()), int(wrong.sum()))
            measured["of those the reference ranks wrongly, now right"] = turned
            values["median_threshold_of_wrong"] = float(np.median(threshold[wrong]))
            values["median_loss_of_wrong"] = float(np.median(loss[wrong]))
            parts.append(
                f"The median pair that the reference ranks wrongly needs a loss of at most "
                f"{number(values['median_threshold_of_wrong'], 3)} and has {number(values['median_loss_of_wrong'], 3)} "
                f"(beta {beta:g}; log 2 = 0.693 is where training starts)."
            )
        if proportion is not None:
            ideal = _ideal(base, per_token, rows.numbers(proportion))
        figure = _loss_figure(base, loss, ranked_rightly(logp), beta)
    elif proportion is not None:
        raise ValueError("the idealised accuracy needs the reference's log-probs: name their column as reference")
    parts.insert(0, table(("measure", "share of pairs"), [(name, with_interval(s)) for name, s in measured.items()]))
    if ideal:
        names = tuple(ideal[0])
        cells = [(f"{row['beta']:g}", *(with_interval(row[name]) for name in names[1:])) for row in ideal]
        parts.append("## Idealised ranking accuracy\n\n" + table(names, cells))
    values |= {"accuracy": measured, "idealised": ideal}
    return ToolOutput(_headline(measured["policy, sums"], "pairs"), parts, values, figure)


def _of_rankings(logps: list[np.ndarray], lengths: list[np.ndarray] | None) -> ToolOutput:
    def accuracy(rankings):
        return share(float(np.mean([bool(ranked_rightly(own[None])[0]) for own in rankings])), len(rankings))

    measured = {"policy, sums": accuracy(logps)}
    if lengths is not None:
        for row, (own, tokens) in enumerate(zip(logps, lengths, strict=True), 1):
            if own.shape != tokens.shape or not (tokens > 0).all():
                raise ValueError(f"row {row}: {len(own)} log-probs need as many lengths above 0, got {tokens.tolist()}")
        measured["policy, per token"] = accuracy([own / n for own, n in zip(logps, lengths, strict=True)])
    cells = [(name, with_interval(part)) for name, part in measured.items()]
    parts = [table(("measure", "share of rankings that are right as a whole"), cells)]
    values = {"rankings": len(logps), "accuracy": measured}
    return ToolOutput(_headline(measured["policy, sums"], "rankings"), parts, values, None)


def _accuracies(name: str, logp: np.ndarray, length: np.ndarray | None) -> dict[str, Share]:
    found = {f"{name}, sums": share(float(ranked_rightly(logp).mean()), len(logp))}
    if length is not None:
        found[f"{name}, per token"] = share(float(ranked_rightly(logp / length).mean()), len(logp))
    return found


def _ideal(base: np.ndarray, length: np.ndarray | None, proportion: np.ndarray) -> list[dict[str, Any]]:
    rows = []
    for beta in BETAS:
        row: dict[str, Any] = {"beta": beta}
        row["sums"] = share(float(ideally_ranked(base, proportion, beta).mean()), len(base))
        if length is not None:
            row["per token"] = share(float(ideally_ranked(base / length, proportion, beta).mean()), len(base))
        rows.append(row)
    return rows


def _headline(accuracy: Share, of: str) -> str:
    return f"Ranking accuracy {accuracy.value:.1%} of {accuracy.count} {of}"


def _loss_figure(base: np.ndarray, loss: np.ndarray, right: np.ndarray, beta: float):
    ratio = base[:, 1] - base[:, 0]
    figure, axis = canvas("A pair is ranked rightly below the line")
    for mask, color, label in ((right, BLUE, "ranked rightly"), (~right, RED, "ranked wrongly")):
        axis.plot(ratio[mask], loss[mask], "o", ms=2.5, alpha=0.5, mew=0, color=color, label=label)
    places = np.linspace(ratio.min(), ratio.max(), 200)
    axis.plot(places, np.logaddexp(0, -beta * places), color=GRAY, lw=1.6, label="−log σ(βc)")
    axis.axhline(math.log(2), color=GRAY, lw=0.8, ls=(0, (2, 3)), zorder=0)
    axis.set_xlabel("c = log ref(rejected) − log ref(chosen), nats")
    axis.set_ylabel("DPO loss of the pair")
    axis.legend(frameon=False, fontsize=8)
    return figure
