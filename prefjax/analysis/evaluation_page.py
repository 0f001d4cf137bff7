"""An evaluation as a page: tables of every number with its interval, in Markdown."""

from collections.abc import Mapping
from typing import Any

from prefjax.analysis.evaluation import Estimate
from prefjax.analysis.judgements import WinRate
from prefjax.analysis.report import number, table

_MEANING = {
    "reward_accuracy": "better response has the higher log π − log ref; ties half",
    "policy_ranking_accuracy": "π(better) ≥ π(worse), whole responses (arXiv 2405.19534)",
    "policy_ranking_accuracy_per_token": "π per token: log-probs divided by length",
    "reference_ranking_accuracy": "ref(better) ≥ ref(worse)",
    "reference_ranking_accuracy_per_token": "ref per token",
    "better": "tokens of the better response",
    "worse": "tokens of the worse response",
    "ratio": "better / worse, of the two means",
    "better_is_longer": "share of pairs whose better response is the longer one; ties half",
    "preferred_is_longer": "share of pairs whose response of higher reward is the longer one; ties half",
    "correlation": "Pearson correlation of reward and length, over responses",
    "gap_correlation": "Pearson correlation of their differences within pairs",
    "per_response": "mean of log ref − log π, nats; KL(ref ‖ π) if responses came from ref",
    "per_token": "the same per token, of all tokens together",
}


def evaluation_page(values: Mapping[str, Any], *, title: str, command: str) -> str:
    """Markdown of what `experiments.evaluate` gathers: see there for the keys; those that are absent are left out."""
    parts = [f"# {title}", f"On {values['data']}. Intervals are 95 %. Repeat with\n\n```\n{command}\n```"]
    if (seen := values.get("seen", {})).get("prompts_in_training"):
        parts.append(
            f"**{seen['prompts_in_training']} of the {seen['records']} records have a prompt that was trained on, "
            f"{seen['records_in_training']} with the same responses**: what they say is no news of unseen prompts."
        )
    if "accuracy" in values:
        parts += _of_log_probs(values)
    if values.get("subsets") is not None:
        parts.append(_subsets(values["subsets"]))
    if values.get("win_rate") is not None:
        parts.append(_wins(values["win_rate"], values["against"]))
    steps = [(f"`{name}`", f"{value:.6g}") for name, value in values["metrics"].items()]
    parts.append("## As the training step measures it\n\n" + table(("metric", "value"), steps))
    return "\n\n".join(parts) + "\n"


def _of_log_probs(values: Mapping[str, Any]) -> list[str]:
    parts = ["## Pairs\n\n" + _estimates(values["accuracy"], share=True)]
    margin, length = values["margins"], values["length"]
    if margin["mean"] is not None:
        quantiles = margin["quantiles"]
        cells = [_interval(margin["mean"]), *map(number, quantiles.values())]
        parts.append("## Margins of log π − log ref, nats\n\n" + table(("mean", *quantiles), [cells]))
        if margin["beta"] is not None:
            parts.append(f"Times β = {margin['beta']:g} they are the margins of the implicit reward.")
    parts.append("## Distance from the reference\n\n" + _estimates(values["divergence"]))
    if values.get("sampled_kl") is not None:
        parts.append(
            f"KL(π ‖ ref) = {_interval(values['sampled_kl'])} nats: log π − log ref of {values['sampled_kl'].count} "
            "responses sampled from the policy."
        )
    parts.append("## Length\n\n" + _estimates(length))
    return parts


def _estimates(estimates: Mapping[str, Estimate | None], *, share: bool = False) -> str:
    rows = [
        (_MEANING[name], _interval(estimate, share=share or name.endswith("longer")), estimate.count)
        for name, estimate in estimates.items()
        if estimate is not None
    ]
    return table(("", "value", "of"), rows) if rows else "Nothing to compare here: no two responses of a prompt differ."


def _subsets(subsets: Mapping[str, Any]) -> str:
    names = {"reward_accuracy": "reward accuracy", "policy_ranking_accuracy": "ranking accuracy"}
    names |= {"policy_ranking_accuracy_per_token": "per token", "reference_ranking_accuracy": "reference"}
    rows = [
        (
            name,
            own["reward_accuracy"].count,
            *(_interval(own[key], share=True) for key in names),
            _interval(own["margin"]),
        )
        for name, own in subsets["tables"].items()
    ]
    if subsets["means"]:
        means = [_interval(subsets["means"][key], share=True) for key in names]
        rows.append(("**mean over subsets**", "", *means, ""))
    return f"## By {subsets['field']}\n\n" + table(("subset", "pairs", *names.values(), "margin, nats"), rows)


def _wins(rate: WinRate, against: str) -> str:
    rows = [
        ("wins + half of ties", _interval(rate.win_rate, share=True)),
        ("mean preference", _interval(rate.preference, share=True)),
        ("wins, ties, losses", f"{rate.wins}, {rate.ties}, {rate.losses}"),
    ]
    if rate.consistent is not None:
        rows.append(("same outcome in both orders", _interval(rate.consistent, share=True)))
    return f"## Win rate against {against}\n\n" + table(("", f"{rate.win_rate.count} prompts"), rows)


def _interval(estimate: Estimate | None, *, share: bool = False) -> str:
    if estimate is None:
        return "–"
    show = (lambda x: f"{x:.1%}") if share else number
    return f"{show(estimate.value)} ({show(estimate.low)} to {show(estimate.high)})"
