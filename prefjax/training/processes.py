"""Several processes as one run: how they find each other, stop at one step, and end when one of them died; and two runs
that must not be one: how a process keeps others out of its folder."""

import fcntl
import functools
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from prefjax.options import Range

T = TypeVar("T")
# Where no cluster describes itself, these do; the words of JAX and of most launchers.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
PATIENCE = 30  # seconds without a sign of life after which a process counts as dead
_ours: set[Path] = set()  # folders that this process holds


def join_processes(start_timeout: int = 300) -> None:
    """Makes this process one of several that compute together; call it before anything asks for devices.

    The variables JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say which, all
    three together; without them the cluster does: SLURM, Open MPI, Kubernetes and TPU slices are known to JAX.

    Args:
      start_timeout: seconds to wait for all processes to be there.

    Raises:
      ValueError: some of the variables are set and others not, or one is no number of its range; names it.
      RuntimeError: there is neither, or the others did not come in time.
    """
    said = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if said and len(said) < len(VARIABLES):
        lacking = ", ".join(name for name in VARIABLES if name not in said)
        raise ValueError(f"{', '.join(said)} set, but not {lacking}: set all three, or none where a cluster knows them")
    address = {}
    if said:
        count = _number(VARIABLES[1], at_least=1)
        index = _number(VARIABLES[2], at_least=0, below=count)
        address = dict(coordinator_address=said[VARIABLES[0]], num_processes=count, process_id=index)
    try:
        jax.distributed.initialize(**address, initialization_timeout=start_timeout, heartbeat_timeout_seconds=PATIENCE)
    except (ValueError, RuntimeError) as error:
        if said:
            raise RuntimeError(
                f"process {said[VARIABLES[2]]} of {said[VARIABLES[1]]} found no others at {said[VARIABLES[0]]} within "
                f"{start_timeout} s: {error}"
            ) from error
        raise RuntimeError(
            f"--distributed found no cluster that says which process this is ({error}). Set {', '.join(VARIABLES)}: "
            "the host:port of process 0, how many processes there are, and which one this is, from 0"
        ) from error


def _number(name: str, **limits: int) -> int:
    try:
        value = int(os.environ[name])
    except ValueError:
        raise ValueError(f"{name}={os.environ[name]!r} is no whole number") from None
    if value not in (allowed := Range(**limits)):
        raise ValueError(f"{name}={value}: set it to {allowed}")
    return value


@contextmanager
def processes(join: bool) -> Iterator[None]:
    """Around the work of a command: joins the other processes if asked to, and ends with them if one fails.

    The process that failed says why and ends. Others learn of it from a computation that breaks off, or from JAX's
    service after `PATIENCE` seconds without a sign of life, which ends them and names the process that is gone.
    """
    if not join:
        yield
        return
    join_processes()
    try:
        yield
    except Exception as error:
        here = f"process {jax.process_index()} of {jax.process_count()}"
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, jax.errors.JaxRuntimeError):  # what a computation says when another process is gone
            print(f"{here}: another process may be gone; waiting for its name", file=sys.stderr, flush=True)
            time.sleep(PATIENCE + 10)
        print(f"{here} ends with {type(error).__name__}, and with it the others", file=sys.stderr, flush=True)
        os._exit(1)  # an orderly exit would wait for those that are gone


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Makes a folder, and keeps other processes from training in it meanwhile; of several that are one run, the first
    does so for all.

    The lock is the system's, on the file `.lock` there: it goes with the process, however that ends, and holds on all
    hosts that share a file system with locks. Where there are none, a line says so.

    Raises:
      RuntimeError: another process holds the folder; names it.
    """
    folder = Path(folder).resolve()
    if jax.process_index() or folder in _ours:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = " ".join(file.read().split()) or "another process"
            raise RuntimeError(
                f"{folder} is held by {who}, which trains there: wait until it has ended, stop it (Ctrl-C or SIGTERM, "
                "and it saves first), or give another --workdir"
            ) from None
        except OSError as error:
            print(f"{folder} cannot be locked ({error.strerror}): see to it that nothing else trains there", flush=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} ({shlex.join(sys.orig_argv)})")
        file.flush()
        _ours.add(folder)
        try:
            yield
        finally:
            _ours.discard(folder)


def one_at_a_time(results: T) -> T:
    """What a program returned, which on the CPUs of several processes has then ended.

    CPUs run the programs they were given in any order, so that two which reduce over processes can wait for each other
    for ever; GPUs and TPUs run them in the order given, and are not waited for.
    """
    several = jax.process_count() > 1 and jax.default_backend() == "cpu"
    return jax.block_until_ready(results) if several else results


class Agreed:
    """A wish to stop that holds for all processes at the same step, whoever has it.

    Every process tells the others its wish with each step, and reads what all told with the step before: that one is
    done by then or nearly so, and the devices are not kept waiting. With one process the wish counts at once.

    Args:
      wish: whether this process was asked to stop.
    """

    def __init__(self, wish: Callable[[], bool]):
        self._wish, self._told = wish, None

    def __call__(self, step: int) -> bool:
        if jax.process_count() == 1:
            return self._wish()
        earlier, self._told = self._told, _any_of_all(self._wish())
        return earlier is not None and bool(earlier)


def _any_of_all(wish: bool) -> jax.Array:
    """Whether any process has the wish; on the devices, not waited for."""
    told, answer = _votes()
    return one_at_a_time(answer(jax.make_array_from_process_local_data(told, np.full(jax.local_device_count(), wish))))


@functools.cache
def _votes() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    mesh = Mesh(np.array(jax.devices()), ("all",))
    return NamedSharding(mesh, P("all")), jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))
