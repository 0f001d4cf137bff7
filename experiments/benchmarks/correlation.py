"""What training makes of records that come together because they begin alike: units of merged rows, or random order.

COMMAND   python -m experiments.benchmarks.correlation --data=data/hh_harmless_base_test.jsonl.gz --model=stories260k
          --output=results/correlation
          --model is the Hugging Face folder that every run starts from, of a model small enough to be trained 4 x
          --seeds times; "" starts from fresh parameters and reads bytes.
TIME      7 CPU minutes, or 4 minutes on two idle CPU cores
PROTOCOL  Two sources: dialogues of the synthetic inn, three judged answers each, and the chats of --data with a judged
          answer at every turn (constructed, "every turn" of experiments.benchmarks.factors). Every seed draws
          --dialogues of each and trains DPO on their pairs, each once, --pairs a step, in layout merged: once with
          `merge_from` at its default, which keeps records that begin alike together, once with 0, every pair in random
          order. Start, pairs, optimiser and number of steps are the same for both. A fifth of the dialogues, by a hash
          of what they begin with, is held out for all seeds: of the first 2 x --dialogues, what both are measured on.
COLUMNS   tokens a step: as both orders put them into rows, each once where a row has it several times; held out: reward
          accuracy and loss after the last step, means over seeds; the line of differences is paired by seed. +-: half
          of a 95 % interval (Student's t).
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
import optax
from absl import flags

import prefjax as px
from experiments.benchmarks import factors, sweep
from experiments.command import start_command
from experiments.tables.harness import mean_interval
from prefjax.analysis import style
from prefjax.data.formats import RecordFormat
from prefjax.data.sources import OpenSource
from prefjax.data.synthetic_trees import dialogues
from prefjax.data.tokenizers import Tokenizer
from prefjax.requirements import Requirements
from prefjax.rows.arrays import RowShape
from prefjax.rows.pipeline import row_dataset
from prefjax.rows.steps import FixedPrompts, FullRows, planned, rows_for_prompts
from prefjax.training.batches import shape_for
from prefjax.training.config import RowsConfig
from prefjax.training.evaluator import Evaluator

MEASURES = ("accuracy", "loss")
ORDERS = {"units": RowsConfig.merge_from, "random": 0}
SMALL = dict(num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_width=8, mlp_width=32)
COLUMNS = (
    "data: {data} | order: {order} | pairs: {pairs:,.0f} | steps: {steps:.0f} | tokens a step: {tokens:,.0f} | "
    "held-out accuracy, %: {accuracy[0]:z.1f} ± {accuracy[1]:.1f} | held-out loss: {loss[0]:.4f} ± {loss[1]:.4f}"
)


class Start(NamedTuple):
    """Where every run begins."""

    model: px.ModelConfig
    params: Any
    tokenizer: Tokenizer


def start_from(folder: str) -> Start:
    """A Hugging Face folder's parameters, or fresh ones of a model too small to learn."""
    if folder:
        policy = px.load(folder, chat_template="plain")
        return Start(policy.model, policy.params, policy.tokenizer)
    tokenizer = px.ByteTokenizer()
    model = px.ModelConfig(vocab_size=tokenizer.vocab_size, **SMALL)
    return Start(model, px.init(model), tokenizer)


@dataclasses.dataclass(frozen=True)
class Trial:
    """How every run is trained. `longest`: tokens of a sequence; a longer one is dropped."""

    pairs: int
    beta: float
    learning_rate: float
    longest: int


def sources(data: str, count: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Name -> rows of a file, each a dialogue with a preference at every answer."""
    yield "the inn's dialogues", list(dialogues(px.synthetic.World(0), count))
    records, _ = OpenSource(data).read(RecordFormat(), progress=False)
    yield (
        Path(data).name.split(".")[0],
        [*factors.turns([own for own in records if own.kind == "pair" and own.is_chat])],
    )


def shapes_of(sets: Sequence[px.data.EncodedTrees], trial: Trial, requires: Requirements) -> dict[str, RowShape]:
    """The shape of every order's runs. Arrays are of one size, that of what needs most: one program is compiled."""
    rows = RowsConfig("merged", "prompts", 2 * trial.longest, prompts_per_step=trial.pairs)
    batchings = [FixedPrompts(trial.pairs, seed, 1) for seed in range(len(sets))]
    given = list(zip(sets, batchings, strict=True))
    found = [
        shape_for(dataclasses.replace(rows, merge_from=merge_from), requires, *one)
        for merge_from in ORDERS.values()
        for one in given
    ]
    largest = {name: max(getattr(one, name) for one in found) for name in ("scored_length", "groups", "entries")}
    shapes = {order: dataclasses.replace(found[0], merge_from=least, **largest) for order, least in ORDERS.items()}
    counts = [
        rows_for_prompts(trees.lengths, shape, batching, units=planned(trees, shape, batching))
        for shape in shapes.values()
        for trees, batching in given
    ]
    return {order: dataclasses.replace(shape, rows=max(counts)) for order, shape in shapes.items()}


def runs(
    sets: Sequence[px.data.EncodedTrees], held_out: px.data.EncodedTrees, trial: Trial, start: Start
) -> Iterator[sweep.Row]:
    """What one run of every order and seed came to."""
    setup = px.Setup(start.model, px.objective("dpo", beta=trial.beta))
    requires = setup.objective.requires
    measured = shape_for(RowsConfig(tokens_per_step=8192), requires, held_out, FullRows(0))
    evaluate, rate = Evaluator(setup, held_out, measured), optax.linear_schedule(0, trial.learning_rate, 10)
    step = px.make_train_step(setup)
    for order, shape in shapes_of(sets, trial, requires).items():
        for seed, trees in enumerate(sets):
            state = px.init_state(setup, start.params, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)))
            tokens = []
            for rows in row_dataset(trees, shape, FixedPrompts(trial.pairs, seed, 1)):
                state, _ = step(state, rows)
                tokens.append(int((rows.segment_ids > 0).sum()))
            found = evaluate(state.params, state.frozen)
            counted = {"pairs": len(trees), "steps": len(tokens), "tokens": float(np.mean(tokens))}
            yield {
                **{"order": order, "seed": seed, **counted},
                **{"accuracy": 100 * found["reward_accuracy"], "loss": found["loss"]},
            }


