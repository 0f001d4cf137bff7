"""prefjax against TRL's DPOTrainer on this machine: the same weights, the same token ids, the same optimiser steps.

COMMAND   python -m experiments.benchmarks.trl --data=hh.jsonl.gz --model=SmolLM2-135M-Instruct \\
              --trl_python=trl_env/bin/python --output=results/trl
          trl_env is an environment with trl_side/requirements.txt; nothing of ours needs torch.
PROTOCOL  --pairs pairs, as near to the set in mean lengths as the best of 256 samples, are tokenised once; both sides
          get the ids. Both train DPO (beta 0.1) in float32 with AdamW (1e-6, no decay, clipping at 1); all pairs are
          one optimiser step, and every step takes the same pairs. Each run is a process of its own on the same
          --threads cores. First every setting in TRL_SETTINGS and OWN_SETTINGS runs on --trial_pairs pairs, one step
          after a warm-up step; the fastest of each side then runs on all pairs, --steps steps after a warm-up step.
          Compilation and warm-up are excluded. Nothing is reported unless the log-prob sums of every chosen and
          rejected response at step 0 agree to 1e-4 of their size.
COLUMNS   pairs/s: pairs over the median step, data loading included; CPU s/pair: processor time of all threads, which a
          busy machine changes less; peak memory: largest resident set of the process, as the kernel counts it; start:
          loading, compilation and the precomputed reference, before the first step.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
from absl import flags

from experiments.benchmarks import lengths, sweep
from experiments.command import start_command
from prefjax.analysis import style
from prefjax.data.encoding import EncodingPolicy
from prefjax.models.huggingface import read_config
from prefjax.rows.lengths import summarize_lengths
from prefjax.rows.trees import TokenTree, is_scored

SIDES = {"prefjax": [sys.executable, "-m", "experiments.benchmarks.trl_own"], "TRL": []}
TRL_SCRIPT = Path(__file__).with_name("trl_side") / "run_trl.py"
ROOT = Path(__file__).resolve().parents[2]
REFERENCES = ("live", "precomputed")
TOLERANCE = 1e-4  # of a log-prob sum, relative
BETA, LEARNING_RATE = 0.1, 1e-6
Setting = dict[str, Any]


def trl_setting(batch: int, sort_by_length: bool = False, attention: str = "sdpa", compile: bool = False) -> Setting:
    return dict(batch=batch, sort_by_length=sort_by_length, attention=attention, compile=compile)


def own_setting(micro_batch: int, remat: str = "dots", head_chunk: int = 512, attention: str = "auto") -> Setting:
    return dict(micro_batch=micro_batch, remat=remat, head_chunk=head_chunk, attention=attention)


# padding_free is refused by TRL 1.16 (it warns and pads); gradient checkpointing is off, as it only costs time.
TRL_SETTINGS = (
    *(trl_setting(batch) for batch in (1, 2, 4, 8)),
    *(trl_setting(batch, sort_by_length=True) for batch in (2, 4)),
    trl_setting(1, attention="eager"),
    trl_setting(1, compile=True),
)
OWN_SETTINGS = (
    *(own_setting(micro_batch) for micro_batch in (512, 1024, 2048)),
    own_setting(1024, remat="none"),
    own_setting(1024, head_chunk=128),
)


COLUMNS = (
    " : {side} | reference: {reference} | setting: {setting} | pairs: {pairs} | pairs/s: {speed} | "
    "CPU s/pair: {cpu_seconds_per_pair:.3g} | peak memory, GB: {peak_gb:.2f} | start, s: {seconds_before:.0f}"
)
COMPARED = " | prefjax is faster: {gains[speed]:.2f}x | with memory of: {gains[memory]:.0%}"


def request(
    trees: Sequence[TokenTree],
    setting: Setting,
    *,
    model: str,
    steps: int,
    threads: int,
    reference: str,
    score: bool,
    device: str = "cpu",
) -> dict[str, Any]:
    """What both sides read: everything that must be the same, and the side's own setting.

    device  "cpu", in float32; "cuda", with activations and matmuls in bfloat16.
    """
    ids = lambda tree: [tree.prompt, *tree.responses]
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return {
        "model": model,
        "pairs": [dict(zip(names, (part.tolist() for part in ids(tree)), strict=True)) for tree in trees],
        "setting": setting,
        "beta": BETA,
        "learning_rate": LEARNING_RATE,
        "reference": reference,
        "steps": steps,
        "threads": threads,
        "score": score,
        "device": device,
    }


def run(command: Sequence[str], wanted: dict[str, Any]) -> dict[str, Any]:
    """One side in a process of its own: its result, and `peak_gb`, the largest resident set the kernel saw, where the
    side does not say what its device held.

    Raises:
      RuntimeError: the process failed; holds the end of its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("request.json", "result.json")]
        Path(paths[0]).write_text(json.dumps(wanted))
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen([*command, *paths], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)  # of this child alone, unlike RUSAGE_CHILDREN
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                log.seek(0)
                raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{log.read()[-2000:]}")
        return {"peak_gb": usage.ru_maxrss * 1024 / 1e9} | json.loads(Path(paths[1]).read_text())


