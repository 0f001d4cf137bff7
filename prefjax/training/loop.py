"""The loop: step, log, evaluate, checkpoint, stop on request. It moves data and time; the mathematics is elsewhere."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from prefjax.interrupts import at_once, saving
from prefjax.options import check_ranges, option
from prefjax.rows.arrays import Rows
from prefjax.training.checkpoint import Checkpointer
from prefjax.training.feed import DeviceFeed
from prefjax.training.metrics import TOTALS, Metrics
from prefjax.training.progress import Clock, Profile, Progress
from prefjax.training.step import TrainState
from prefjax.training.writers import WRITERS, Writer


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length of the run in steps or epochs, of which exactly one is set, and how often what happens, in steps."""

    steps: int = option(0, "length of the run; 0: `epochs` says", at_least=0, decides=False)
    epochs: int = option(0, "passes over the training data; 0: `steps` says", at_least=0, decides=False)
    log_every: int = option(10, "steps between lines of metrics", at_least=1, decides=False)
    eval_every: int = option(
        0,
        "steps between evaluations, of which one comes before the first step; 0: at the end only",
        at_least=0,
        decides=False,
    )
    eval_samples: int = option(
        0,
        "the first so many held-out prompts, which each evaluation answers greedily, in up to 64 tokens, to "
        "samples.jsonl and the report; 0: none",
        at_least=0,
        decides=False,
    )
    checkpoint_every: int = option(0, "steps between checkpoints; 0: at the end only", at_least=0, decides=False)
    keep_checkpoints: int = option(2, "the newest ones that are kept", at_least=1, decides=False)
    profile_steps: int = option(
        0,
        "so many steps after the first, which compiles, are traced by JAX's profiler; 0: none",
        at_least=0,
        decides=False,
    )
    writers: tuple[str, ...] = option(
        (), "where metrics go besides metrics.jsonl, which is always written", choices=WRITERS, decides=False
    )
    skip_non_finite: int = option(
        0,
        "updates of a run that may be left out because their loss or gradient is NaN or infinite, each counted in the "
        "metric `skipped`; one more stops the run, and with 0 the first one does",
        at_least=0,
        decides=False,
    )

    def __post_init__(self):
        check_ranges(self, "train")
        if (self.steps > 0) == (self.epochs > 0):
            raise ValueError(
                f"train.steps={self.steps}, train.epochs={self.epochs}: set exactly one of them above 0, and the other "
                "to 0"
            )
        if len(set(self.writers)) < len(self.writers):
            raise ValueError(f"train.writers={self.writers!r} names a writer twice")


_WATCHED = ("loss", "grad_norm")


class StartCheckError(RuntimeError):
    """The first batch contradicts the objective's closed form at policy == reference."""


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient became NaN or infinite."""


def check_start(metrics: Mapping[str, float], objective_name: str, *, tolerance: float) -> None:
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
        "model training starts from: check reference.init_from against init_from, or that a precomputed "
        "reference was scored with this model, tokenizer and data. Set check_start=False only if the policy "
        "is meant to start elsewhere."
    )


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a loop joins.

    train_step   (state, rows) -> (state, metrics)
    feed         rows on the devices
    evaluation   metrics of the held-out set for a state
    answer       what else is done with a state where it is evaluated, by step
    should_stop  asked after every step; True saves and returns early
    trace        folder where the traces of `LoopConfig.profile_steps` go; the host waits before and after them
    """

    train_step: Callable[[TrainState, Rows], tuple[TrainState, Metrics]]
    feed: DeviceFeed
    evaluation: Callable[[TrainState], Mapping[str, float]]
    answer: Callable[[int, TrainState], None]
    writer: Writer
    checkpointer: Checkpointer
    should_stop: Callable[[int], bool]
    trace: Path


