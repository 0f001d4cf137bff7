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
from absl import app, flags

from experiments.benchmarks import core, lengths
from prefjax.data.encoding import EncodingPolicy
from prefjax.data.statistics import describe
from prefjax.data.trees import TokenTree, is_scored
from prefjax.models.huggingface import read_config

SIDES = {"prefjax": [sys.executable, "-m", "experiments.benchmarks.trl_own"], "TRL": []}
TRL_SCRIPT = Path(__file__).with_name("trl_side") / "run_trl.py"
ROOT = Path(__file__).resolve().parents[2]
REFERENCES = ("live", "precomputed")
TOLERANCE = 1e-4  # of a log-prob sum, relative
BETA, LEARNING_RATE = 0.1, 1e-6
Setting = dict[str, Any]


def _trl(batch: int, sort_by_length: bool = False, attention: str = "sdpa", compile: bool = False) -> Setting:
    return dict(batch=batch, sort_by_length=sort_by_length, attention=attention, compile=compile)


def _own(micro_batch: int, remat: str = "dots", head_chunk: int = 512, attention: str = "auto") -> Setting:
    return dict(micro_batch=micro_batch, remat=remat, head_chunk=head_chunk, attention=attention)


# padding_free is refused by TRL 1.16 (it warns and pads); gradient checkpointing is off, as it only costs time.
TRL_SETTINGS = (
    *(_trl(batch) for batch in (1, 2, 4, 8)),
    *(_trl(batch, sort_by_length=True) for batch in (2, 4)),
    _trl(1, attention="eager"),
    _trl(1, compile=True),
)
OWN_SETTINGS = (
    *(_own(micro_batch) for micro_batch in (512, 1024, 2048)),
    _own(1024, remat="none"),
    _own(1024, head_chunk=128),
)


def request(
    trees: Sequence[TokenTree], setting: Setting, *, model: str, steps: int, threads: int, reference: str, score: bool
) -> dict[str, Any]:
    """What both sides read: everything that must be the same, and the side's own setting."""
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
    }


def run(command: Sequence[str], wanted: dict[str, Any]) -> dict[str, Any]:
    """One side in a process of its own: its result, and `peak_gb`, the largest resident set the kernel saw.

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
        return json.loads(Path(paths[1]).read_text()) | {"peak_gb": usage.ru_maxrss * 1024 / 1e9}


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


def compare_logps(own: Sequence[Sequence[float]], trl: Sequence[Sequence[float]]) -> dict[str, float]:
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
    assert found["largest_relative_difference"] <= TOLERANCE, f"the sides' log-probs differ: {found}"
    return found


def advantage(rows: Sequence[dict[str, Any]], reference: str) -> dict[str, float]:
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


def fastest(rows: Sequence[dict[str, Any]], side: str) -> dict[str, Any]:
    """A side's fastest trial; ValueError when every one failed."""
    tried = [row for row in rows if row["side"] == side and "error" not in row]
    if not tried:
        raise ValueError(f"every setting of {side} failed: {[row['error'] for row in rows if row['side'] == side]}")
    return max(tried, key=lambda row: row["pairs_per_second"])


def table(rows: Sequence[dict[str, Any]], own: dict[str, Any] | None = None) -> str:
    """Markdown, one line per run; with `own`, a run of ours, also how it compares with each of TRL's."""
    columns = ["", "reference", "setting", "pairs", "pairs/s", "CPU s/pair", "peak memory, GB", "start, s"]
    columns += ["prefjax is faster", "with memory of"] if own else []
    lines = []
    for row in rows:
        setting = ", ".join(f"{name} {value}" for name, value in row["setting"].items())
        line = [row["side"], row["reference"], setting, str(row["pairs"])]
        if "error" in row:
            line += ["failed: " + row["error"].strip().splitlines()[-1].replace("|", "/")]
        else:
            line += [f"{row['pairs_per_second']:.3g}", f"{row['cpu_seconds_per_pair']:.3g}"]
            line += [f"{row['peak_gb']:.2f}", f"{row['seconds_before']:.0f}"]
        if own and row["side"] == "TRL" and "error" not in row:
            gain = gains(own, row)
            line += [f"{gain['speed']:.2f}x", f"{gain['memory']:.0%}"]
        line += [""] * (len(columns) - len(line))
        lines.append(line)
    return core.markdown(columns, lines)


