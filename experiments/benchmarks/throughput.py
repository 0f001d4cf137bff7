"""The paper's table: pairs per second of a train step in every layout, with the reference live or precomputed.

COMMAND   python -m experiments.benchmarks.throughput --data=preferences.jsonl.gz --output=results/throughput
          --data is a preference file, paper:NAME for lengths like one of the six datasets of arXiv 2410.20305
          (capybara, hh, metamath, tldr, helpsteer, ultrafeedback), long_prompt, or dialogues, whose pairs stand at
          every turn of one dialogue, four to each.
TIME      about 6 minutes a repeat on two idle CPU cores: all 10 cells, 12 pairs of HH-RLHF, SmolLM2-135M's shape
PROTOCOL  Random weights of --model's shape; the reference is another model. The same --pairs pairs are one optimiser
          step in every cell: policy forward and backward, live reference forward, AdamW; rows as tight as the layout
          allows, cut into micro-batches of at most --micro_batch positions, already on the device. The pairs are the
          best of 256 random samples at having the mean prompt and response lengths of the whole set. Loss, log-probs
          and gradient norm must agree between all cells (1e-4 in float32) before anything is timed. Compilation and one
          warm-up step are excluded, and so is scoring a precomputed reference, which happens once; cells are timed in
          turns; medians.
COLUMNS   pairs/s; useful tokens/s: P + C + R of the pairs, the same in every layout, per second; padding: share of the
          positions that hold no token; memory: arguments + temporaries that the compiler reserves for the step;
          S_time: pairs/s over that of the layout without sharing; S_tokens: sum of 2P + C + R over sum of P + C + R;
          S_FLOPs: the same ratio of the step's FLOPs (attention over the visible area, the head over response tokens,
          which sharing prompts does not reduce); both of merged rows as if one row held all pairs; efficiency: S_time /
          S_FLOPs. Paper: its S_time on 8 x H100 with 7B models.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

from experiments.benchmarks import lengths, shapes, sweep
from experiments.benchmarks.training import BASELINE, Gains, Training, ideal_gains, total_work
from prefjax.analysis import style
from prefjax.data.encoding import TRUNCATIONS, EncodingPolicy
from prefjax.fit import flops
from prefjax.models import ModelConfig
from prefjax.rows.arrays import LAYOUTS
from prefjax.rows.lengths import summarize_lengths
from prefjax.rows.trees import TokenTree
from prefjax.training.mesh import MeshConfig, make_mesh

COLOURS = {"live": sweep.BLUE, "precomputed": sweep.ORANGE}  # of the references
COLUMNS = (
    "layout: {layout} | reference: {reference} | pairs/s: {pairs_per_second:.3g} | "
    "useful tokens/s: {useful_tokens_per_second:,.0f} | padding: {padding:.1%} | memory, MB: {memory_mb:,.0f} | "
    + sweep.GAINS
)
PAPER_COLUMNS = " | paper, over Flex: {paper[0]:.2f}x | paper, over FA3: {paper[1]:.2f}x"


@dataclasses.dataclass
class Throughput(sweep.Sweep):
    """One row per reference and layout, layouts innermost."""

    trees: list[TokenTree]
    training: Training
    layouts: Sequence[str]
    references: Sequence[str]
    micro_batch: int
    data: str = ""

    @property
    def columns(self):
        """With the paper's numbers only for its datasets."""
        return COLUMNS + (PAPER_COLUMNS if self.data.startswith(lengths.PAPER) else "")

    def cells(self, case):
        scored = "precomputed" in self.references
        table = self.training.reference_table(self.trees, "dpo", self.micro_batch) if scored else None
        make = functools.partial(self.training.cell, self.trees, micro_batch=self.micro_batch, table=table)
        names = itertools.product(self.references, self.layouts)
        return {f"{layout}, {reference}": make(layout, reference) for reference, layout in names}

    def rows(self, case, cells):
        timed = [cell | speeds(self.training.model, self.trees, cell) for cell in cells.values()]
        ideal = {layout: ideal_gains(self.training.model, self.trees, layout) for layout in self.layouts}
        return compare(timed, ideal)

    def lines(self, rows):
        """The paper's reference is live in every number."""
        paper = lambda row: paper_gains(self.data, row["layout"]) if row["reference"] == "live" else None
        return [row | {"paper": paper(row)} for row in rows]

    def plot(self, rows):
        """Pairs per second, one group of bars per layout."""
        figure, (axis,) = sweep.panels(7.2, 3.4)
        layouts, references = (list(dict.fromkeys(row[name] for row in rows)) for name in ("layout", "reference"))
        width = 0.8 / len(references)
        for k, reference in enumerate(references):
            mine = [row for row in rows if row["reference"] == reference]
            places = [layouts.index(row["layout"]) + (k - (len(references) - 1) / 2) * width for row in mine]
            look = dict(color=COLOURS[reference], label=reference)
            axis.bar_label(
                axis.bar(places, [row["pairs_per_second"] for row in mine], 0.95 * width, **look),
                fmt="%.3g",
                **style.LABEL,
            )
        axis.set(ylabel="pairs per second")
        style.title(axis, f"Pairs per second: {Path(self.data).name.split('.')[0].replace('_', ' ')}")
        axis.set_xticks(range(len(layouts)), layouts)
        axis.legend(title="reference", **style.LEGEND)
        return figure


