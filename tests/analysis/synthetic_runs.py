"""Folders of runs as training leaves them, with curves made up: a healthy one, and changes to it."""

import json

import numpy as np

CONFIG = {"seed": 0, "objective": "dpo", "loss": {"beta": 0.1}, "train": {"steps": 200, "log_every": 10}}
START = {"loss": 0.6931, "expected_loss": 0.6931, "start_gap": 0.0}
KL = {"value": 3.0, "standard_error": 0.5, "count": 100}
SAMPLED = {"kl": KL, "unfinished": 3, "garbled_start": 0.05, "garbled_trained": 0.04, "gold_trained": KL}


def metrics(steps=200, shift=0.0, **changed):
    """Lines of a healthy run of 200 steps up to `steps`; changed: name -> f(line number from 0 to 1) for train lines,
    and eval_name for held-out lines."""
    lines = []
    for step in range(10, steps + 1, 10):
        x = step / 200
        train = {
            "loss": 0.69 - 0.3 * x + shift,
            "reward_accuracy": 0.55 + 0.25 * x,
            "reward_ties": 0.0,
            "margin": 3 * x,
            "pairs": 32.0,
            "chosen_logp_change": -0.5 * x,
            "rejected_logp_change": -3.5 * x,
            "kl_estimate": 2 * x,
            "grad_norm": 2.0 + np.sin(step),
            "learning_rate": 1e-3 * (1 - x),
            "fill": 0.95,
            "tokens_per_second": 1000.0,
            "mismatched_log_ratio": 0.1,
        }
        of_train = {name: f for name, f in changed.items() if not name.startswith("eval_")}
        line = train | {name: f(x) for name, f in of_train.items()}
        lines.append({"step": step, "split": "train"} | {n: float(v) for n, v in line.items() if v is not None})
        if step % 50 == 0:
            held_out = {n: v for n, v in train.items() if n not in ("grad_norm", "learning_rate", "tokens_per_second")}
            held_out |= {"pairs": 500.0, "loss": train["loss"] + 0.02}
            held_out |= {name.removeprefix("eval_"): f(x) for name, f in changed.items() if name.startswith("eval_")}
            lines.append({"step": step, "split": "eval"} | {n: float(v) for n, v in held_out.items()})
    return lines


def session(step=200, outcome="finished", commit="abc1234567890"):
    code = {"commit": commit, "dirty": True}
    return {"from_step": 0, "to_step": step, "outcome": outcome, "code": code, "devices": {"count": 8, "kind": "cpu"}}


def write(folder, lines=None, *, config=CONFIG, record=None, result=None):
    """A run's folder; None leaves a file out."""
    folder.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in (metrics() if lines is None else lines))
    (folder / "metrics.jsonl").write_text(text)
    for name, value in (("config", config), ("run", record), ("result", result)):
        if value is not None:
            (folder / f"{name}.json").write_text(json.dumps(value))
    return folder
