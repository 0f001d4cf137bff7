"""Runs that are killed, interrupted, damaged on disk, and whose disk fails: each must end as one left alone."""

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from experiments.chaos.tally import DIFFERENT, FAULT, FINE, REFUSED, Tally, damage_a_file
from prefjax.interrupts import STATUS
from prefjax.policies.evaluate import evaluate_run
from prefjax.training.checkpoint import load_proof

ROOT = Path(__file__).resolve().parents[2]
_TINY = (
    *("--config.model.num_layers=1", "--config.model.width=16", "--config.model.head_width=8"),
    *("--config.model.mlp_width=16", "--config.rows.tokens_per_step=2048", "--config.sampling.prompts=4"),
    *("--config.data.world.train_examples=64", "--config.data.world.eval_examples=16"),
    *("--config.sft.train.steps=4", "--config.sft.train.checkpoint_every=2"),
    *("--config.train.steps=8", "--config.train.checkpoint_every=2"),
    *("--config.train.eval_every=4", "--config.train.log_every=2", "--config.sft.train.log_every=2"),
    *("--config.sampling.max_new_tokens=8", "--config.train.eval_samples=0"),
)
# Compiling is most of what such runs do.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
_ANSWER = 10  # seconds in which a signal must be answered
LONGEST = 600  # seconds that any run may take
# What a run of `_TINY` says on its way, before its last step.
MOMENTS = ("== SFT", "step 2/4", "== dpo", "step 2/8", "step 4/8", "step 6/8")
# Where a run makes folders and files.
_PLACES = ("", "checkpoints", "data", "sft", "sft/checkpoints", "metrics.jsonl", "report.md", "result.json", "run.json")


def state_of(workdir: Path) -> dict[str, str]:
    """Fingerprints of the newest checkpoint's arrays; empty where there is none."""
    proof = load_proof(workdir)
    return proof.arrays if proof else {}