def speeds(model: ModelConfig, trees: Sequence[TokenTree], cell: sweep.Row) -> dict[str, float]:
    """What a cell does per second."""
    work = total_work(trees, cell["layout"])
    done = {
        "pairs": len(trees),
        "useful_tokens": total_work(trees, "shared").tokens,
        "needed_gflops": flops.step_flops(model, work, live_reference=cell["reference"] == "live") / 1e9,
    }
    return {f"{name}_per_second": amount / cell["seconds"].median for name, amount in done.items()}


def compare(rows: list[sweep.Row], ideal: Mapping[str, Gains]) -> list[sweep.Row]:
    """Adds S_time, S_tokens, S_FLOPs and efficiency where the layout without sharing was measured too.

    Args:
      ideal: by layout.
    """
    speed = {(row["layout"], row["reference"]): row["pairs_per_second"] for row in rows}
    base = lambda row: speed.get((BASELINE.get(row["layout"]), row["reference"]))
    gains = lambda row: ideal[row["layout"]].against(row["pairs_per_second"] / base(row))
    return [row | (gains(row) if base(row) else {}) for row in rows]


def paper_gains(data: str, layout: str) -> tuple[float, float] | None:
    """The paper's S_time over FlexAttention and over FlashAttention-3, where `data` is like one of its datasets."""
    table = lengths.published()["datasets"]["packed" if layout == "shared_packed" else "unpacked"]
    name = data.removeprefix(lengths.PAPER)
    if layout not in ("shared", "shared_packed") or name == data:
        return None
    speed = table[name]
    return speed["flex_shared"] / speed["flex"], speed["flex_shared"] / speed["fa3"]


def define_flags() -> None:
    flags.DEFINE_string("data", None, "A preference file, paper:NAME, long_prompt or dialogues.", required=True)
    shapes.define_flags()
    flags.DEFINE_string("tokenizer", "byte", "byte, or a Hugging Face tokenizer folder; for files.")
    flags.DEFINE_integer("pairs", 12, "Pairs of one step.", lower_bound=1)
    flags.DEFINE_integer(
        "micro_batch", 5120, "Positions per device and forward pass; the rest accumulates.", lower_bound=1
    )
    flags.DEFINE_multi_enum("layouts", list(LAYOUTS), LAYOUTS, "Which layouts; may be repeated.")
    flags.DEFINE_multi_enum("references", list(COLOURS), list(COLOURS), "Which; may be repeated.")
    flags.DEFINE_integer("max_length", 2048, "Of a prompt with its longest response, in tokens.")
    flags.DEFINE_integer("max_prompt_length", None, "Of a prompt, in tokens.")
    flags.DEFINE_integer("max_response_length", None, "Of a response, in tokens.")
    flags.DEFINE_enum("truncation", "drop", TRUNCATIONS, "What happens to longer ones.")
    flags.DEFINE_integer("seed", 0, "Of the sample of pairs.", lower_bound=0)


def declare(options: flags.FlagValues) -> Throughput:
    model, data = shapes.chosen(options), options.data
    limits = (options.max_length, options.max_prompt_length, options.max_response_length)
    policy = EncodingPolicy(*limits, options.truncation)
    trees, source = lengths.load_trees(data, options.tokenizer, policy, vocab_size=model.vocab_size)
    whole_dialogues = data == lengths.DIALOGUES
    sample = trees[: options.pairs] if whole_dialogues else lengths.representative(trees, options.pairs, options.seed)
    whole, taken = summarize_lengths(trees), summarize_lengths(sample)
    print(f"{source}\n\n{whole}\n\nthe {len(sample)} pairs of a step\n\n{taken}\n", flush=True)
    mean = lambda statistics, node: f"{statistics.lengths[node].mean:.0f}"
    text = (
        f"{source} (max_length {policy.max_length}, {policy.truncation}). {len(sample)} pairs a step, prompts of "
        f"{mean(taken, 'prompt')} and responses of {mean(taken, 'response')} tokens on average (whole set: "
        f"{mean(whole, 'prompt')} and {mean(whole, 'response')}, S_tokens {whole.token_saving:.2f}).\n"
    )
    facts = {"data": data, "source": source, "policy": policy, "pairs": len(sample), "micro_batch": options.micro_batch}
    facts["statistics"] = {"whole": whole.as_dict(), "step": taken.as_dict()}
    return Throughput(
        sample,
        Training(model, make_mesh(MeshConfig())),
        list(dict.fromkeys(options.layouts)),
        list(dict.fromkeys(options.references)),
        options.micro_batch,
        data=data,
        **shapes.shown(options, text, **facts),
    )


if __name__ == "__main__":
    sweep.main(define_flags, declare)
