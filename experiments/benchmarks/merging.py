"""Pairs that share prefixes across records: a train step on merged rows, and on whole rankings, against shared prompts.

COMMAND   python -m experiments.benchmarks.merging --data='data/*.jsonl.gz' --tokenizer=SmolLM2-135M-Instruct
          --output=results/merging
          --data as of experiments.benchmarks.factors, whose views of a file (--view) are the cases; or gsm8k_like and
          ultrafeedback_like, drawn rankings of four.
TIME      10 minutes a file and repeat on two CPU cores, SmolLM2-135M's shape
PROTOCOL  A step holds neighbours of a file, whole rankings, dialogues or solutions, --pairs or a few more: those, of
          all such runs of records, that are nearest to the whole in tokens of prompts, of responses and merged.
          Records longer than --max_length are left out. As in experiments.benchmarks.throughput: `dpo` with a live
          reference, random weights of --model's shape, tight rows in micro-batches of at most --micro_batch positions,
          both layouts proven equal in loss and gradient norm before timing, compilation and one step excluded, timed in
          turns, medians. Where pairs are those of rankings, `all_pairs(dpo)` is a third cell, of one group of responses
          a ranking (layout shared_packed), each weighing as many as its pairs: the same loss and gradient.
COLUMNS   pairs/s in layout shared_packed and merged; of merged over shared_packed: S_time, S_tokens and S_FLOPs, the
          ratio of tokens and of the step's FLOPs as if one row held all, and efficiency, S_time / S_FLOPs. "group" are
          the same of the rankings over the pairs in shared_packed.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments.benchmarks import factors, shapes, sweep
from experiments.benchmarks.lengths import Lognormal, draw_trees
from experiments.benchmarks.training import Training, total_work, work_saved
from prefjax.data.encoding import EncodingPolicy, encode_all
from prefjax.data.formats import RecordFormat
from prefjax.data.records import Record
from prefjax.data.sources import OpenSource
from prefjax.data.tokenizers import Tokenizer, load_tokenizer
from prefjax.data.transforms import adapt
from prefjax.requirements import Requirements
from prefjax.rows.trees import TokenTree
from prefjax.training.mesh import MeshConfig, make_mesh

# Medians and sigmas of the files of these names, in SmolLM2's tokens: P + C + R, P / C.
DRAWN = {
    "gsm8k_like": Lognormal(326, 88 / 119, 0.26, 0.41),
    "ultrafeedback_like": Lognormal(530, 112 / 207, 1.1, 0.78),
}
VIEWS = ("all pairs", "every turn", "every step", "records")
COLUMNS = (
    "data: {data} | view: {view} | pairs: {pairs} | shared, pairs/s: {speeds[shared_packed]:.3g} | "
    "merged, pairs/s: {speeds[merged]:.3g} | "
    + sweep.GAINS
    + " | group, pairs/s: {speeds[group]:.3g} | group, S_time: {group[s_time]:.2f}x | "
    "group, S_FLOPs: {group[s_flops]:.2f} | group, efficiency: {group[efficiency]:.3f}"
)


class Case(NamedTuple):
    """One step's pairs, and the rankings that they are of."""

    data: str
    view: str
    pairs: list[TokenTree]
    rankings: list[TokenTree]


@dataclasses.dataclass
class Merging(sweep.Sweep):
    """One case, and one row, per view of a file."""

    training: Training
    micro_batch: int
    cases: Sequence[Case]

    columns = COLUMNS

    def cells(self, case):
        make = functools.partial(self.training.cell, reference="live", micro_batch=self.micro_batch)
        found = {layout: make(case.pairs, layout) for layout in ("shared_packed", "merged")}
        if case.rankings:
            found["group"] = make(case.rankings, "shared_packed", objective="all_pairs(dpo)")
        return {name: cell._replace(run=functools.partial(_computed, cell)) for name, cell in found.items()}

    def rows(self, case, cells):
        seconds = {name: cell["seconds"].median for name, cell in cells.items()}
        before = total_work(case.pairs, "shared")

        def over_shared(name, after):
            gains = work_saved(self.training.model, before, after)
            return gains.against(seconds["shared_packed"] / seconds[name])

        group = over_shared("group", total_work(case.rankings, "shared")) if case.rankings else None
        return [
            {
                **{"data": case.data, "view": case.view, "pairs": len(case.pairs), "cells": cells},
                "speeds": {name: len(case.pairs) / time for name, time in seconds.items()},
                **over_shared("merged", total_work(case.pairs, "merged")),
                "group": group,
            }
        ]

    def plot(self, rows):
        """S_time of both, and what the FLOPs allow."""
        figure, (axis,) = sweep.panels(9.6, 1.2 + 0.5 * len(rows))
        places = np.arange(len(rows))
        for shift, label, colour, gains in (
            (-0.18, "merged rows", sweep.BLUE, rows),
            (0.18, "one group a ranking", sweep.ORANGE, [row["group"] for row in rows]),
        ):
            there = [i for i, own in enumerate(gains) if own]
            axis.barh(places[there] + shift, [gains[i]["s_time"] for i in there], 0.34, color=colour, label=label)
            ideal = [gains[i]["s_flops"] for i in there]
            axis.plot(ideal, places[there] + shift, "|", color="black", markersize=12)
        axis.set(xlabel="pairs/s over those of shared_packed (line: as FLOPs)")
        axis.set_yticks(places, [f"{row['data']}, {row['view']}" for row in rows])
        axis.invert_yaxis()
        axis.legend(frameon=False)
        return figure


def _computed(cell: sweep.Cell) -> dict[str, float]:
    """What pairs and rankings agree on; the other metrics are means over prompts, which are fewer of rankings."""
    found = cell.run()
    return {name: found[name] for name in ("loss", "grad_norm")}


