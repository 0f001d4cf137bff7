"""What training makes of records that come together because they begin alike: units of merged rows, or random order.

COMMAND   python -m experiments.benchmarks.correlation --data=data/hh_harmless_base_test.jsonl.gz
          --output=results/correlation
TIME      about 7 CPU minutes
PROTOCOL  Two sources: the chats of --data with a judged answer at every turn (constructed: beside every answer of a
          prompt stands the next chat's rejected response, so that a text is on one side wherever it stands), a fifth of
          the dialogues held out by a hash of what they begin with; and --dialogues of the synthetic inn, three judged
          answers each, with a quarter as many of its held-out prompts. Alternatives are of the same part. A decoder of
          one layer, over a byte-level BPE of --vocabulary tokens trained on the chats, or bytes at the inn, starts from
          fresh parameters and trains DPO on all pairs, --epochs times, --pairs a step, in layout merged: once with
          `merge_from` at its default, which keeps records that begin alike together, once with 0, every pair in random
          order. Every seed has its own start, and its own order of units and of pairs; all else is the same. What is
          held out is read --readings times, at the same steps of all runs.
COLUMNS   pairs of a unit: pairs of a step over the units that they are of, mean over steps; tokens a step: as both
          orders put them into rows, each once where a row has it several times; held out: accuracy and loss half way
          and after the last step, means over seeds; the line of differences is paired by seed. +-: half of a 95 %
          interval (Student's t).
"""

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
import optax
from absl import flags

import prefjax as px
from experiments.benchmarks import factors, preparing, sweep
from experiments.command import start_command
from experiments.tables.harness import mean_interval
from prefjax.analysis import style
from prefjax.data.formats import RecordFormat
from prefjax.data.sources import OpenSource
from prefjax.data.synthetic_trees import dialogues
from prefjax.data.tokenizers import Tokenizer
from prefjax.data.treatment import is_held_out
from prefjax.rows.arrays import RowShape
from prefjax.rows.pipeline import row_dataset
from prefjax.rows.steps import FixedPrompts, FullRows, sampled
from prefjax.rows.store import TreeSource
from prefjax.rows.units import units_of
from prefjax.training.batches import shape_for
from prefjax.training.config import RowsConfig
from prefjax.training.evaluator import Evaluator

MEASURES = ("accuracy", "loss")
ORDERS = {"units": RowsConfig.merge_from, "random": 0}
LEAD = "units − random"
MODEL = dict(num_layers=1, width=32, num_heads=2, num_kv_heads=1, head_width=16, mlp_width=64)
COLUMNS = (
    "data: {data} | order: {order} | pairs: {pairs:,.0f} | steps: {steps:.0f} | "
    "pairs of a unit in a step: {together:.2f} | tokens a step: {tokens:,.0f} | "
    "held-out accuracy, %, half way: {accuracy_half[0]:z.2f} ± {accuracy_half[1]:.2f} | "
    "at the end: {accuracy[0]:z.2f} ± {accuracy[1]:.2f} | "
    "held-out loss, half way: {loss_half[0]:z.4f} ± {loss_half[1]:.4f} | at the end: {loss[0]:z.4f} ± {loss[1]:.4f}"
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """How every run is trained. `longest`: tokens of a sequence; a longer one is dropped. `readings`: of what is held
    out, at equal distances."""

    seeds: int
    pairs: int
    epochs: int
    learning_rate: float
    longest: int
    readings: int

    def batching(self, seed: int) -> FixedPrompts:
        return FixedPrompts(self.pairs, seed, self.epochs)


class Source(NamedTuple):
    """Rows, each a dialogue with a preference at every answer, and what reads them."""

    name: str
    tokenizer: Tokenizer
    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]


