"""Writes docs/objectives.md from the registry and its docstrings: python -m docs.write_objectives"""

import inspect
import re
from pathlib import Path

from prefjax.losses import COMPOSITIONS, OBJECTIVES, Objective, objective
from prefjax.losses.wrappers import WRAPPERS

OUTPUT = Path(__file__).with_name("objectives.md")
LABELS = ("Source", "Tokens", "Start", "Elsewhere")
HEADINGS = {
    "pairwise": "Pairs, by one margin against the reference",
    "graded": "Pairs with a graded label",
    "sided": "Pairs, each side against the reference",
    "tokenwise": "Pairs, token by token",
    "transport": "Pairs in sorted order over the batch",
    "reference_free": "Pairs without a reference",
    "unpaired": "Single responses with labels",
    "rewarded": "Single responses with rewards or scores",
    "listwise": "Rankings",
    "reward_models": "Reward models",
    "supervised": "Imitation",
}
INTRODUCTION = """# Objectives

Written by `python -m docs.write_objectives` from the registry and the docstrings; do not edit.

All log-probs are in nats. a_w, a_l (or a) are log-ratios log pi(y|x) - log reference(y|x) of the chosen and the
rejected response, h = a_w - a_l, sp(x) = log(1 + e^x), n the response's tokens, m = logp / n. Of one token, a_t is
the log-ratio, k_t the KL from reference to policy over the vocabulary (K_w and K_l its sums), and m_t the weight that
the data give it. *Tokens* says whether log-probs are summed or averaged over the response's tokens. Reward models read
no log-probs but `features`, what a reward head (`reward_head` of a run) says at the last token of a response: a scalar
reward r, or an embedding v. *Start* is the loss per prompt (per response, where these are judged alone) when policy ==
reference, of a reward model when all rewards are 0; the trainer checks it on the first batch. A *coupled* objective
reads a statistic of the whole batch, which gradient accumulation and sharding leave whole. Names elsewhere are those of
TRL at commit f2cd577 and EasyDeL at 090a03b.
Any of them can be summed, see [Weighted sums](#weighted-sums), and [wrapped](#wrappers); some [carry numbers from step
to step](#numbers-from-step-to-step). What is missing, and why: [objectives_not_shipped.md](objectives_not_shipped.md).
"""
SUMS = """
## Weighted sums

`--config.objective="0.8*dpo + 0.2*bco_pair + 1.0*sft"` is the sum of these losses of every prompt, each times its
weight (1 where there is none; a negative one pushes away). Options are those of each term by its name,
`--config.loss.dpo.beta=2.0`, or stand in the text, `0.8*dpo(beta=2.0) + sft`; a second term of a name is `dpo_2`.
What a config file says of its own objective stays with the term of that name. In Python: `px.objective("0.8*dpo +
sft", dpo={"beta": 2.0})`, or `0.8 * px.objective("dpo", beta=2.0) + px.objective(my_loss)`. The text takes
`module:function` too.

A sum needs what all its terms need, is coupled if a term is, and starts at the sum of their starts (a term that
depends on the model alone counts as what it is on the first batch). A prompt counts that counts for all terms: where
one compares pairs, both responses. `sft` imitates the chosen response of a pair, the highest target of a ranking,
those labelled 1. The loss of every term, without its weight, is logged as `loss_dpo` beside `loss`. Terms that cannot
share a batch are refused by name: labels with scores, a reward model with a policy.

`max(dpo, 0.5*simpo)` and `min(...)` are of every prompt the greatest or the least of these losses, alone or as a term
of a sum (its name there is `max_dpo_simpo`, an option `--config.loss.max_dpo_simpo.dpo.beta=1.0`); one of them may be a
number. `min(dpo, 2.0)` bounds what a wrong label can cost, `max(dpo, 0.1)` leaves alone what has come so far. A
prompt's gradient is that of the loss that is taken. In Python they are `minimum` and `maximum` of
`prefjax.losses.sums`.

| name | sum | what it is |
| --- | --- | --- |
"""


WRAPPED = """
## Wrappers

What papers do to a loss, as `--config.objective="smooth(simpo, rate=0.2)"`, `px.objective("smooth(simpo)", rate=0.2)`,
or in Python as `prefjax.losses.wrappers.smooth(objective)`. A wrapped objective has the options of both, is a term of
sums (its name there is `smooth_simpo`), and can be wrapped again. One that does not fit is refused with the reason.

| wrapper | what it does | options | source |
| --- | --- | --- | --- |
"""