def plot(rows: Sequence[dict[str, Any]], title: str) -> matplotlib.figure.Figure:
    """Speed and memory of both sides."""
    figure = matplotlib.figure.Figure(figsize=(10.5, 3.2), dpi=120, layout="constrained")
    names = [f"{row['side']}\n{row['reference']}" for row in rows]
    colours = [{"prefjax": "#0072B2", "TRL": "#8A8F98"}[row["side"]] for row in rows]
    panels = (("pairs_per_second", "pairs per second"), ("peak_gb", "peak memory, GB"))
    for axis, (field, label) in zip(figure.subplots(1, 2), panels, strict=True):
        axis.bar_label(axis.bar(names, [row[field] for row in rows], color=colours), fmt="%.3g")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    return figure


def define_flags() -> None:
    flags.DEFINE_string("data", None, "A preference file or glob.", required=True)
    flags.DEFINE_string("model", None, "A Hugging Face model folder, with its tokenizer.", required=True)
    flags.DEFINE_string("trl_python", None, "Interpreter with trl_side/requirements.txt installed.", required=True)
    core.define_output()
    flags.DEFINE_integer("pairs", 40, "Pairs of one optimiser step.", lower_bound=1)
    flags.DEFINE_integer("trial_pairs", 16, "Pairs of a trial; a multiple of 8. 0 skips trials.", lower_bound=0)
    flags.DEFINE_integer("steps", 3, "Timed steps of the fastest settings.", lower_bound=1)
    flags.DEFINE_integer("threads", 2, "Cores that either side may use.", lower_bound=1)
    flags.DEFINE_multi_enum("references", list(REFERENCES), REFERENCES, "Which; may be repeated.")


def main(_) -> None:
    options = flags.FLAGS
    model = str(Path(options.model).resolve())
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # inherited by both sides
    commands = SIDES | {"TRL": [options.trl_python, str(TRL_SCRIPT)]}
    vocab_size = read_config(model).vocab_size
    trees, source = lengths.load_trees(options.data, model, EncodingPolicy(), vocab_size=vocab_size)
    # TRL scores every token of a completion, the user's turns between the assistant's too: left out on both sides.
    trees = [tree for tree in trees if all(is_scored(response).all() for response in tree.responses)]
    sample = lengths.representative(trees, options.pairs)
    versions, trials = {}, []

    def measure(side: str, trees: list[TokenTree], setting: Setting, reference: str, steps: int, score: bool):
        print(f"{side}, reference {reference}, {len(trees)} pairs, {setting}", flush=True)
        facts = dict(model=model, steps=1 + steps, threads=options.threads, reference=reference, score=score)
        wanted = request(trees, setting, **facts)
        result = run(commands[side], wanted)
        versions[side] = result["versions"]
        row = summary(side, wanted, result)
        print(table([row]).splitlines()[-1], flush=True)
        return row, result["logps"]

    best = {"prefjax": OWN_SETTINGS[1], "TRL": TRL_SETTINGS[0]}
    if options.trial_pairs:
        few = lengths.representative(trees, options.trial_pairs)
        for side, settings in (("TRL", TRL_SETTINGS), ("prefjax", OWN_SETTINGS)):
            for setting in settings:
                try:
                    trials.append(measure(side, few, setting, "live", 1, False)[0])
                except RuntimeError as error:
                    failed = {"side": side, "reference": "live", "setting": setting, "pairs": len(few)}
                    trials.append(failed | {"error": str(error)})
                    print(error, flush=True)
        best = {side: fastest(trials, side)["setting"] for side in SIDES}
    rows, equality = [], {}
    for reference in dict.fromkeys(options.references):
        runs = {side: measure(side, sample, best[side], reference, options.steps, True) for side in SIDES}
        rows += [row for row, _ in runs.values()]
        equality[reference] = compare_logps(*(logps for _, logps in runs.values()))
    over = {reference: advantage(rows, reference) for reference in equality}
    lines = [verdict(reference, over[reference], equality[reference]) for reference in over]
    where = ", ".join(f"{name} {version}" for name, version in versions["TRL"].items())
    text = (
        "\n".join(lines)
        + f"\n\n{source}, {options.pairs} pairs a step, {options.threads} cores.\n{core.machine_line()}.\n"
    )
    text += f"TRL's environment: {where}.\n\n{table(rows)}"
    if trials:
        text += f"\nSettings tried, one step of {options.trial_pairs} pairs after a warm-up step; the last columns "
        text += f"compare prefjax's fastest with each of TRL's:\n\n{table(trials, fastest(trials, 'prefjax'))}"
    facts = dict(source=source, statistics=describe(sample).as_dict(), versions=versions, equality=equality)
    facts |= dict(advantage=over, rows=rows, trials=trials)
    core.write(
        Path(options.output), facts, text, plot(rows, f"{options.pairs} pairs, float32, {options.threads} cores")
    )


if __name__ == "__main__":
    define_flags()
    app.run(main)