def sources(data: str, count: int, vocabulary: int) -> Iterator[Source]:
    """The dialogues of a file of chats, and the inn's."""
    records, _ = OpenSource(data).read(RecordFormat(), progress=False)
    split: tuple[list[px.Record], list[px.Record]] = ([], [])
    for own in records:
        if own.kind == "pair" and own.is_chat:
            split[is_held_out(dataclasses.replace(own, root=own.prompt[:1]), 0.2)].append(own)
    train, held_out = ([*factors.turns(part, side=1)] for part in split)
    yield Source(Path(data).name.split(".")[0], tokenizer_of(spoken(train), vocabulary), train, held_out)
    inn = functools.partial(dialogues, px.synthetic.World(0))
    yield Source("the inn's dialogues", px.ByteTokenizer(), [*inn(count)], [*inn(count // 4, split="eval")])


def tokenizer_of(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE trained on texts."""
    with tempfile.TemporaryDirectory() as folder:
        preparing.write_tokenizer(Path(folder), texts, vocabulary)
        return px.load_tokenizer(folder)


def spoken(value: Any) -> Iterator[str]:
    """The texts of a row, at every depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from spoken(part)


def shapes_of(trees: TreeSource, trial: Trial, setup: px.Setup) -> dict[str, RowShape]:
    """The shape of each order's rows, the same for all seeds: one program an order."""
    rows = RowsConfig("merged", "prompts", 2 * trial.longest, prompts_per_step=trial.pairs)
    shapes = {}
    for order, merge_from in ORDERS.items():
        own = dataclasses.replace(rows, merge_from=merge_from)
        found = [shape_for(own, setup.objective.requires, trees, trial.batching(seed)) for seed in range(trial.seeds)]
        shapes[order] = max(found, key=lambda shape: shape.rows)
    return shapes


def runs(train: TreeSource, held_out: TreeSource, trial: Trial, setup: px.Setup) -> Iterator[sweep.Row]:
    """What one run of every seed and order came to, and what it read of the held-out pairs on its way."""
    measured = shape_for(RowsConfig(tokens_per_step=8192), setup.objective.requires, held_out, FullRows(0))
    evaluate, step = Evaluator(setup, held_out, measured), px.make_train_step(setup)
    shapes = shapes_of(train, trial, setup)
    units = units_of(train, shapes["units"])
    rate = optax.linear_schedule(0, trial.learning_rate, 10)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    for seed in range(trial.seeds):
        for order, shape in shapes.items():
            steps = [sum(rows, []) for rows in sampled(train, shape, trial.batching(seed)).steps()]
            readings = np.linspace(0, len(steps), trial.readings + 1).round().astype(int)[1:]
            state = px.init_state(setup, px.init(setup.model, seed=seed), optimizer, seed=seed)
            tokens, curve = [], []
            for rows in row_dataset(train, shape, trial.batching(seed)):
                state, _ = step(state, rows)
                tokens.append(int((rows.segment_ids > 0).sum()))
                if len(tokens) in readings:
                    found = evaluate(state.params, state.frozen)
                    at = {"step": len(tokens), "accuracy": 100 * found["reward_accuracy"], "loss": found["loss"]}
                    curve.append(at)
            together = np.mean([len(own) / len(np.unique(units.of[own])) for own in steps])
            counted = {
                "pairs": len(train),
                "steps": len(steps),
                "together": float(together),
                "tokens": float(np.mean(tokens)),
            }
            yield {"order": order, "seed": seed, **counted, "curve": curve}


def measure(options: flags.FlagValues) -> Iterator[sweep.Row]:
    """The rows of result.json."""
    trial = Trial(**{field.name: options[field.name].value for field in dataclasses.fields(Trial)})
    policy = px.EncodingPolicy(max_length=trial.longest)
    for name, tokenizer, *parts in sources(options.data, options.dialogues, options.vocabulary):
        setup = px.Setup(
            px.ModelConfig(vocab_size=tokenizer.vocab_size, **MODEL), px.objective("dpo", beta=options.beta)
        )
        train, held_out = (px.encode(rows, tokenizer, setup.objective, policy=policy)[0] for rows in parts)
        for row in runs(train, held_out, trial, setup):
            print({"data": name, **row}, flush=True)
            yield {"data": name, "held_out": len(held_out), **row}


def of(rows: Sequence[sweep.Row], data: str, order: str, name: str) -> np.ndarray:
    """[seeds, readings] a measure of what is held out."""
    own = [row for row in rows if (row["data"], row["order"]) == (data, order)]
    return np.array([[reading[name] for reading in row["curve"]] for row in own])


def lines(rows: Sequence[sweep.Row]) -> list[sweep.Row]:
    """Of every source a line per order, and one of what units lead by."""
    found = []
    for data in dict.fromkeys(row["data"] for row in rows):
        values = {name: {order: of(rows, data, order, name) for order in ORDERS} for name in MEASURES}
        for order in (*ORDERS, LEAD):
            line = {"data": data, "order": order}
            if order != LEAD:
                own = [row for row in rows if (row["data"], row["order"]) == (data, order)]
                line |= {name: np.mean([row[name] for row in own]) for name in ("pairs", "steps", "together", "tokens")}
            for name, by in values.items():
                curves = by["units"] - by["random"] if order == LEAD else by[order]
                line |= {name: mean_interval(curves[:, -1]), f"{name}_half": mean_interval(curves[:, _half(curves)])}
            found.append(line)
    return found


def _half(curves: np.ndarray) -> int:
    return curves.shape[1] // 2 - 1


def plot(rows: Sequence[sweep.Row]) -> matplotlib.figure.Figure:
    """Held-out accuracy and loss over steps, means of the seeds with their intervals."""
    data = list(dict.fromkeys(row["data"] for row in rows))
    figure, axes = style.panels(8.4, 5.2, 2, len(data))
    for axis, (name, source) in zip(axes, itertools.product(MEASURES, data), strict=True):
        steps = [reading["step"] for reading in next(row for row in rows if row["data"] == source)["curve"]]
        for order, colour, marker in zip(ORDERS, (sweep.BLUE, sweep.GREY), "os", strict=True):
            mean, half = mean_interval(of(rows, source, order, name))
            axis.plot(steps, mean, marker=marker, color=colour, label=order)
            axis.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel="steps", ylabel="held-out accuracy, %" if name == "accuracy" else "held-out loss")
        style.title(axis, source)
        axis.legend(**style.LEGEND)
    return figure


def define_flags() -> None:
    sweep.define_output()
    flags.DEFINE_string("data", None, "A file of pairs of chats, as config.data.train takes it.", required=True)
    flags.DEFINE_integer("dialogues", 256, "Of the inn.", lower_bound=1)
    flags.DEFINE_integer("vocabulary", 1000, "Tokens of the tokenizer, at most.", lower_bound=300)
    flags.DEFINE_integer("seeds", 5, "Runs of each order and source.", lower_bound=2)
    flags.DEFINE_integer("pairs", 16, "Of a step.", lower_bound=1)
    flags.DEFINE_integer("epochs", 2, "Passes over the pairs.", lower_bound=1)
    flags.DEFINE_integer("longest", 192, "Tokens of a sequence; longer ones are dropped.", lower_bound=1)
    flags.DEFINE_integer("readings", 6, "Of the held-out pairs in a run.", lower_bound=2)
    flags.DEFINE_float("beta", 0.1, "Of the loss.", lower_bound=0)
    flags.DEFINE_float("learning_rate", 2e-3, "After 10 steps of warm-up.", lower_bound=0)


def main(_) -> None:
    options = flags.FLAGS
    rows = list(measure(options))
    names = (*(field.name for field in dataclasses.fields(Trial)), "beta", "dialogues", "vocabulary")
    facts = {name: options[name].value for name in names}
    said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
    sweep.write(
        Path(options.output), {**facts, "rows": rows}, f"{said}.\n\n{sweep.table(COLUMNS, lines(rows))}", plot(rows)
    )


if __name__ == "__main__":
    define_flags()
    start_command(main)