CARRIED = """
## Numbers from step to step

Some objectives carry a few numbers from one step to the next: moving averages, as BCO's running shift and beta-DPO's
M0. A step moves them by its global batch, all micro-batches on all devices, momentum * before + (1 - momentum) * the
batch's, whatever the layout, accumulation and mesh. The train state holds them (`state.carried`), checkpoints save and
prove them with the rest, so that a run goes on bit for bit, metrics show them as `carried_NAME`, and evaluation reads
them and leaves them. An update that is left out (`train.skip_non_finite`) leaves them too. In a sum each term carries
its own, under a wrapper the objective does: `0.8*dpo + 0.4*bco(momentum=0.99) + 1.0*sft` is MPO with the running shift
of its paper, as the `bco` of a pair is half of its two responses'.

Whoever calls such a loss alone gives it what it carries: `r = r.replace(carried=objective.initial_carried())`, then
`objective.loss(r)`, and `objective.update_carried(r)` for the next batch. One of your own says so in its decorator:

```python
import jax.numpy as jnp
from prefjax.losses import Carried, for_pairs
from prefjax.losses.reducers import batch_mean, log_ratio, of_pairs, pairs


def chosen_level(r, **options):
    r = pairs(r, "reference_logp")
    now = batch_mean(log_ratio(r)[:, 0], r.valid[:, 0])
    return {"level": 0.9 * r.carried["level"] + 0.1 * now}


@for_pairs({"reference_logp"}, carries=Carried({"level": 0.0}, chosen_level))
def above_level(r, *, beta: float = 0.1):
    # max(0, 1 - beta (a_w - level)), level the usual a_w of the steps before, nats
    r = pairs(r, "reference_logp")
    above = log_ratio(r)[:, 0] - r.carried["level"]
    return of_pairs(r, jnp.maximum(0, 1 - beta * above))
```

This one reads what was carried alone, and no statistic of its own batch, so it is not coupled. Names and first values
may depend on options: a function of them in place of the mapping, where {} is nothing to carry.

| objective | carries | where |
| --- | --- | --- |
"""


def carried() -> str:
    """The section on what objectives carry."""
    rows = []
    for one in OBJECTIVES.values():
        moving = {"momentum": 0.9} if "momentum" in one.options else {}
        if names := ", ".join(f"`{name}`" for name in one.with_options(moving).initial_carried()):
            where = "by default" if one.initial_carried() else "`momentum` above 0"
            rows.append(f"| `{one.name}` | {names} | {where} |\n")
    return CARRIED + "".join(rows)


def wrapped() -> str:
    """The section on wrappers."""
    rows = []
    for wrapper in WRAPPERS.values():
        first, second = (inspect.cleandoc(wrapper.apply.__doc__) + "\n\n").split("\n\n")[:2]
        what, source = (" ".join(text.split()) for text in (first, second.removeprefix("Source:")))
        options = ", ".join(f"{name}={default!r}" for name, default in wrapper.options.items())
        cells = (f"`{wrapper.name}`", what.replace("|", r"\|"), options, source)
        rows.append("| " + " | ".join(cells) + " |\n")
    return WRAPPED + "".join(rows)


def sums() -> str:
    """The section on sums; a sum is read before it is written, so that none is there that cannot be."""
    rows = [f"| `{name}` | `{objective(one.text)}` | {one.source} |\n" for name, one in COMPOSITIONS.items()]
    return SUMS + "".join(rows)


def facts(objective: Objective) -> dict[str, str]:
    """Name, formula and the labelled lines of the docstring: "Title: formula.", a blank line, then "Source: ..." etc.

    Raises:
        ValueError: the docstring is not in that form.
    """
    first, second = (inspect.cleandoc(objective.apply.__doc__) + "\n\n").split("\n\n")[:2]
    found = re.findall(r"^(\w+): (.*?)(?=^\w+: |\Z)", second, re.MULTILINE | re.DOTALL)
    labelled = {label: " ".join(text.split()).removesuffix(".") for label, text in found}
    title, colon, formula = " ".join(first.split()).partition(": ")
    if not colon or tuple(labelled) != LABELS:
        raise ValueError(
            f"the docstring of {objective.name} must begin 'Title: formula.', then a paragraph with the lines "
            f"{', '.join(LABELS)}; found {', '.join(labelled) or 'none of them'}"
        )
    return {"Title": title, "Formula": formula.removesuffix("."), **labelled}


def inputs(objective: Objective) -> str:
    """The fields it reads besides logp, and what the targets mean to it."""
    requires = objective.requires
    names = [f"{name} ({requires.reads})" if name == "target" else name for name in sorted(requires.inputs)]
    names += [f"{name}, if there" for name in sorted(requires.optional)]
    return ", ".join(names) or "only logp"


def row(objective: Objective) -> str:
    known = facts(objective)
    options = ", ".join(f"{name}={default!r}" for name, default in objective.options.items())
    cells = (
        f"`{objective.name}`<br>{known['Title']}",
        f"{known['Formula']}",
        options,
        known["Source"],
        inputs(objective),
        known["Tokens"],
        "yes" if objective.coupled else "",
        known["Start"],
        known["Elsewhere"],
    )
    escaped = (re.sub(r"([|*_])", r"\\\1", cell) if "`" not in cell else cell.replace("|", r"\|") for cell in cells)
    return "| " + " | ".join(escaped) + " |"


def table() -> str:
    """The whole document."""
    parts = [INTRODUCTION]
    columns = ("objective", "formula", "options", "source", "inputs besides logp", "tokens", "coupled", "start")
    header = "| " + " | ".join((*columns, "elsewhere")) + " |\n|" + " --- |" * 9
    for module, heading in HEADINGS.items():
        rows = [row(o) for o in OBJECTIVES.values() if o.apply.__module__.endswith(f".{module}")]
        parts.append(f"\n## {heading}\n\n{header}\n" + "\n".join(rows) + "\n")
    return "".join([*parts, sums(), wrapped(), carried()])


if __name__ == "__main__":
    OUTPUT.write_text(table())