def summary(side: str, wanted: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """One row of a table; the first step is left out."""
    pairs = len(wanted["pairs"])
    timed = result["seconds"][1:]
    return {
        "side": side,
        "reference": wanted["reference"],
        "setting": wanted["setting"],
        "pairs": pairs,
        "pairs_per_second": pairs / statistics.median(timed),
        "cpu_seconds_per_pair": statistics.median(result["cpu_seconds"][1:]) / pairs,
        "peak_gb": result["peak_gb"],
        "seconds_before": result["seconds_before"],
        "seconds": result["seconds"],
        "losses": result["losses"],
    }


def compare_logps(
    own: Sequence[Sequence[float]], trl: Sequence[Sequence[float]], tolerance: float = TOLERANCE
) -> dict[str, float]:
    """Largest differences of the sides' [pair][chosen, rejected] log-prob sums, absolute (nats) and relative.

    Raises:
      AssertionError: they do not agree, so that the sides do different work.
    """
    couples = [(a, b) for pair in zip(own, trl, strict=True) for a, b in zip(*pair, strict=True)]
    found = {
        "responses": len(couples),
        "largest_difference": max(abs(a - b) for a, b in couples),
        "largest_relative_difference": max(abs(a - b) / abs(b) for a, b in couples),
    }
    assert found["largest_relative_difference"] <= tolerance, f"the sides' log-probs differ: {found}"
    return found


def advantage(rows: Sequence[sweep.Row], reference: str) -> dict[str, float]:
    """prefjax over TRL, of one run each with this reference; see `gains`."""
    return gains(*(next(r for r in rows if (r["side"], r["reference"]) == (side, reference)) for side in SIDES))


def gains(own: dict[str, Any], trl: dict[str, Any]) -> dict[str, float]:
    """`speed` in pairs/s and `cpu` in processor time, ours over TRL's, and `memory`, our peak as a share of TRL's."""
    return {
        "speed": own["pairs_per_second"] / trl["pairs_per_second"],
        "cpu": trl["cpu_seconds_per_pair"] / own["cpu_seconds_per_pair"],
        "memory": own["peak_gb"] / trl["peak_gb"],
    }


def verdict(reference: str, gain: dict[str, float], equality: dict[str, float]) -> str:
    """One sentence on one reference."""
    return (
        f"Reference {reference}: {gain['speed']:.2f}x the pairs per second of TRL's fastest setting "
        f"({gain['cpu']:.2f}x by processor time) and {gain['memory']:.0%} of its peak memory; "
        f"largest difference of a log-prob sum {equality['largest_difference']:.1e} nats, "
        f"{equality['largest_relative_difference']:.1e} of its size."
    )


def fastest(rows: Sequence[sweep.Row], side: str) -> dict[str, Any]:
    """A side's fastest trial; ValueError when every one failed."""
    tried = [row for row in rows if row["side"] == side and "error" not in row]
    if not tried:
        raise ValueError(f"every setting of {side} failed: {[row['error'] for row in rows if row['side'] == side]}")
    return max(tried, key=lambda row: row["pairs_per_second"])


def table(rows: Sequence[sweep.Row], own: sweep.Row | None = None) -> str:
    """Markdown, one line per run; with `own`, a run of ours, also how it compares with each of TRL's."""
    lines = []
    for row in rows:
        line = row | {"setting": ", ".join(f"{name} {value}" for name, value in row["setting"].items())}
        if "error" in row:
            line["speed"] = "failed: " + row["error"].strip().splitlines()[-1].replace("|", "/")
        else:
            line["speed"] = f"{row['pairs_per_second']:.3g}"
            line["gains"] = gains(own, row) if own and row["side"] == "TRL" else None
        lines.append(line)
    return sweep.table(COLUMNS + (COMPARED if own else ""), lines)


def plot(rows: Sequence[sweep.Row]) -> matplotlib.figure.Figure:
    """Speed and memory of both sides."""
    figure, axes = sweep.panels(10.5, 3.2, 2)
    names = [f"{row['side']}\n{row['reference']}" for row in rows]
    colours = [{"prefjax": sweep.BLUE, "TRL": sweep.GREY}[row["side"]] for row in rows]
    panels = (("pairs_per_second", "pairs per second"), ("peak_gb", "peak memory, GB"))
    for axis, (field, label) in zip(axes, panels, strict=True):
        axis.bar_label(
            axis.bar(range(len(rows)), [row[field] for row in rows], color=colours), fmt="%.3g", **style.LABEL
        )
        axis.set_ylabel(label)
        axis.set_xticks(range(len(rows)), names)
        style.title(axis, label.capitalize().replace("gb", "GB"))
    return figure


def define_flags() -> None:
    flags.DEFINE_string("data", None, "A preference file or glob.", required=True)
    flags.DEFINE_string("model", None, "A Hugging Face model folder, with its tokenizer.", required=True)
    flags.DEFINE_string("trl_python", None, "Interpreter with trl_side/requirements.txt installed.", required=True)
    sweep.define_output()
    flags.DEFINE_integer("pairs", 40, "Pairs of one optimiser step.", lower_bound=1)
    flags.DEFINE_integer("trial_pairs", 16, "Pairs of a trial; a multiple of 8. 0 skips trials.", lower_bound=0)
    flags.DEFINE_integer("steps", 3, "Timed steps of the fastest settings.", lower_bound=1)
    flags.DEFINE_integer("threads", 2, "Cores that either side may use.", lower_bound=1)
    flags.DEFINE_multi_enum("references", list(REFERENCES), REFERENCES, "Which; may be repeated.")


@dataclasses.dataclass
class Comparison:
    """Runs of both sides with the same model and threads; `versions` is what the sides said they ran."""

    commands: dict[str, list[str]]
    model: str
    threads: int
    versions: dict[str, Any] = dataclasses.field(default_factory=dict)

    def measure(self, side: str, trees: Sequence[TokenTree], setting: Setting, **asked: Any) -> tuple[sweep.Row, Any]:
        """A row of the table, and the log-prob sums where `request` asked for them."""
        print(f"{side}, reference {asked['reference']}, {len(trees)} pairs, {setting}", flush=True)
        wanted = request(trees, setting, model=self.model, threads=self.threads, **asked)
        result = run(self.commands[side], wanted)
        self.versions[side] = result["versions"]
        row = summary(side, wanted, result)
        print(table([row]).splitlines()[-1], flush=True)
        return row, result["logps"]

    def trials(self, trees: Sequence[TokenTree]) -> list[sweep.Row]:
        """Every setting of both sides on a few pairs, one step after a warm-up step; a failed one keeps its error."""
        rows = []
        for side, settings in (("TRL", TRL_SETTINGS), ("prefjax", OWN_SETTINGS)):
            for setting in settings:
                try:
                    rows.append(self.measure(side, trees, setting, reference="live", steps=2, score=False)[0])
                except RuntimeError as error:
                    failed = {"side": side, "reference": "live", "setting": setting, "pairs": len(trees)}
                    rows.append(failed | {"error": str(error)})
                    print(error, flush=True)
        return rows


def main(_) -> None:
    options = flags.FLAGS
    model = str(Path(options.model).resolve())
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # inherited by both sides
    trees, source = lengths.load_trees(options.data, model, EncodingPolicy(), vocab_size=read_config(model).vocab_size)
    # TRL scores every token of a completion, the user's turns between the assistant's too: left out on both sides.
    trees = [tree for tree in trees if all(is_scored(response).all() for response in tree.responses)]
    sample = lengths.representative(trees, options.pairs)
    compared = Comparison(SIDES | {"TRL": [options.trl_python, str(TRL_SCRIPT)]}, model, options.threads)
    trials = compared.trials(lengths.representative(trees, options.trial_pairs)) if options.trial_pairs else []
    best = {"prefjax": OWN_SETTINGS[1], "TRL": TRL_SETTINGS[0]}
    best |= {side: fastest(trials, side)["setting"] for side in SIDES if trials}
    rows, equality = [], {}
    for reference in dict.fromkeys(options.references):
        asked = dict(reference=reference, steps=1 + options.steps, score=True)
        runs = [compared.measure(side, sample, best[side], **asked) for side in SIDES]
        rows += [row for row, _ in runs]
        equality[reference] = compare_logps(*(logps for _, logps in runs))
    over = {reference: advantage(rows, reference) for reference in equality}
    text = "".join(verdict(reference, over[reference], equality[reference]) + "\n" for reference in over)
    text += f"\n{source}, {options.pairs} pairs a step, {options.threads} cores.\n{sweep.machine_line()}.\n"
    where = ", ".join(f"{name} {version}" for name, version in compared.versions["TRL"].items())
    text += f"TRL's environment: {where}.\n\n{table(rows)}"
    if trials:
        text += f"\nSettings tried, one step of {options.trial_pairs} pairs after a warm-up step; the last columns "
        text += f"compare prefjax's fastest with each of TRL's:\n\n{table(trials, fastest(trials, 'prefjax'))}"
    facts = dict(source=source, statistics=summarize_lengths(sample).as_dict(), versions=compared.versions)
    facts |= dict(equality=equality, advantage=over, rows=rows, trials=trials)
    sweep.write(Path(options.output), facts, text, plot(rows))


if __name__ == "__main__":
    define_flags()
    start_command(main)
