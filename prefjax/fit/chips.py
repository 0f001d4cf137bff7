"""Accelerators by name: what one chip can do by its vendor's word, and what a slice's name means to a compiler.

TPU names follow Google's: `v5e-16` and `v6e-16` count chips, `v4-16`, `v5p-16` and `tpu7x-16` count TensorCores, two to
a chip. GPU names count GPUs of one node: `h100x8`. A chip's name alone is one chip.
"""

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip (TPU) or one card (GPU). Vendors' peaks: nothing here was measured by this project.

    peak_flops     bfloat16 FLOP/s, dense
    memory         bytes of HBM
    bandwidth      bytes/s between HBM and the chip
    links          bytes/s that reach the chip over all its links to other chips, one direction
    devices        devices a program sees per chip
    target         what the CUDA compiler asks of a card it cannot see (xla.GpuTargetConfigProto); "" on TPU
    cores          TensorCores per chip where slice names count these, else 1
    shapes         chips of a slice -> its shape
    """

    name: str
    platform: str
    peak_flops: float
    memory: float
    bandwidth: float
    links: float
    source: str
    devices: int = 1
    target: str = ""
    cores: int = 1
    shapes: tuple[str, ...] = ()

    @property
    def megacore(self) -> bool:
        """Whether its two cores are one device."""
        return self.cores > self.devices


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of one kind joined by their fast links: one TPU slice, or the GPUs of one node."""

    chip: Chip
    chips: int
    shape: str  # as compilers spell it: 4x4 of TPU chips; 1x8x1 is one node of eight GPUs

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def name(self) -> str:
        if self.chip.platform == "cuda":
            return f"{self.chip.name}x{self.chips}"
        return f"{self.chip.name}-{self.chips * self.chip.cores}"


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
_GB, _GIB = 1e9, 2.0**30  # TPU pages write GB; their compilers count GiB


def _cuda_target(description: str, capability: tuple[int, int], **device: int | float) -> str:
    """Fields as xla/stream_executor/device_description.proto names them; limits that NVIDIA's cards share are here."""
    shared = dict(
        threads_per_block_limit=1024,
        threads_per_warp=32,
        shared_memory_per_block=49152,
        threads_per_core_limit=2048,
        block_dim_limit_x=2**31 - 1,
        block_dim_limit_y=65535,
        block_dim_limit_z=65535,
        registers_per_core_limit=65536,
        registers_per_block_limit=65536,
    )
    fields = "\n".join(f"  {name}: {value}" for name, value in (shared | device).items())
    major, minor = capability
    return (
        f"gpu_device_info {{\n{fields}\n  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
        'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 28 }\nruntime_version { major: 12 minor: 9 }\n'
        f'device_description_str: "{description}"\n'
    )


_HOPPER = dict(
    shared_memory_per_core=233472,
    shared_memory_per_block_optin=232448,
    core_count=132,
    fpus_per_core=128,
    l2_cache_size=52428800,
    clock_rate_ghz=1.98,
)
_CLOUD = "docs.cloud.google.com/tpu/docs/"

CHIPS = {
    chip.name: chip
    for chip in (
        # Links: half of the bidirectional inter-chip bandwidth per chip of the same page.
        Chip("v5e", "tpu", 197e12, 16 * _GIB, 819e9, 200e9, f"{_CLOUD}v5e", shapes=_FLAT),
        Chip("v6e", "tpu", 918e12, 32 * _GIB, 1638e9, 400e9, f"{_CLOUD}v6e", shapes=_FLAT),
        Chip("v5p", "tpu", 459e12, 95 * _GIB, 2765e9, 600e9, f"{_CLOUD}v5p", cores=2, shapes=_CUBIC),
        # That page gives v4 no bandwidth of its links: six of 45 GB/s, jax-ml.github.io/scaling-book/tpus.
        Chip("v4", "tpu", 275e12, 32 * _GIB, 1200e9, 270e9, f"{_CLOUD}v4", cores=2, shapes=_CUBIC),
        Chip("tpu7x", "tpu", 2307e12, 192 * _GIB, 7380e9, 600e9, f"{_CLOUD}tpu7x", cores=2, devices=2, shapes=_CUBIC),
        # Targets: XLA's own descriptions in xla/tools/hlo_opt/gpu_specs. It has none of an H200, which NVIDIA's data
        # sheet makes an H100 with other memory: derived. Links: NVLink, half of the data sheet's bidirectional sum.
        Chip(
            "a100",
            "cuda",
            312e12,
            80 * _GB,
            2039e9,
            300e9,
            "NVIDIA A100 80GB SXM data sheet",
            target=_cuda_target(
                "NVIDIA A100-SXM4-80GB",
                (8, 0),
                shared_memory_per_core=167936,
                shared_memory_per_block_optin=166912,
                core_count=108,
                fpus_per_core=64,
                l2_cache_size=41943040,
                clock_rate_ghz=1.41,
                memory_bandwidth=2039040000000,
                device_memory_size=85100068864,
            ),
        ),
        Chip(
            "h100",
            "cuda",
            989e12,
            80 * _GB,
            3350e9,
            450e9,
            "NVIDIA H100 SXM data sheet",
            target=_cuda_target(
                "NVIDIA H100 80GB HBM3",
                (9, 0),
                memory_bandwidth=3352320000000,
                device_memory_size=84978434048,
                **_HOPPER,
            ),
        ),
        Chip(
            "h200",
            "cuda",
            989e12,
            141 * _GB,
            4800e9,
            450e9,
            "NVIDIA H200 SXM data sheet",
            target=_cuda_target(
                "NVIDIA H200",
                (9, 0),
                memory_bandwidth=4800000000000,
                device_memory_size=141000000000,
                **_HOPPER,
            ),
        ),
    )
}
MOST_GPUS = 8  # of one node


def find_slice(name: str) -> Slice:
    """The slice of a name such as "v5e-16", "v5p-64" or "h100x8".

    Raises:
      ValueError: unknown chip, or a size that no slice has; lists those there are.
    """
    form = re.fullmatch(r"(\w+?)(?:x(\d+)|-(\d+))?", name)
    chip = CHIPS.get(form[1]) if form else None
    if chip is None:
        raise ValueError(f"topology={name!r}: choose a chip of {', '.join(CHIPS)}, as in v5e-16, v5p-64 or h100x8")
    if chip.platform == "cuda":
        count = int(form[2] or 1)
        if form[3] or count not in range(1, MOST_GPUS + 1):
            raise ValueError(f"topology={name!r}: GPUs are written {chip.name}x1 to {chip.name}x{MOST_GPUS}")
        return Slice(chip, count, f"1x{count}x1")
    shapes = {math.prod(map(int, shape.split("x"))): shape for shape in chip.shapes}
    counted = int(form[3] or chip.cores)
    if form[2] or counted % chip.cores or counted // chip.cores not in shapes:
        unit = "TensorCores" if chip.cores > 1 else "chips"
        sizes = ", ".join(f"{chip.name}-{chips * chip.cores}" for chips in shapes)
        raise ValueError(f"topology={name!r}: {chip.name} slices are named by their {unit}: {sizes}")
    return Slice(chip, counted // chip.cores, shapes[counted // chip.cores])
