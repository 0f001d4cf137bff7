"""How tests compile: quickly, since compiling hundreds of tiny programs is most of what the suite does."""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

# Code is left unoptimised. The emitters that jaxlib had up to 0.10 beside its new ones compile it three times faster.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# They may round differently in programs that hold the same computation beside another; what is to be equal bit for bit
# across programs is tested in a process of its own (`in_a_process_that_compiles_as_users_do`).
AS_USERS_DO = "PREFJAX_TEST_COMPILE_AS_USERS_DO"
# Where tests and the commands that they start keep compiled programs: made once a session, before its workers start.
if "PREFJAX_TEST_COMPILED" not in os.environ:
    os.environ["PREFJAX_TEST_COMPILED"] = tempfile.mkdtemp(prefix="prefjax-compiled-")
    atexit.register(shutil.rmtree, os.environ["PREFJAX_TEST_COMPILED"], ignore_errors=True)
COMPILED = os.environ["PREFJAX_TEST_COMPILED"]
if AS_USERS_DO not in os.environ and tuple(map(int, metadata.version("jaxlib").split(".")[:2])) <= (0, 10):
    QUICK += " --xla_cpu_use_fusion_emitters=false"


def in_a_process_that_compiles_as_users_do(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test once more in a process of its own, with the emitters that XLA has by default."""

    @functools.wraps(test)
    def run(*args, **fixtures):
        if AS_USERS_DO in os.environ:
            return test(*args, **fixtures)
        where = f"{Path(sys.modules[test.__module__].__file__)}::{test.__name__}"
        command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", where]
        done = subprocess.run(
            command, env={**os.environ, "XLA_FLAGS": "", AS_USERS_DO: "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-3000:]

    return run
