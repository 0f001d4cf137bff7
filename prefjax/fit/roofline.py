"""How fast a step can be on a chip at best: its work over the chip's peaks."""

from typing import NamedTuple

from prefjax.fit.chips import Chip


class StepTime(NamedTuple):
    """Seconds of one step if each part ran alone at the chip's peak."""

    compute: float
    memory: float
    links: float

    @property
    def overlapped(self) -> float:
        """Everything overlaps: no step is faster."""
        return max(self)

    @property
    def serial(self) -> float:
        """Nothing overlaps."""
        return sum(self)

    @property
    def bound(self) -> str:
        return self._fields[self.index(max(self))]


def step_time(chip: Chip, *, flops: float, bytes: float, received: float) -> StepTime:
    """Seconds of one step, from one device's FLOPs, bytes between memory and chip, and bytes received from others."""
    share = 1 / chip.devices
    return StepTime(
        compute=flops / (chip.peak_flops * share),
        memory=bytes / (chip.bandwidth * share),
        links=received / (chip.links * share),
    )
