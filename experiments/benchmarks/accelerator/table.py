"""The paper's table on a model of Llama 3.2 1B's shape in bfloat16: four layouts, reference live and precomputed.

PROTOCOL  That of `experiments.benchmarks.throughput`: the same pairs are one optimiser step in every cell, and loss,
          log-probs and gradient norm must agree between layouts (3e-2 in bfloat16) before anything is timed. Lengths
          are the paper's medians for HH-RLHF and UltraFeedback, and prompts six times as long as a response.
MEMORY    Layouts that are compared are compiled together, then run from the least memory to the most: where the most
          that the device has held grew with a cell, that is its peak (without the reference model, which the process
          holds all the time, in cells that read its scores), else nothing is said. Beside it, the arguments and
          temporaries that the compiler on the device reserves, and the peak planned without it (`predict.py`).
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks import lengths, sweep
from experiments.benchmarks.accelerator import findings
from experiments.benchmarks.accelerator.tiles import use_fastest
from experiments.benchmarks.shapes import MODELS
from experiments.benchmarks.throughput import compare, speeds
from experiments.benchmarks.training import Training, ideal_gains
from experiments.benchmarks.tune_attention import chip_here
from prefjax.data.encoding import EncodingPolicy
from prefjax.fit.chips import CHIPS, Chip
from prefjax.models.attention import kernel_tiles
from prefjax.rows.arrays import LAYOUTS
from prefjax.rows.trees import TokenTree
from prefjax.training.mesh import MeshConfig, make_mesh

PREDICTIONS = Path(__file__).with_name("predictions.json")
REFERENCES = ("live", "precomputed")
# How a chip is called: by JAX in `kernel_tiles.BLOCKS`, and in `CHIPS`.
KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA A100": "a100",
    "NVIDIA H100": "h100",
    "NVIDIA H200": "h200",
}


@dataclasses.dataclass(frozen=True)
class Size:
    model: str = "llama3_1b"
    dtype: str = "bfloat16"
    data: tuple[str, ...] = ("paper:hh", "paper:ultrafeedback", lengths.LONG_PROMPT)
    pairs: int = 64
    micro_batch: int = 16_384
    layouts: tuple[str, ...] = tuple(layout for layout in LAYOUTS if layout != "merged")  # drawn pairs share nothing
    references: tuple[str, ...] = REFERENCES
    repeats: int = 3


TINY = Size("tiny", "float32", ("paper:hh",), 1, 512, ("shared_packed",), ("live",), 1)


def cases(size: Size, folder: Path) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    """One for every data set and reference, live ones first."""
    entries = findings.read(folder)
    use_fastest(entries, chip_here(None).listed)
    model = MODELS[size.model]
    attention = findings.proven_attention(entries, dtype=size.dtype, width=model.head_width)
    training = functools.cache(
        lambda: Training(dataclasses.replace(model, dtype=size.dtype, attention=attention), make_mesh(MeshConfig()))
    )
    asked = [(reference, data) for reference in size.references for data in size.data]
    return {f"{data}, {one}": functools.partial(measured, training, data, one, size) for one, data in asked}


def sample(data: str, size: Size) -> list[TokenTree]:
    """The pairs of one step; the same on every machine."""
    policy = EncodingPolicy(max_length=2048)
    trees, _ = lengths.load_trees(data, "byte", policy, vocab_size=MODELS[size.model].vocab_size)
    return lengths.representative(trees, size.pairs)


def measured(made: Callable[[], Training], data: str, reference: str, size: Size) -> Iterator[dict[str, Any]]:
    """A row for every layout."""
    training, trees = made(), sample(data, size)
    table = training.reference_table(trees, "dpo", size.micro_batch) if reference == "precomputed" else None
    make = functools.partial(training.cell, trees, reference=reference, micro_batch=size.micro_batch, table=table)
    with ThreadPoolExecutor(len(size.layouts)) as pool:
        cells = dict(zip(size.layouts, pool.map(make, size.layouts), strict=True))
    peaks, results = {}, {}
    for layout in sorted(cells, key=lambda layout: cells[layout].facts["memory_mb"]):
        before = peak_bytes()
        results[layout] = cells[layout].run()
        grown = (after := peak_bytes()) and after > before
        idle = 0 if reference == "live" else training.reference_bytes
        peaks[layout] = after - idle if grown else None
    sweep.check_equal(results, sweep.TOLERANCE[size.dtype])
    seconds = sweep.interleave({layout: cell.run for layout, cell in cells.items()}, size.repeats)
    chip, rows = chip_of(jax.devices()[0]), []
    peak_flops = chip and len(jax.devices()) * chip.peak_flops / chip.devices
    for layout, cell in cells.items():
        row = cell.facts | {"data": data, "seconds": seconds[layout], "attention": training.model.attention}
        row |= speeds(training.model, trees, row)
        row |= {"measured_peak": peaks[layout], "planned_peak": planned_peak(chip, data, row)}
        rows.append(row | {"mfu": peak_flops and 1e9 * row["needed_gflops_per_second"] / peak_flops})
    yield from compare(rows, {layout: ideal_gains(training.model, trees, layout) for layout in cells})


def peak_bytes() -> int | None:
    """The most that the device has held in this process; None where it does not say."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def chip_of(device: jax.Device) -> Chip | None:
    """Its entry in `CHIPS`."""
    platform = {"gpu": "cuda"}.get(device.platform, device.platform)
    name = KINDS.get(kernel_tiles.listed_kind(platform, device.device_kind))
    return CHIPS[name] if name else None


def planned_peak(chip: Chip | None, data: str, row: sweep.Row) -> int | None:
    """Bytes that were planned for a cell on one such chip, where rows of the same size were."""
    planned = json.loads(PREDICTIONS.read_text()).get(chip.name, []) if chip and len(jax.devices()) == 1 else []
    same = lambda one: (one["data"], *(one[name] for name in ("layout", "reference", "positions")))
    wanted = (data, row["layout"], row["reference"], row["positions"])
    return next((one["peak"] for one in planned if same(one) == wanted), None)
