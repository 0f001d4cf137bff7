"""The loop's own manners: it waits for devices only where it must, and shows progress on terminals and elsewhere."""

import io
import re
import time
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from prefjax.training import loop, progress
from prefjax.training.checkpoint import Checkpointer
from prefjax.training.feed import DeviceFeed
from prefjax.training.loop import LoopConfig
from prefjax.training.metrics import TOTALS, Metrics
from prefjax.training.step import TrainState

STEPS, LOG_EVERY = 23, 5


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Feed(DeviceFeed):
    def __init__(self):
        pass

    def __next__(self):
        return None

    def get_state(self):
        return {}


class Checkpoints(Checkpointer):
    def __init__(self, events):
        self.events = events

    def save(self, step, state, position):
        self.events.append(f"save {step}")

    def close(self):
        self.events.append("close")

    def latest_step(self):
        return 0


class Lines(list):
    def write(self, step, split, values):
        self.append((step, split, values))


def run(
    events,
    monkeypatch,
    *,
    start=0,
    steps=STEPS,
    losses=None,
    profile=Path("profile"),
    held_out=0.25,
    skipped=0,
    **cadence,
):
    """A run of steps that cost nothing; `events` gets "step" when one is handed out, "wait" and "fetch" otherwise."""
    monkeypatch.setattr(loop.jax, "block_until_ready", lambda x: events.append("wait") or x)
    combine = Metrics.combine
    monkeypatch.setattr(Metrics, "combine", lambda batches: events.append("fetch") or combine(batches))

    def train_step(state, rows):
        events.append("step")
        one = lambda value: (np.float32(value), np.int32(1))
        loss = 0.5 if losses is None else losses[state.step]
        totals = dict.fromkeys(TOTALS, one(4)) | {"tokens": one(100)}
        metrics = Metrics(dict(loss=one(loss), reward_accuracy=one(0.75), **totals))
        return state.replace(step=state.step + 1), metrics

    lines = Lines()
    parts = loop.Parts(
        train_step=train_step,
        feed=Feed(),
        evaluation=lambda state: {"loss": held_out},
        answer=lambda step, state: None,
        writer=lines,
        checkpointer=Checkpoints(events),
        should_stop=lambda step: False,
        trace=profile,
    )
    config = LoopConfig(steps=steps, log_every=LOG_EVERY, **cadence)
    done = loop.run(config, parts, TrainState(start, None, None, skipped=skipped), start_step=start)
    return done, lines


@pytest.mark.parametrize("terminal", [False, True])
def test_the_host_waits_only_for_the_first_step_and_where_it_logs(terminal, monkeypatch):
    """Everything between two log lines is handed out without a look at any result, with a bar or without."""
    monkeypatch.setattr("sys.stderr", Terminal() if terminal else io.StringIO())
    events = []
    (state, complete), lines = run(events, monkeypatch)
    assert (state.step, complete) == (STEPS, {"loss": 0.25})
    assert [step for step, split, _ in lines if split == "train"] == [5, 10, 15, 20, 23]
    text = "".join(event[0] for event in events if not event.startswith("save"))
    if terminal:  # the bar moves while the loop waits for the logged steps
        assert text == "sw" + "ssss" + "wwwwf" + "ssssswwwwwf" * 3 + "ssswwwf"
    else:
        assert text == "sw" + "ssssf" + "sssssf" * 3 + "sssf"


def test_lines_where_stderr_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    run([], monkeypatch, eval_every=10)
    start, *printed = capsys.readouterr().out.splitlines()
    assert start == " eval 0/23  loss 0.2500"
    assert re.fullmatch(r"first step, compilation included: \d+\.\d s", printed[0])
    assert re.match(
        r" step 5/23  loss 0\.5000  accuracy 0\.750  prompts 4  .* prompts/s  \d+ tokens/s  \d\d:\d\d left$", printed[1]
    )
    assert " left" not in next(line for line in printed if line.startswith(" step 23/23"))
    assert [line.split()[1] for line in printed if line.startswith(" eval")] == ["10/23", "20/23", "23/23"]


