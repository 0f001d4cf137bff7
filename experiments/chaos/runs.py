"""Runs that are killed, interrupted, damaged on disk and short of disk: each must end as one that was left alone."""

import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from experiments.chaos.tally import DIFFERENT, FAULT, FINE, REFUSED, Tally, damage_a_file
from prefjax.interrupts import STATUS
from prefjax.policies.evaluate import evaluate_run
from prefjax.training.checkpoint import load_proof

ROOT = Path(__file__).resolve().parents[2]
_TINY = (
    *("--config.model.num_layers=1", "--config.model.width=16", "--config.model.head_width=8"),
    *("--config.model.mlp_width=16", "--config.rows.tokens_per_step=2048", "--config.sampling.prompts=4"),
    *("--config.data.world.train_examples=64", "--config.data.world.eval_examples=16"),
    *("--config.sft.train.steps=4", "--config.sft.optimizer.warmup_steps=1", "--config.sft.train.checkpoint_every=2"),
    *("--config.train.steps=8", "--config.optimizer.warmup_steps=1", "--config.train.checkpoint_every=2"),
    *("--config.train.eval_every=4", "--config.sampling.max_new_tokens=8", "--config.train.log_every=2"),
)
_ANSWER = 10  # seconds in which a signal must be answered
_LONGEST = 600  # seconds that any run may take


def state_of(workdir: Path) -> dict[str, str]:
    """Fingerprints of the newest checkpoint's arrays; empty where there is none."""
    proof = load_proof(workdir)
    return proof.arrays if proof else {}


class Runs:
    """Tiny runs of `experiments.train` in a folder, and the one that nobody disturbed.

    Args:
      draw: decides what happens when.
    """

    def __init__(self, folder: Path, draw: random.Random):
        self.folder, self.draw = folder, draw
        self.environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
        self.whole = folder / "undisturbed"
        self.finish(self.whole)  # compiles
        shutil.rmtree(self.whole)
        started = time.monotonic()
        self.finish(self.whole)
        self.seconds = time.monotonic() - started
        self.expected = state_of(self.whole)

    def start(self, workdir: Path, prepare: Callable[[], None] | None = None) -> subprocess.Popen:
        command = [sys.executable, "-u", "-m", "experiments.train", "--config=configs/quickstart.py:dpo", *_TINY]
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=prepare,
        )

    def finish(self, workdir: Path) -> str:
        """What the command prints that brings a run to its end. Raises RuntimeError where it fails."""
        process = self.start(workdir)
        said, _ = process.communicate(timeout=_LONGEST)
        if process.returncode:
            raise RuntimeError(f"status {process.returncode}: {said[-300:]}")
        return said

    def moment(self) -> None:
        """Waits for any while of a run."""
        time.sleep(self.draw.uniform(0, self.seconds))

    def ends_as_the_undisturbed(self, tally: Tally, name: str, workdir: Path) -> None:
        """Continues a run to its end; its last state must be equal bit for bit."""
        try:
            said = self.finish(workdir)
        except RuntimeError as error:
            tally.ends.append((FAULT, f"{name}: {error}"))
            return
        same = state_of(workdir) == self.expected
        refused = "is damaged" in said
        tally.ends.append((DIFFERENT if not same else REFUSED if refused else FINE, name))


def kills(runs: Runs, size: int) -> Tally:
    """kill -9 at random moments, three a run at most, then the same command."""
    tally, left = Tally("kill -9 at a random moment"), size
    while left:
        workdir = runs.folder / f"killed-{left}"
        together = min(left, runs.draw.randint(1, 3))
        for _ in range(together):
            process = runs.start(workdir)
            runs.moment()
            process.kill()
            process.communicate()
        runs.ends_as_the_undisturbed(tally, f"{together} kills", workdir)
        tally.ends += [tally.ends[-1]] * (together - 1)
        left -= together
    return tally


def signals(runs: Runs, size: int) -> Tally:
    """Ctrl-C or SIGTERM at random moments: an answer within seconds, status 130, and the same command goes on."""
    tally = Tally("SIGINT or SIGTERM at a random moment")
    for number in range(size):
        workdir, which = runs.folder / f"signal-{number}", runs.draw.choice((signal.SIGINT, signal.SIGTERM))
        process = runs.start(workdir)
        for line in process.stdout:  # before, Python itself answers
            if line.startswith("== SFT"):
                break
        runs.moment()
        process.send_signal(which)
        sent = time.monotonic()
        said, _ = process.communicate(timeout=_LONGEST)
        took, name = time.monotonic() - sent, which.name
        if process.returncode == STATUS and took > _ANSWER or process.returncode not in (0, STATUS):
            tally.ends.append((FAULT, f"{name}: status {process.returncode} after {took:.0f} s: {said[-300:]}"))
        elif "Traceback" in said or process.returncode and "To continue:" not in said:
            tally.ends.append((FAULT, f"{name}: {said[-300:]}"))
        else:
            runs.ends_as_the_undisturbed(tally, name, workdir)
    return tally


def disks(runs: Runs, size: int) -> Tally:
    """No file may grow beyond so many bytes, as on a disk that is full; then there is room, and the same command."""
    tally = Tally("a disk that is full, then is not")
    for number in range(size):
        workdir, limit = runs.folder / f"disk-{number}", runs.draw.randrange(200, 60_000)
        process = runs.start(workdir, functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)))
        said, _ = process.communicate(timeout=_LONGEST)
        if process.returncode == 0:
            tally.ends.append((FAULT, f"{limit} bytes a file: it ended as if nothing had been"))
        else:
            runs.ends_as_the_undisturbed(tally, f"{limit} bytes a file", workdir)
    return tally


def flips_of_a_finished_run(runs: Runs, size: int) -> Tally:
    """A damaged file of a finished run is evaluated: the same numbers, or a refusal that names the folder."""
    tally, copy = Tally("a damaged file of a finished run, evaluated"), runs.folder / "flipped"
    expected = evaluate_run(runs.whole)["metrics"]
    for _ in range(size):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(runs.whole, copy)
        name = damage_a_file(copy, runs.draw)
        tally.attempt(name, lambda: evaluate_run(copy)["metrics"], expected, names=str(copy))
    return tally


def flips_of_a_running_run(runs: Runs, size: int) -> Tally:
    """A damaged file of a run that was killed: the same command comes to the same state, or names the folder."""
    tally, half = Tally("a damaged file of a killed run, continued"), runs.folder / "half"
    process = runs.start(half)
    for line in process.stdout:
        if "step 4/8" in line:
            break
    process.kill()
    process.communicate()
    for number in range(size):
        workdir = runs.folder / f"damaged-{number}"
        shutil.copytree(half, workdir)
        name = damage_a_file(workdir, runs.draw)
        process = runs.start(workdir)
        said, _ = process.communicate(timeout=_LONGEST)
        if process.returncode:
            tally.ends.append((REFUSED if str(workdir) in said else FAULT, f"{name}: {said[-300:]}"))
        else:
            same = state_of(workdir) == runs.expected
            tally.ends.append((DIFFERENT if not same else REFUSED if "damaged" in said else FINE, name))
        shutil.rmtree(workdir)
    return tally