def exploded(ranking: TokenTree) -> list[TokenTree]:
    """Every ordered pair of a ranking's responses."""
    better = itertools.permutations(range(len(ranking.responses)), 2)
    targets = np.array([1, 0], np.float32)
    return [
        dataclasses.replace(ranking, responses=(ranking.responses[i], ranking.responses[j]), targets=targets)
        for i, j in better
        if ranking.targets[i] > ranking.targets[j]
    ]


def together(trees: Sequence[TokenTree]) -> Iterator[list[TokenTree]]:
    """Neighbours whose prompts begin with that of the first of them."""
    own: list[TokenTree] = []
    for tree in trees:
        first = own[0].prompt if own else tree.prompt
        if own and not np.array_equal(tree.prompt[: len(first)], first):
            yield own
            own = []
        own.append(tree)
    if own:
        yield own


def representative(groups: Sequence[list[TokenTree]], pairs: int) -> range:
    """Those neighbouring groups, of so many pairs or a few more, that are nearest to all in their tokens a pair."""

    def tokens(own: Sequence[list[TokenTree]]) -> np.ndarray:
        trees = [*itertools.chain(*own)]
        prompts, nodes = sum(len(tree.prompt) for tree in trees), factors.factors(trees)["nodes"]
        return np.log(np.array([prompts, sum(len(b) for t in trees for b in t.branches), nodes]) / len(trees))

    counts = np.cumsum([0, *map(len, groups)])
    starts = range(int(np.searchsorted(counts, counts[-1] - pairs, side="right")))
    runs = [range(i, int(np.searchsorted(counts, counts[i] + pairs))) for i in starts]
    if not runs:
        raise ValueError(f"pairs={pairs}, but only {counts[-1]} are there: lower it")
    # A few more are allowed, not the whole of a ranking of nine.
    runs = [run for run in runs if counts[run.stop] - counts[run.start] <= 1.5 * pairs] or runs
    whole, place = tokens(groups), lambda run: groups[run.start : run.stop]
    return min(runs, key=lambda run: float(np.abs(tokens(place(run)) - whole).sum()))


def make_case(data: str, view: str, trees: Sequence[TokenTree], pairs: int) -> Case:
    """The pairs of one step; those of rankings where `trees` are such."""
    ranked = view == "all pairs"
    groups = [*map(exploded, trees)] if ranked else [*together(trees)]
    rankings = [tree for tree, own in zip(trees, groups, strict=True) if own] if ranked else []
    groups = [own for own in groups if own]
    run = representative(groups, pairs)
    numbered = lambda own: [dataclasses.replace(tree, example_id=i) for i, tree in enumerate(own)]
    chosen = [*itertools.chain(*(groups[i] for i in run))]
    share = len(run) / len(chosen)  # a loss is the mean over prompts, of which there are fewer
    weigh = lambda i: dataclasses.replace(rankings[i], weight=len(groups[i]) * share)
    return Case(data, view, numbered(chosen), numbered([weigh(i) for i in run]) if ranked else [])


def cases_of(name: str, tokenizer: Tokenizer, policy: EncodingPolicy, pairs: int, wanted: Sequence[str]) -> list[Case]:
    """The cases of a file or named dataset."""
    records, _ = OpenSource(name).read(RecordFormat(), progress=False)
    ranked = [record for record in records if record.kind == "ranked"]
    found = []
    for view, own in factors.views(records):
        if view not in wanted:
            continue
        own = ranked if view == "all pairs" else adapt(own, Requirements(2))[0]
        found.append(make_case(Path(name).name.split(".")[0], view, _encoded(own, tokenizer, policy), pairs))
    return found


def _encoded(records: Sequence[Record], tokenizer: Tokenizer, policy: EncodingPolicy) -> list[TokenTree]:
    return encode_all(list(records), tokenizer, policy, progress=False)[0]


def define_flags() -> None:
    flags.DEFINE_list("data", None, "What config.data.train takes; globs of files too; or drawn.", required=True)
    shapes.define_flags()
    flags.DEFINE_string("tokenizer", "byte", "byte, or a Hugging Face tokenizer folder; for files.")
    flags.DEFINE_multi_enum("view", list(VIEWS), list(VIEWS), "Which views; may be repeated.")
    flags.DEFINE_integer(
        "pairs", 12, "Pairs of one step; whole rankings, dialogues or solutions have a few more.", lower_bound=1
    )
    flags.DEFINE_integer("micro_batch", 2560, "Positions per forward pass; the rest accumulates.", lower_bound=1)
    flags.DEFINE_integer("max_length", 1024, "Of a prompt with its longest response, in tokens.", lower_bound=1)


def declare(options: flags.FlagValues) -> Merging:
    model, policy = shapes.chosen(options), EncodingPolicy(options.max_length, special_text="parse")
    cases = []
    for given in options.data:
        if given in DRAWN:
            trees = draw_trees(DRAWN[given], 256, policy, vocab_size=model.vocab_size, responses=4)
            cases.append(make_case(given, "all pairs", trees, options.pairs))
            continue
        tokenizer = load_tokenizer(options.tokenizer, vocab_size=model.vocab_size)
        for path in OpenSource(given).files or [given]:
            cases += cases_of(str(path), tokenizer, policy, options.pairs, options.view)
    if not cases:
        raise ValueError(f"data={','.join(options.data)} has none of the views {', '.join(options.view)}: add others")
    facts = {"policy": policy, "micro_batch": options.micro_batch}
    training = Training(model, make_mesh(MeshConfig()))
    return Merging(training, options.micro_batch, cases, **shapes.shown(options, **facts))


if __name__ == "__main__":
    sweep.main(define_flags, declare)
