"""SmolLM2-135M's shape against TRL's DPOTrainer, where torch with CUDA and TRL are here; neither is installed for it.

The protocol of `experiments.benchmarks.trl` in bfloat16 over float32 weights: random weights of that shape in a folder
that both sides read, HH-shaped lengths, the same ids, each side in a process of its own; memory is the device's.
"""

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.benchmarks import lengths, sweep, trl
from experiments.benchmarks.shapes import MODELS
from prefjax.data.encoding import EncodingPolicy

SETTINGS = {
    "prefjax": trl.own_setting(16_384, remat="none"),
    "TRL": trl.trl_setting(16, sort_by_length=True),
}


@dataclasses.dataclass(frozen=True)
class Size:
    model: str = "smollm2_135m"
    pairs: int = 64
    steps: int = 3


TINY = Size("tiny", pairs=2, steps=1)


def cases(size: Size, folder: Path) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    return {"reference live": functools.partial(compared, size)}


def why_not() -> str:
    """What TRL's side lacks here; "" where it can run."""
    missing = [name for name in ("torch", "trl") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not here"
    found = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"], capture_output=True, text=True
    )
    return "" if found.stdout.strip() == "True" else "torch sees no CUDA device"


def compared(size: Size) -> Iterator[dict[str, Any]]:
    """A row of each side, then what they say of each other; or why there is none."""
    if reason := why_not():
        yield {"not_run": reason}
        return
    import jax

    from prefjax.data.tokenizer_files import write_tokenizer
    from prefjax.models import huggingface, init

    model = MODELS[size.model]
    trees, _ = lengths.load_trees("paper:hh", "byte", EncodingPolicy(max_length=2048), vocab_size=model.vocab_size)
    sample = lengths.representative(trees, size.pairs)
    # This process is told to stay off the device, its sides are not.
    on_device = ["env", "JAX_PLATFORMS=cuda"]
    commands = {
        "prefjax": [*on_device, *trl.SIDES["prefjax"]],
        "TRL": [sys.executable, str(trl.TRL_SCRIPT)],
    }
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save_huggingface(folder, model, init(model, jax.random.key(0)))
        write_tokenizer(folder, "byte")
        comparison = trl.Comparison(commands, folder, os.cpu_count() or 1)
        measure = functools.partial(
            comparison.measure, trees=sample, reference="live", steps=1 + size.steps, score=True, device="cuda"
        )
        runs = {}
        for side, setting in SETTINGS.items():
            runs[side] = measure(side, setting=setting)
            yield runs[side][0] | {"versions": comparison.versions[side]}
    rows, logps = zip(*runs.values(), strict=True)
    equality = trl.compare_logps(*logps, sweep.TOLERANCE["bfloat16"])
    yield {"equality": equality, "advantage": trl.gains(*rows)}