class Runs:
    """Tiny runs of `experiments.train` in a folder, and the one that nobody disturbed.

    Args:
      draw: decides what happens when.

    Attributes:
      seconds: that a run took, the shortest so far: the first one compiles.
    """

    def __init__(self, folder: Path, draw: random.Random):
        self.folder, self.draw, self.seconds = folder, draw, float("inf")
        compiled = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
        self.environment = compiled | os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}"
        self.whole = folder / "undisturbed"
        self.finish(self.whole)
        self.expected = state_of(self.whole)

    def start(
        self,
        workdir: Path,
        *more: str,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.Popen:
        """Starts the command, with further flags and variables."""
        command = [sys.executable, "-u", "-m", "experiments.train", "--config=configs/quickstart.py:dpo", *_TINY]
        return subprocess.Popen(
            [*command, f"--workdir={workdir}", *more],
            cwd=ROOT,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, workdir: Path) -> str:
        """What the command prints that brings a run to its end. Raises RuntimeError where it fails."""
        anew, started = not workdir.exists(), time.monotonic()
        process = self.start(workdir)
        said, _ = process.communicate(timeout=LONGEST)
        if process.returncode:
            raise RuntimeError(f"status {process.returncode}: {said[-300:]}")
        if anew:
            self.seconds = min(self.seconds, time.monotonic() - started)
        return said

    def moment(self) -> None:
        """Waits for any while of a run."""
        time.sleep(self.draw.uniform(0, self.seconds))

    def at(self, process: subprocess.Popen) -> str:
        """Waits until a run says a line of `MOMENTS` that was drawn, and a little longer; returns the line."""
        moment = self.draw.choice(MOMENTS)
        read_until(process, moment)
        time.sleep(self.draw.uniform(0, 0.2))
        return moment

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
        read_until(process, MOMENTS[0])  # before, Python itself answers
        runs.moment()
        process.send_signal(which)
        sent = time.monotonic()
        said, _ = process.communicate(timeout=LONGEST)
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
        process = runs.start(workdir)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        said, _ = process.communicate(timeout=LONGEST)
        if refused(tally, f"{limit} bytes a file", process.returncode, said):
            runs.ends_as_the_undisturbed(tally, f"{limit} bytes a file", workdir)
    return tally


def vanishing(runs: Runs, size: int) -> Tally:
    """The work directory is gone in the middle of a run; then it is back, or not, and the same command."""
    tally = Tally("a work directory that vanishes in the middle of a run")
    for number in range(size):
        workdir, aside = runs.folder / f"vanished-{number}", runs.folder / f"aside-{number}"
        process = runs.start(workdir)
        name = runs.at(process)
        workdir.rename(aside)
        said, _ = process.communicate(timeout=LONGEST)
        shutil.rmtree(workdir, ignore_errors=True)
        if runs.draw.random() < 0.5:
            aside.rename(workdir)
            name = f"{name}, then back"
        if refused(tally, name, process.returncode, said):
            runs.ends_as_the_undisturbed(tally, name, workdir)
    return tally


def blocked(runs: Runs, size: int) -> Tally:
    """A file lies where a folder is to be made, or a folder where a file is: no one may write there, root neither, whom
    no permission stops. Then it is gone, and the same command.
    """
    tally = Tally("a place in the work directory that cannot be written")
    for number in range(size):
        workdir, name = runs.folder / f"blocked-{number}", runs.draw.choice(_PLACES)
        obstacle = workdir / name
        obstacle.parent.mkdir(parents=True, exist_ok=True)
        is_file = bool(obstacle.suffix)
        obstacle.mkdir() if is_file else obstacle.touch()
        process = runs.start(workdir)
        said, _ = process.communicate(timeout=LONGEST)
        if refused(tally, name, process.returncode, said):
            obstacle.rmdir() if is_file else obstacle.unlink()
            runs.ends_as_the_undisturbed(tally, name, workdir)
    return tally


def refused(tally: Tally, name: str, status: int, said: str) -> bool:
    """Whether a run ended by one clear line and exit status 1; counts a fault where it did not."""
    clear = status == 1 and f"\n{said}".count("\nerror: ") == 1 and "Traceback" not in said
    if not clear:
        tally.ends.append((FAULT, f"{name}: status {status}: {said[-300:]}"))
    return clear


def read_until(process: subprocess.Popen, words: str) -> None:
    """Reads lines of a process up to one that begins with the words, or to its end."""
    for line in process.stdout:
        if line.lstrip().startswith(words):
            return


def flips_of_a_finished_run(runs: Runs, size: int) -> Tally:
    """A damaged file of a finished run is evaluated: the same numbers, or a refusal that names the folder, or a line
    that says which older checkpoint the numbers are of.
    """
    tally, copy = Tally("a damaged file of a finished run, evaluated"), runs.folder / "flipped"
    expected = evaluate_run(runs.whole)["metrics"]
    for _ in range(size):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(runs.whole, copy)
        name = damage_a_file(copy, runs.draw)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            tally.attempt(name, lambda: evaluate_run(copy)["metrics"], expected, names=str(copy))
        older = f"{copy}/" in said.getvalue() and "is taken instead" in said.getvalue()
        if tally.ends[-1][0] == DIFFERENT and older:
            tally.ends[-1] = (REFUSED, name)
    return tally


def flips_of_a_running_run(runs: Runs, size: int) -> Tally:
    """A damaged file of a run that was killed: the same command comes to the same state, or names the folder."""
    tally, half = Tally("a damaged file of a killed run, continued"), runs.folder / "half"
    process = runs.start(half)
    read_until(process, "step 4/8")
    process.kill()
    process.communicate()
    for number in range(size):
        workdir = runs.folder / f"half-{number}"
        shutil.copytree(half, workdir)
        name = damage_a_file(workdir, runs.draw)
        process = runs.start(workdir)
        said, _ = process.communicate(timeout=LONGEST)
        if process.returncode:
            if refused(tally, name, process.returncode, said):
                why = said.rpartition("error: ")[2]
                tally.ends.append((REFUSED if str(workdir) in why else FAULT, f"{name}: {why[:300]}"))
        else:
            same = state_of(workdir) == runs.expected
            tally.ends.append((DIFFERENT if not same else REFUSED if "is damaged" in said else FINE, name))
        shutil.rmtree(workdir)
    return tally
