"""The loop: step, log, evaluate, checkpoint, stop on request. It moves data and time; the mathematics is elsewhere."""

import contextlib
import dataclasses
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from prefjax.data.rows import Rows
from prefjax.training import metrics as metrics_lib
from prefjax.training.checkpoint import Checkpointer
from prefjax.training.feed import DeviceFeed
from prefjax.training.step import TrainState
from prefjax.training.writers import Writer, check_names


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length of the run in steps or epochs (exactly one is set), and cadence in steps (0: at the end only).

    profile_steps  so many steps after the first, which compiles, are traced by JAX's profiler; 0: none
    writers        where metrics go besides metrics.jsonl: of `writers.WRITERS`
    """

    steps: int = 0
    epochs: int = 0
    log_every: int = 10
    eval_every: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    profile_steps: int = 0
    writers: tuple[str, ...] = ()

    def __post_init__(self):
        if (self.steps > 0) == (self.epochs > 0):
            raise ValueError(f"train.steps={self.steps}, train.epochs={self.epochs}: set exactly one of them above 0")
        if self.log_every < 1:
            raise ValueError(f"train.log_every={self.log_every} must be at least 1")
        if self.profile_steps < 0:
            raise ValueError(f"train.profile_steps={self.profile_steps} must not be below 0")
        check_names(self.writers)


class StartCheckError(RuntimeError):
    """The first batch contradicts the objective's closed form at policy == reference."""


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient became NaN or infinite."""


class StopRequest:
    """While active, Ctrl-C and SIGTERM ask the loop to stop after the running step; a second one interrupts at once."""

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self):
        def handle(number, frame):
            if self.requested:
                raise KeyboardInterrupt
            self.requested = True
            print(f"{signal.Signals(number).name}: stopping after this step (again: at once)", flush=True)

        self._previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, previous in self._previous.items():
            signal.signal(number, previous)


def check_start(metrics: dict[str, float], objective_name: str, *, tolerance: float) -> None:
    """Compares the first batch with the closed form at policy == reference; the cheapest detector of most bugs.

    Args:
      metrics: of `make_eval_step` on the first batch, before any update.
      tolerance: relative to max(1, |expected loss|).

    Raises:
      StartCheckError: with both numbers and the usual suspects.
    """
    if "expected_loss" not in metrics:
        return
    loss, expected = metrics["loss"], metrics["expected_loss"]
    if abs(loss - expected) <= tolerance * max(1.0, abs(expected)):
        return
    if "start_gap" not in metrics:
        raise StartCheckError(
            f"{objective_name}: the loss of the first batch is {loss:.6f}, but with rewards of 0, as those of a new "
            f"reward head are, it must be {expected:.6f}. Set check_start=False only if it is meant to start elsewhere"
        )
    raise StartCheckError(
        f"{objective_name}: the loss of the first batch is {loss:.6f}, but with policy == reference it must be "
        f"{expected:.6f} (largest |log pi - log ref| {metrics['start_gap']:.3g} nats). The reference is not the "
        "model training starts from: check reference.init_from against model.init_from, or that a precomputed "
        "reference was scored with this model, tokenizer and data. Set train.check_start=False only if the policy "
        "is meant to start elsewhere."
    )


def evaluate(eval_step: Callable, params: Any, reference_params: Any, batches: Iterable[Rows]) -> dict[str, float]:
    """Metrics over all batches, each prompt counted once."""
    parts = [jax.device_get(eval_step(params, reference_params, rows)) for rows in batches]
    return metrics_lib.finish(metrics_lib.combine(parts))


def run(
    config: LoopConfig,
    *,
    train_step: Callable,
    state: TrainState,
    reference_params: Any,
    feed: DeviceFeed,
    evaluation: Callable[[TrainState], dict[str, float]],
    writer: Writer,
    checkpointer: Checkpointer,
    should_stop: Callable[[int], bool],
    start_step: int,
    profile_directory: Path,
) -> tuple[TrainState, bool]:
    """Trains from `start_step` to `config.steps`; returns the state and whether the run is complete.

    Steps are handed to the devices without waiting for them; the host waits for the first one, and where metrics are
    logged, evaluated or saved.

    Args:
      evaluation: metrics of the held-out set for a state.
      should_stop: asked after every step; True saves and returns early.
      profile_directory: where the traces of `config.profile_steps` go; the host waits before and after them.

    Raises:
      NonFiniteLossError: seen when a step is logged; the newest checkpoint is from before it.
    """
    clock, pending, step = _Clock(), [], start_step
    traced = range(start_step + 2, start_step + 2 + config.profile_steps)
    with (
        _Progress(config.steps, start_step) as progress,
        _Profile(profile_directory, traced, progress, clock) as profile,
    ):
        for step in range(start_step + 1, config.steps + 1):
            profile.before(step, state)
            rows = next(feed)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):  # what profilers call a step
                state, metrics = train_step(state, reference_params, rows)
            profile.after(step, state)
            if step == start_step + 1:
                jax.block_until_ready(metrics)
                progress.first_step(clock.lap())
            pending.append(metrics)
            last, stopping = step == config.steps, should_stop(step)
            if step % config.log_every == 0 or last or stopping:
                progress.wait(pending)
                fetched = jax.device_get(pending)
                values = _log_values(fetched, clock.lap(), len(pending) - (step - len(pending) == start_step))
                pending = []
                _refuse_non_finite(values, step, checkpointer)
                writer.write(step, "train", values)
                progress.train(step, values)
            with clock.paused():
                if _due(step, config.eval_every) or last:
                    values = evaluation(state)
                    writer.write(step, "eval", values)
                    progress.evaluated(step, values)
                if _due(step, config.checkpoint_every) or last or stopping:
                    checkpointer.save(step, state, feed.get_state())
            if stopping:
                break
    return state, step == config.steps


class _Progress:
    """What a person sees of a run: on a terminal a bar with ETA and speed, elsewhere a line where metrics are logged.

    The bar counts steps that are done, not those handed out, and only moves where the loop waits anyway.
    """

    def __init__(self, steps: int, start_step: int):
        # None: no bar where stderr is no terminal. smoothing=0: evaluations and saves count in the time that is left.
        hidden = True if jax.process_index() else None
        size = shutil.get_terminal_size()  # 80 x 24 where a terminal says it has no size, on which tqdm shows nothing
        shown = dict(disable=hidden, ncols=size.columns, nrows=size.lines)
        self._bar = tqdm(total=steps, initial=start_step, unit="step", smoothing=0, **shown)
        self._steps, self._counted = steps, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def first_step(self, seconds: float) -> None:
        self.say(f"first step, compilation included: {seconds:.1f} s")
        self._count()
        self._bar.unpause()  # compilation says nothing about the time that is left

    def wait(self, pending: list) -> None:
        """Waits for steps in their order, and counts those the bar has not counted yet."""
        if self._bar.disable:
            return
        for metrics in pending[self._counted :]:
            jax.block_until_ready(metrics)
            self._count()
        self._counted = 0

    def train(self, step: int, values: dict[str, float]) -> None:
        if self._bar.disable:
            self.say(_line(step, self._steps, values))
        self._bar.set_postfix_str(", ".join(form.format(values[name]) for name, form in _POSTFIX if name in values))

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        self.say(_line(step, self._steps, values, "eval"))

    def _count(self) -> None:
        self._bar.update()
        self._counted += 1

    def say(self, line: str) -> None:
        """A line above the bar, or just a line."""
        if self._bar.disable:
            print(line, flush=True)
        else:
            self._bar.write(line)


class _Profile:
    """Traces the steps in `traced`; devices are idle when the trace starts, so that it holds whole steps.

    Starting a trace and writing it stay out of the throughput, as evaluation does; the traced steps themselves count.
    """

    def __init__(self, directory: Path, traced: range, progress: _Progress, clock: "_Clock"):
        self._directory, self._traced, self._progress, self._clock = directory, traced, progress, clock
        self._running = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._running:  # the run ends inside the traced steps
            self._stop()

    def before(self, step: int, state: TrainState) -> None:
        if self._traced and step == self._traced[0]:
            jax.block_until_ready(state)
            with self._clock.paused():
                jax.profiler.start_trace(self._directory)
            self._running = True

    def after(self, step: int, state: TrainState) -> None:
        if self._running and step == self._traced[-1]:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        with self._clock.paused():
            jax.profiler.stop_trace()
        self._running = False
        self._progress.say(f"a trace from step {self._traced[0]} on: {self._directory}")


class _Clock:
    """Seconds of stepping since the last lap; compilation, evaluation and saving stay out of the throughput."""

    def __init__(self):
        self._start = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._start = now - self._start, now
        return seconds

    @contextlib.contextmanager
    def paused(self):
        began = time.perf_counter()
        yield
        self._start += time.perf_counter() - began


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _log_values(pending: list, seconds: float, timed_steps: int) -> dict[str, float]:
    """Means over the steps since the last line; totals become per-step means, and per-second rates."""
    combined = metrics_lib.combine(pending)
    values = metrics_lib.finish(combined)
    for name in metrics_lib.TOTALS:
        values[name] /= len(pending)
    if not timed_steps:
        return values
    rate = timed_steps / seconds
    values["seconds_per_step"] = 1 / rate
    values["prompts_per_second"] = values["prompts"] * rate
    values["tokens_per_second"] = values["tokens"] * rate
    return values


def _refuse_non_finite(values: dict[str, float], step: int, checkpointer: Checkpointer) -> None:
    bad = [name for name in ("loss", "grad_norm") if not math.isfinite(values.get(name, 0.0))]
    if bad:
        raise NonFiniteLossError(
            f"step {step}: {' and '.join(bad)} not finite. Lower optimizer.learning_rate or set optimizer.clip_norm; "
            f"the newest checkpoint is step {checkpointer.latest_step()}"
        )


_SHOWN = (
    ("loss", "loss {:.4f}"),
    ("reward_accuracy", "accuracy {:.3f}"),
    ("margin", "margin {:+.2f}"),
    ("chosen_logp_change", "chosen {:+.2f}"),
    ("rejected_logp_change", "rejected {:+.2f}"),
    ("grad_norm", "grad {:.2f}"),
    ("prompts", "prompts {:.0f}"),
    ("fill", "fill {:.1%}"),
    ("prompts_per_second", "{:.1f} prompts/s"),
    ("tokens_per_second", "{:.0f} tokens/s"),
)
_POSTFIX = (  # short, so that it fits on a line with the bar
    ("loss", "loss {:.4f}"),
    ("reward_accuracy", "acc {:.3f}"),
    ("prompts_per_second", "{:.1f} prompts/s"),
    ("tokens_per_second", "{:.0f} tokens/s"),
)


def _line(step: int, steps: int, values: dict[str, float], split: str = "step") -> str:
    shown = "  ".join(form.format(values[name]) for name, form in _SHOWN if name in values)
    return f"{split:>5} {step}/{steps}  {shown}"
