"""Plans of runs that nobody has started: whether a compiled step fits, what bounds it, tables of plans and a plot."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
import matplotlib.ticker

from prefjax.analysis import style
from prefjax.fit.chips import Chip
from prefjax.fit.roofline import StepTime

PREALLOCATED = 0.75  # of a GPU, what JAX takes by default
USABLE = 0.92  # of a GPU, beside the CUDA context and libraries' workspaces
_PARTS = ("parameters", "optimizer", "reference", "batch")
_GB = 1e9

ASSUMPTIONS = f"""\
**Memory** is the compiler's own analysis of the real train step (`prefjax/fit/ahead.py`), per device, in GB of
1e9 bytes. "State" is parameters, optimiser state and a live reference; "temporaries" are gradients, activations and
workspace; "peak" is the most that is held at any time. A TPU step fits if its compiler accepts it; a GPU step if its
peak is at most {USABLE:.0%} of the card (above {PREALLOCATED:.0%}, set `XLA_PYTHON_CLIENT_MEM_FRACTION`). GPU
kernels are not autotuned without a GPU, so their workspace may differ; the compiler's description of an H200 is an
H100's with other memory, those of A100 and H100 are XLA's own. "Chips" are what is rented; a TPU7x chip is two
devices.

**Communication** is read from the compiled program, loops multiplied by their trip counts; bytes are what arrives at
one device per step under bandwidth-optimal algorithms.

