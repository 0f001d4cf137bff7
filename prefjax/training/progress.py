"""What a person sees of a run while it goes: a bar or lines, seconds of stepping, and traces of steps on request."""

import contextlib
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

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


class Progress:
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
        self._first_step, self._began = start_step + 1, 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def first_step(self, seconds: float) -> None:
        self.say(f"first step, compilation included: {seconds:.1f} s")
        self._began = time.perf_counter()
        self._count()
        self._bar.unpause()  # compilation says nothing about the time that is left

    def wait(self, pending: Sequence[Any]) -> None:
        """Waits for steps in their order, and counts those the bar has not counted yet."""
        if self._bar.disable:
            return
        for metrics in pending[self._counted :]:
            jax.block_until_ready(metrics)
            self._count()
        self._counted = 0

    def train(self, step: int, values: Mapping[str, float]) -> None:
        if self._bar.disable:
            self.say(_line(step, self._steps, values) + self._left(step))
        self._bar.set_postfix_str(", ".join(form.format(values[name]) for name, form in _POSTFIX if name in values))

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        self.say(_line(step, self._steps, values, "eval"))

    def _left(self, step: int) -> str:
        """The time that is left at the pace since the first step, evaluations and saves included."""
        done, todo = step - self._first_step, self._steps - step
        if not (done and todo):
            return ""
        return f"  {tqdm.format_interval((time.perf_counter() - self._began) / done * todo)} left"

    def _count(self) -> None:
        self._bar.update()
        self._counted += 1

    def say(self, line: str) -> None:
        """A line above the bar, or just a line."""
        if self._bar.disable:
            print(line, flush=True)
        else:
            self._bar.write(line)


class Profile:
    """Traces the steps in `traced`; devices are idle when the trace starts, so that it holds whole steps.

    Starting a trace and writing it stay out of the throughput, as evaluation does; the traced steps themselves count.
    """

    def __init__(self, directory: Path, traced: range, progress: Progress, clock: "Clock"):
        self._directory, self._traced, self._progress, self._clock = directory, traced, progress, clock
        self._running = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._running:  # the run ends inside the traced steps
            self._stop()

    def before(self, step: int, state: Any) -> None:
        if self._traced and step == self._traced[0]:
            jax.block_until_ready(state)
            with self._clock.paused():
                jax.profiler.start_trace(self._directory, profiler_options=_traced())
            self._running = True

    def after(self, step: int, state: Any) -> None:
        if self._running and step == self._traced[-1]:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        with self._clock.paused():
            jax.profiler.stop_trace()
        self._running = False
        self._progress.say(f"a trace from step {self._traced[0]} on: {self._directory}")


def _traced() -> jax.profiler.ProfileOptions:
    """The devices and the host's own marks. Not every call of Python: its tracer hooks into all threads while they run,
    and stood still there, with the interpreter's lock held, in two of the suite's runs."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options


class Clock:
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


def _line(step: int, steps: int, values: Mapping[str, float], split: str = "step") -> str:
    shown = "  ".join(form.format(values[name]) for name, form in _SHOWN if name in values)
    return f"{split:>5} {step}/{steps}  {shown}"