def measure(options: flags.FlagValues) -> Iterator[sweep.Row]:
    """The rows of result.json."""
    start = start_from(options.model)
    trial = Trial(options.pairs, options.beta, options.learning_rate, options.longest)
    policy = px.EncodingPolicy(max_length=trial.longest)
    encode = functools.partial(px.encode, tokenizer=start.tokenizer, for_objective="dpo", holdout=0.2, policy=policy)
    for name, rows in sources(options.data, 4 * options.dialogues):
        draw = lambda seed, rows=rows: np.random.default_rng(seed).permutation(len(rows))[: options.dialogues]
        sets = [encode([rows[i] for i in draw(seed)])[0] for seed in range(options.seeds)]
        for row in runs(sets, encode(rows[: 2 * options.dialogues])[1], trial, start):
            print(row, flush=True)
            yield {"data": name, **row}


def lines(rows: Sequence[sweep.Row]) -> list[sweep.Row]:
    """Of every source a line per order, and one of what units lead by."""
    found = []
    for data in dict.fromkeys(row["data"] for row in rows):
        own = {order: [row for row in rows if (row["data"], row["order"]) == (data, order)] for order in ORDERS}
        field = lambda order, name, own=own: np.array([row[name] for row in own[order]])
        for order in ORDERS:
            mean = {name: field(order, name).mean() for name in ("pairs", "steps", "tokens")}
            shown = {name: mean_interval(field(order, name)) for name in MEASURES}
            found.append({"data": data, "order": order, **mean, **shown})
        lead = {name: mean_interval(field("units", name) - field("random", name)) for name in MEASURES}
        found.append({"data": data, "order": "units − random", **lead})
    return found


def plot(rows: Sequence[sweep.Row]) -> matplotlib.figure.Figure:
    """What units lead by, seed by seed, and the mean with its interval."""
    shown = [line for line in lines(rows) if line["order"] not in ORDERS]
    figure, axes = sweep.panels(8.4, 2.2, 2)
    titles = ("held-out accuracy, %: units − random", "held-out loss: units − random")
    for axis, name, label in zip(axes, MEASURES, titles, strict=True):
        for place, line in enumerate(shown):
            own = [row for row in rows if row["data"] == line["data"]]
            of = lambda order, own=own, name=name: np.array([row[name] for row in own if row["order"] == order])
            axis.plot(of("units") - of("random"), [place] * (len(own) // 2), "o", color=sweep.GREY, alpha=0.5)
            mean, half = line[name]
            axis.errorbar(mean, place, xerr=half, fmt="D", color=sweep.BLUE, capsize=4)
        axis.axvline(0, color=style.EDGE, linewidth=1, zorder=0)
        axis.set(xlabel=label, ylim=(-0.6, len(shown) - 0.4))
        axis.set_yticks(range(len(shown)), [line["data"] for line in shown])
    return figure


def define_flags() -> None:
    sweep.define_output()
    flags.DEFINE_string("data", None, "A file of pairs of chats, as config.data.train takes it.", required=True)
    flags.DEFINE_string("model", "", "Hugging Face folder to start from; empty: fresh parameters that read bytes.")
    flags.DEFINE_integer("seeds", 6, "Runs of each order and source.", lower_bound=2)
    flags.DEFINE_integer("dialogues", 256, "Dialogues that a seed draws.", lower_bound=1)
    flags.DEFINE_integer("pairs", 32, "Of a step.", lower_bound=1)
    flags.DEFINE_integer("longest", 256, "Tokens of a sequence; longer ones are dropped.", lower_bound=1)
    flags.DEFINE_float("beta", 0.1, "Of the loss.", lower_bound=0)
    flags.DEFINE_float("learning_rate", 5e-4, "After 10 steps of warm-up.", lower_bound=0)


def main(_) -> None:
    options = flags.FLAGS
    rows = list(measure(options))
    facts = {name: options[name].value for name in ("seeds", "dialogues", "pairs", "longest", "beta", "learning_rate")}
    facts["model"] = Path(options.model).name
    said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
    sweep.write(
        Path(options.output), {**facts, "rows": rows}, f"{said}.\n\n{sweep.table(COLUMNS, lines(rows))}", plot(rows)
    )


if __name__ == "__main__":
    define_flags()
    start_command(main)