**Step time** is a roofline, not a measurement: FLOPs, memory traffic and received bytes of one device over the vendor's
bfloat16 peaks (`prefjax/fit/chips.py`), first if everything overlaps (no step is faster), then if nothing does.
FLOPs and memory traffic are counted (`prefjax/fit/budget.py`) on rows that the pipeline packs from the stated
lengths, with padding, recomputation and whole attention tiles. All links of a chip are taken to be busy, which small
TPU slices without wrap-around do not reach. A prompt of a pairwise objective is one pair. MFU is the problem's own
FLOPs over the chip's peak in the overlapped time. Nothing here was timed on an accelerator.
"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One config on one slice. What only a compiled step tells is None or empty where `reason` says it does not fit.

    settings   what the table shows of the config: rows, mesh, remat, ...
    memory     bytes on one device, as `ahead.Memory`
    available  bytes of one device
    collectives  kind -> [count, bytes received], per device and step
    unread     what could not be read from the compiled program
    seconds    compute, memory, links: as `StepTime`
    compilers  whose word this is, with versions
    """

    topology: str
    chips: int
    devices: int
    model: str
    settings: dict[str, str]
    command: str
    lengths: str
    prompts: float
    fill: float
    live_tiles: float
    available: float
    compile_seconds: float
    reason: str = ""
    memory: dict[str, int] | None = None
    collectives: dict[str, list[int | float]] = dataclasses.field(default_factory=dict)
    unread: str = ""
    model_flops: float = 0.0
    flops: float = 0.0
    seconds: dict[str, float] | None = None
    mfu: float = 0.0
    compilers: str = ""

    @property
    def fits(self) -> bool:
        return not self.reason

    @property
    def time(self) -> StepTime:
        return StepTime(**self.seconds)

    @property
    def key(self) -> tuple:
        return (self.topology, self.model, tuple(sorted(self.settings.items())), self.lengths)


def memory_verdict(chip: Chip, peak: int | float) -> str:
    """Why a compiled step does not fit this chip, or "" if it does."""
    if chip.platform == "cuda" and peak > USABLE * chip.memory:
        return f"peak {_gb(peak)} GB is more than {USABLE:.0%} of the card's {_gb(chip.memory)} GB"
    return ""


def ranked(plans: Sequence[Plan]) -> list[Plan]:
    """Those that fit, fastest first by roofline: overlapped, then serial, then the smallest peak."""
    fit = [plan for plan in plans if plan.fits]
    return sorted(fit, key=lambda plan: (plan.time.overlapped, plan.time.serial, plan.memory["peak"]))


def read(path: Path) -> list[Plan]:
    """Plans of a plans.json; none where there is no file."""
    return [Plan(**facts) for facts in json.loads(path.read_text())] if path.exists() else []


def write(folder: Path, plans: Sequence[Plan]) -> list[Plan]:
    """Adds plans to folder/plans.json, the newest of a kind counts, and makes plans.md and plans.png anew from all."""
    folder.mkdir(parents=True, exist_ok=True)
    everything = {plan.key: plan for plan in (*read(folder / "plans.json"), *plans)}
    kept = list(everything.values())
    (folder / "plans.json").write_text(json.dumps([dataclasses.asdict(plan) for plan in kept], indent=1) + "\n")
    (folder / "plans.md").write_text(document(kept))
    if any(plan.fits for plan in kept):
        style.save(draw(kept), folder / "plans.png")
    return kept


def document(plans: Sequence[Plan]) -> str:
    """Tables, the commands that made them, and the assumptions, as Markdown."""
    commands = dict.fromkeys(plan.command for plan in plans)
    lengths = dict.fromkeys(plan.lengths for plan in plans)
    compilers = dict.fromkeys(plan.compilers for plan in plans)
    return "\n".join(
        [
            "# Plans\n",
            "What runs need of hardware, compiled without it. Every row is one of the commands below (`pip install -r "
            "requirements.txt -r requirements-aot.txt`).\n",
            table(plans),
            "![Memory of one device by part](plans.png)\n" if any(plan.fits for plan in plans) else "",
            "## Communication\n",
            communication(plans),
            "## Commands\n\n```bash",
            *commands,
            "```\n",
            "## Assumptions\n",
            ASSUMPTIONS,
            "**Lengths**: " + "; ".join(lengths) + ".\n",
            "**Compilers**: " + "; ".join(compilers) + ".\n",
        ]
    )


def table(plans: Sequence[Plan]) -> str:
    """One row per plan: memory of one device in GB, roofline time, throughput."""
    columns = (
        *("model", "slice", "chips", "rows", "mesh", "remat", "reference", "state", "temporaries", "**peak**"),
        *("available", "step, s", "prompts/s", "MFU", "bound by", "fits"),
    )
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for plan in plans:
        parts = plan.settings["accumulation"]
        rows = plan.settings["rows"] + (f" in {parts} parts" if parts != "1" else "")
        chosen = [rows, *(plan.settings[name] for name in ("mesh", "remat", "reference"))]
        row = [plan.model, plan.topology, str(plan.chips), *chosen]
        if plan.memory is None:
            row += ["", "", "", _gb(plan.available), "", "", "", "", f"no: {plan.reason}"]
        else:
            memory, time = plan.memory, plan.time
            state = sum(memory[part] for part in ("parameters", "optimizer", "reference"))
            row += [_gb(state), _gb(memory["temporaries"]), f"**{_gb(memory['peak'])}**", _gb(plan.available)]
            row += [f"{time.overlapped:.2f} to {time.serial:.2f}"]
            row += [f"{plan.prompts / time.overlapped:.1f} to {plan.prompts / time.serial:.1f}"]
            row += [f"{plan.mfu:.0%}", time.bound, "yes" if plan.fits else f"no: {plan.reason}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def communication(plans: Sequence[Plan]) -> str:
    """One row per plan: what arrives at a device per step, by kind."""
    shown = [plan for plan in plans if plan.memory is not None]
    kinds = list(dict.fromkeys(kind for plan in shown for kind in plan.collectives))
    columns = ("model", "slice", "rows", "mesh", *kinds, "together")
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for plan in shown:
        cell = lambda pair: f"{_gb(pair[1])} GB in {pair[0]:.0f}" if pair else ""
        cells = [cell(plan.collectives.get(kind)) for kind in kinds]
        together = f"{_gb(sum(received for _, received in plan.collectives.values()))} GB"
        row = [
            plan.model,
            plan.topology,
            plan.settings["rows"],
            plan.settings["mesh"],
            *cells,
            together + (f" (not known: {plan.unread})" if plan.unread else ""),
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def describe(plan: Plan) -> str:
    """One plan in full, for a terminal."""
    settings = ", ".join(f"{name} {value}" for name, value in plan.settings.items())
    lines = [
        f"{plan.model} on {plan.topology}: {plan.chips} chips, {plan.devices} devices",
        f"  {settings}",
        f"  {plan.lengths}",
        f"  {plan.prompts:.0f} prompts a step, fill {plan.fill:.1%}, {plan.live_tiles:.1%} of all attention tiles live",
    ]
    if plan.memory is not None:
        lines += ["  per device, GB"]
        lines += [f"    {name:<12}{_gb(size):>9}" for name, size in plan.memory.items()]
        lines += [f"    {'available':<12}{_gb(plan.available):>9}", "  received per device and step"]
        lines += [
            f"    {kind:<20}{received / _GB:>9.3f} GB in {count:.0f}"
            for kind, (count, received) in plan.collectives.items()
        ]
        lines += [f"    not known: {plan.unread}"] if plan.unread else []
        time = plan.time
        lines += [
            f"  FLOPs per device: {plan.flops:.3g} run, {plan.model_flops:.3g} of them the problem's own",
            f"  at peak: compute {time.compute:.3f} s, memory {time.memory:.3f} s, links {time.links:.3f} s",
            f"  step {time.overlapped:.3f} s if all overlaps ({plan.prompts / time.overlapped:.1f} prompts/s, MFU "
            f"{plan.mfu:.0%}), {time.serial:.3f} s if nothing does ({plan.prompts / time.serial:.1f} prompts/s)",
        ]
    if plan.compile_seconds:
        lines.append(f"  compiled in {plan.compile_seconds:.0f} s")
    lines.append("  FITS" if plan.fits else f"  DOES NOT FIT: {plan.reason}")
    return "\n".join(lines)


def draw(plans: Sequence[Plan]) -> matplotlib.figure.Figure:
    """Memory of one device by part, a bar per plan, as a share of what the device has."""
    shown = [plan for plan in plans if plan.memory is not None][::-1]
    figure, (axes,) = style.panels(9, 1.3 + 0.45 * len(shown))
    names = [f"{p.model}, {p.topology}\n{p.settings['rows']}, {p.settings['reference']}" for p in shown]
    left = [0.0] * len(shown)
    for part, color in zip((*_PARTS, "rest"), style.COLORS, strict=False):
        sizes = [_held(plan, part) / plan.available for plan in shown]
        label = "gradients, activations, workspace" if part == "rest" else part
        axes.barh(range(len(shown)), sizes, left=left, label=label, height=0.6, color=color)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    axes.set_yticks(range(len(shown)), names, fontsize=7)
    axes.axvline(1.0, color=style.INK, linewidth=1)
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes.set_xlabel("of one device's memory, at the peak", fontsize=9, color=style.INK)
    figure.legend(loc="outside upper left", ncols=5, **style.LEGEND)
    return figure


def _held(plan: Plan, part: str) -> int | float:
    """Bytes of a part; the rest is what the peak holds besides."""
    if part == "rest":
        return plan.memory["peak"] - sum(plan.memory[name] for name in _PARTS)
    return plan.memory[part]


def _gb(size: int | float) -> str:
    return f"{size / _GB:.2f}"