def run(
    config: LoopConfig, parts: Parts, state: TrainState, *, start_step: int
) -> tuple[TrainState, Mapping[str, float] | None]:
    """Trains from `start_step` to `config.steps`; returns the state, and its evaluation if the run is complete.

    An evaluation due at `start_step` itself is done first: held-out curves start where training does, and whoever was
    interrupted in one has it again.

    Steps are handed to the devices without waiting for them; the host waits for the first one, and where metrics are
    logged, evaluated or saved.

    Raises:
      NonFiniteLossError: names the first step of which loss or gradient is NaN or infinite, or the held-out loss. It is
        seen where a step is logged, evaluated or saved; every checkpoint is from before it.
      NonFiniteStateError: see `Checkpointer.save`.
    """
    clock, pending, step, evaluated = Clock(), [], start_step, None
    evaluation_due = lambda step: _due(step, config.eval_every) or step == config.steps
    traced = range(start_step + 2, start_step + 2 + config.profile_steps)
    with (
        Progress(config.steps, start_step) as progress,
        Profile(parts.trace, traced, progress, clock) as profile,
        saving(),
    ):
        if evaluation_due(start_step):
            evaluated = _evaluate(parts, state, start_step, progress)
        for step in range(start_step + 1, config.steps + 1):
            profile.before(step, state)
            rows, first = next(parts.feed), step == start_step + 1
            with (
                jax.profiler.StepTraceAnnotation("train", step_num=step),  # what profilers call a step
                at_once() if first else contextlib.nullcontext(),  # it compiles
            ):
                state, metrics = parts.train_step(state, rows)
                if first:
                    jax.block_until_ready(metrics)
            profile.after(step, state)
            if first:
                progress.first_step(clock.lap())
            pending.append(metrics)
            last, stopping = step == config.steps, parts.should_stop(step)
            save = _due(step, config.checkpoint_every) or last or stopping
            if step % config.log_every == 0 or last or stopping:
                progress.wait(pending)
                combined = Metrics.combine(pending)
                timed = len(pending) - (step - len(pending) == start_step)
                values = _log_values(combined, len(pending), clock.lap(), timed)
                if config.skip_non_finite:
                    values["skipped"] = int(state.skipped)
                _refuse_non_finite(pending, step, values, config, parts.checkpointer)
                pending = []
                parts.writer.write(step, "train", values)
                progress.train(step, values)
            with clock.paused():
                if evaluation_due(step):
                    try:
                        evaluated = _evaluate(parts, state, step, progress)
                    except KeyboardInterrupt:  # the step that was done is saved
                        parts.checkpointer.save(step, state.saved(), parts.feed.get_state())
                        parts.checkpointer.close()
                        raise
                if save:
                    seen = Metrics.combine(pending) if pending else {}
                    _refuse_non_finite(pending, step, seen, config, parts.checkpointer)
                    parts.checkpointer.save(step, state.saved(), parts.feed.get_state())
            if stopping:
                break
    return state, evaluated if step == config.steps else None


def _evaluate(parts: Parts, state: TrainState, step: int, progress: Progress) -> Mapping[str, float]:
    with at_once():
        values = parts.evaluation(state)
        parts.answer(step, state)
    if not math.isfinite(values.get("loss", 0.0)):
        raise NonFiniteLossError(_advice(step, "the held-out loss", parts.checkpointer))
    parts.writer.write(step, "eval", values)
    progress.evaluated(step, values)
    return values


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _log_values(combined: Metrics, steps: int, seconds: float, timed_steps: int) -> dict[str, float]:
    """Means over the steps since the last line; totals become per-step means, and per-second rates."""
    values = dict(combined)
    for name in TOTALS:
        values[name] /= steps
    if not timed_steps:
        return values
    rate = timed_steps / seconds
    values["seconds_per_step"] = 1 / rate
    values["prompts_per_second"] = values["prompts"] * rate
    values["tokens_per_second"] = values["tokens"] * rate
    return values


def _refuse_non_finite(
    pending: Sequence[Metrics], step: int, values: Mapping[str, float], config: LoopConfig, checkpointer: Checkpointer
) -> None:
    """Looks at the steps since the last line, the newest of which is `step`; `values` are their means."""
    skipped = values.get("skipped", 0)
    if skipped > config.skip_non_finite:
        what = f"{skipped:.0f} updates left out, more than train.skip_non_finite={config.skip_non_finite}, as they were"
        raise NonFiniteLossError(_advice(step, what, checkpointer))
    finite = lambda values: all(math.isfinite(values.get(name, 0.0)) for name in _WATCHED)
    if finite(values):
        return
    steps = range(step - len(pending) + 1, step + 1)
    first, metrics = next((pair for pair in zip(steps, pending, strict=True) if not finite(pair[1])), (step, values))
    bad = [name for name in _WATCHED if not math.isfinite(metrics.get(name, 0.0))]
    raise NonFiniteLossError(_advice(first, " and ".join(bad), checkpointer))


def _advice(step: int, what: str, checkpointer: Checkpointer) -> str:
    return (
        f"step {step}: {what} not finite. Lower optimizer.learning_rate, set optimizer.clip_norm, or let single "
        f"updates be left out by train.skip_non_finite; the newest checkpoint is step {checkpointer.latest_step()}"
    )