def test_a_bar_with_eta_and_speed_on_a_terminal(monkeypatch, capsys):
    """Steps of earlier sessions count as done; the last state shows everything; held-out lines stand above the bar."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    run([], monkeypatch, start=13)
    bar = terminal.getvalue()
    shown = [int(done) for done in re.findall(rf" (\d+)/{STEPS} \[", bar)]
    assert shown[0] == 13 and shown[-1] == STEPS and shown == sorted(shown)
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, .*step/s.*, loss 0\.5000, acc 0\.750, .* prompts/s, \d+ tokens/s\]", bar)
    printed = capsys.readouterr().out
    assert "eval 23/23  loss 0.2500" in printed and "step 15/23" not in printed


def test_nothing_is_left_to_do_but_the_last_evaluation(monkeypatch):
    """A finished run that is continued takes no step, and says it is complete."""
    (state, complete), lines = run(events := [], monkeypatch, start=STEPS)
    assert complete == {"loss": 0.25} and state.step == STEPS and not events
    assert [(step, split) for step, split, _ in lines] == [(STEPS, "eval")]


def test_an_interrupted_evaluation_is_made_up_for(monkeypatch):
    """The step before it is saved, and the next session evaluates there before it goes on."""
    events = []

    def evaluate(parts, state, step, progress):
        if step:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        run(events, monkeypatch, eval_every=10)
    assert events[-2:] == ["save 10", "close"], "written before the program ends"
    monkeypatch.undo()
    _, lines = run([], monkeypatch, start=10, eval_every=10)
    assert [step for step, split, _ in lines if split == "eval"] == [10, 20, STEPS]


def test_held_out_curves_start_where_training_does(monkeypatch):
    """Before the first step, where evaluations are asked for in between; else at the end only."""
    assert [step for step, split, _ in run([], monkeypatch, eval_every=20)[1] if split == "eval"] == [0, 20, STEPS]
    assert [step for step, split, _ in run([], monkeypatch)[1] if split == "eval"] == [STEPS]


def test_a_loss_that_is_not_finite_ends_the_bar_too(monkeypatch):
    bars = []
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setattr(progress, "tqdm", lambda **options: bars.append(tqdm(**options)) or bars[-1])
    with pytest.raises(loop.NonFiniteLossError, match="step 8: loss not finite.*newest checkpoint is step 0"):
        run([], monkeypatch, losses=[0.5] * 7 + [float("nan")] * 20)
    assert bars[0].disable, "closed"


def test_a_loss_that_is_not_finite_is_named_and_not_saved_where_nothing_is_logged(monkeypatch):
    losses = [0.5] * 6 + [float("inf")] * 20
    with pytest.raises(loop.NonFiniteLossError, match="step 7: loss not finite"):
        run(events := [], monkeypatch, losses=losses, checkpoint_every=2)
    assert [event for event in events if event.startswith("save")] == ["save 2", "save 4", "save 6"]


def test_the_last_update_is_looked_at_by_the_evaluation_after_it(monkeypatch):
    with pytest.raises(loop.NonFiniteLossError, match="step 1: the held-out loss not finite"):
        run(events := [], monkeypatch, steps=1, held_out=float("nan"))
    assert "save 1" not in events


def test_updates_that_are_left_out_are_counted_up_to_a_limit(monkeypatch):
    _, lines = run([], monkeypatch, skip_non_finite=2, skipped=2)
    assert lines[0][2]["skipped"] == 2
    with pytest.raises(loop.NonFiniteLossError, match="step 5: 3 updates left out, more than train.skip_non_finite=2"):
        run([], monkeypatch, skip_non_finite=2, skipped=3)


@pytest.mark.parametrize("start,steps,traced", [(0, 23, [2, 3, 4]), (20, 22, [22])])
def test_steps_after_the_first_are_traced_whole(start, steps, traced, monkeypatch, tmp_path, capsys):
    """A run that ends before the last of them still leaves its trace."""
    monkeypatch.setattr("sys.stderr", io.StringIO())
    events = []
    monkeypatch.setattr(loop.jax.profiler, "start_trace", lambda folder, **options: events.append(f"start {folder}"))
    monkeypatch.setattr(loop.jax.profiler, "stop_trace", lambda: events.append("stop"))
    run(events, monkeypatch, start=start, steps=steps, profile=tmp_path, profile_steps=3)
    began, ended = events.index(f"start {tmp_path}"), events.index("stop")
    before = 1 + events[:began].count("step")
    assert [start + before + step for step in range(events[began:ended].count("step"))] == traced
    assert events[began - 1] == "wait", "the trace starts in the middle of a step"
    assert f"a trace from step {traced[0]} on: {tmp_path}" in capsys.readouterr().out


def test_writing_a_trace_is_no_time_of_the_steps(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setattr(loop.jax.profiler, "start_trace", lambda folder, **options: time.sleep(0.4))
    monkeypatch.setattr(loop.jax.profiler, "stop_trace", lambda: time.sleep(0.4))
    _, lines = run([], monkeypatch, profile=tmp_path, profile_steps=1)
    step, split, values = lines[0]
    assert (step, split) == (5, "train")
    assert 4 * values["seconds_per_step"] < 0.4


def test_no_trace_unless_asked_for(monkeypatch):
    monkeypatch.setattr(loop.jax.profiler, "start_trace", lambda folder, **options: pytest.fail("traced"))
    run([], monkeypatch)
    with pytest.raises(ValueError, match="train.profile_steps=-1"):
        LoopConfig(steps=1, profile_steps=-1)
