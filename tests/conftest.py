"""Tests see 8 simulated CPU devices, strict rank promotion, and jaxtyping annotations checked by beartype."""

import gc
import os
from pathlib import Path

from tests.compilation import COMPILED, QUICK

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests and the processes they start compile a program once: most runs here are of one tiny model.
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICK}"

import jax
import jaxtyping
import pytest

# Tracing makes many small objects: collecting them less often takes 7 % off.
gc.set_threshold(20_000, 20, 20)
jax.config.update("jax_numpy_rank_promotion", "raise")
jaxtyping.install_import_hook("prefjax", "beartype.beartype")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: those left for the end are short, and no worker waits long for another."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


_SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real preference data: PREFJAX_TEST_DATA, or `shared/data` beside the checkout; skips where absent."""
    folder = Path(os.environ.get("PREFJAX_TEST_DATA", _SHARED / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real preference data at {folder}; set PREFJAX_TEST_DATA to a folder that holds it")
    return folder


@pytest.fixture(scope="session")
def real_models() -> Path:
    """Folder of small Hugging Face checkpoints: PREFJAX_TEST_MODELS, or `shared/models` beside the checkout."""
    folder = Path(os.environ.get("PREFJAX_TEST_MODELS", _SHARED / "models"))
    if not folder.is_dir():
        pytest.skip(f"no small checkpoints at {folder}; set PREFJAX_TEST_MODELS to a folder that holds them")
    return folder
