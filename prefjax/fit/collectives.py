"""What a compiled program sends between devices: its HLO text read, loops multiplied by their trip counts."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
# Bytes that a device receives per byte of operand, in a group of n devices, by the bandwidth-optimal algorithm.
_RECEIVED = {
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
_WIDTHS = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"\b(calls|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch|called)_computations=\{([^}]*)\}")


class Traffic(NamedTuple):
    """Per device and step. count: times it runs; received: bytes that arrive at the device."""

    count: int
    received: int | float


@dataclasses.dataclass(frozen=True)
class Collectives:
    """Traffic by kind (those in `KINDS` that occur), and what the text did not tell.

    unknown_loops  loops that hold collectives and whose trip count could not be read; they are counted once
    unknown_groups collectives whose group could not be read; all devices are assumed
    """

    by_kind: dict[str, Traffic]
    unknown_loops: tuple[str, ...] = ()
    unknown_groups: int = 0

    @property
    def received(self) -> int | float:
        """Bytes that arrive at a device per step, of all kinds."""
        return sum(traffic.received for traffic in self.by_kind.values())

    @property
    def unread(self) -> str:
        """What is not known, in words; "" if all is."""
        loops = [f"trips of {loop}, counted once" for loop in self.unknown_loops]
        groups = [f"groups of {self.unknown_groups} collectives, taken as all devices"] if self.unknown_groups else []
        return "; ".join(loops + groups)


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str


class _Computation(NamedTuple):
    instructions: dict[str, _Instruction]
    root: str


class _Event(NamedTuple):
    instruction: _Instruction
    computation: str
    times: int
    fused: bool


def read_collectives(text: str) -> Collectives:
    """Counts the collectives of one step of an optimised HLO module, as `jax.stages.Compiled.as_text()` prints it.

    A collective in a loop runs once per trip. The count is XLA's own note where there is one, else it is derived from a
    counter that starts at a constant, grows by a constant and is compared with one. Of a conditional all branches
    count. A collective that TPU compilers spread over several fusions (it has one channel) is one collective.
    """
    program = _Program(text)
    events = list(program.walk(program.entry, 1, fused=False))
    spread: dict[str, _Event] = {}
    for event in events:
        if event.fused:
            key = _attribute(event.instruction, r"channel_id=(\d+)") or event.instruction.name
            if key not in spread or event.times < spread[key].times:
                spread[key] = event
    counts: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0])
    unknown_groups = 0
    for event in [event for event in events if not event.fused] + list(spread.values()):
        kind = event.instruction.opcode.removesuffix("-start")
        group = program.group_size(event.instruction)
        unknown_groups += group is None
        operands = program.operand_bytes(event.computation, event.instruction)
        counts[kind][0] += event.times
        counts[kind][1] += event.times * operands * _RECEIVED[kind](group or program.devices)
    by_kind = {kind: Traffic(int(counts[kind][0]), counts[kind][1]) for kind in KINDS if kind in counts}
    return Collectives(by_kind, tuple(sorted(program.unknown_loops)), unknown_groups)


class _Program:
    """The computations of a module by name."""

    def __init__(self, text: str):
        self.unknown_loops: set[str] = set()
        self._known: dict[str, bool] = {}  # whether a computation holds a collective, at any depth
        self.devices = int(_search(r"num_partitions=(\d+)", text) or 1) * int(
            _search(r"replica_count=(\d+)", text) or 1
        )
        self.computations: dict[str, _Computation] = {}
        self.entry = ""
        name, instructions, root = "", {}, ""
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                name, instructions, root = header[2], {}, ""
                self.entry = name if header[1] else self.entry
            elif line.startswith("}"):
                self.computations[name] = _Computation(instructions, root)
            elif found := _INSTRUCTION.match(line):
                operands, attributes = _split_call(line[found.end() :])
                names = tuple(re.findall(r"%([\w.\-]+)", operands)) or tuple(re.findall(r"[\w.\-]+", operands))
                value = operands if found[4] == "constant" else attributes
                instructions[found[2]] = _Instruction(found[2], found[3], found[4], names, value)
                root = found[2] if found[1] else root
        if self.entry not in self.computations:
            raise ValueError("this is no HLO module: it has no ENTRY computation")

    def walk(self, name: str, times: int, fused: bool) -> Iterator[_Event]:
        """Collectives that run when a computation runs `times` times."""
        if not self._communicates(name):
            return
        for instruction in self.computations[name].instructions.values():
            if instruction.opcode.removesuffix("-start") in KINDS:
                yield _Event(instruction, name, times, fused)
            trips = 1
            if instruction.opcode == "while":
                trips = self._trip_count(name, instruction)
                if trips is None:
                    trips = 1
                    if self._communicates(_attribute(instruction, r"body=%?([\w.\-]+)")):
                        self.unknown_loops.add(_attribute(instruction, r'op_name="([^"]*)"') or instruction.name)
            for called in _called(instruction):
                yield from self.walk(called, times * trips, fused or instruction.opcode == "fusion")

    def _communicates(self, name: str) -> bool:
        if name not in self._known:
            instructions = self.computations[name].instructions.values()
            self._known[name] = any(i.opcode.removesuffix("-start") in KINDS for i in instructions) or any(
                self._communicates(called) for i in instructions for called in _called(i)
            )
        return self._known[name]

    def group_size(self, instruction: _Instruction) -> int | None:
        """Devices of one group; None where the text has a form unknown here."""
        text = instruction.attributes
        if "source_target_pairs=" in text or "replica_groups={}" in text:
            return self.devices
        if explicit := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
            return explicit[1].count(",") + 1
        if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text):
            return int(iota[2])
        if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^)]*\))? \{([^}]*)\}", text):
            sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
            axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])  # 'a':(m)k is a part of size k of axis a
            return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
        return None

    def operand_bytes(self, computation: str, instruction: _Instruction) -> int:
        known = self.computations[computation].instructions
        return sum(_bytes(known[name].shape) for name in instruction.operands if name in known)

    def _trip_count(self, computation: str, loop: _Instruction) -> int | None:
        if noted := _attribute(loop, r'known_trip_count":\{"n":"(\d+)"'):
            return int(noted)
        condition = self.computations[_attribute(loop, r"condition=%?([\w.\-]+)")]
        body = self.computations[_attribute(loop, r"body=%?([\w.\-]+)")]
        compare = condition.instructions[condition.root]
        if compare.opcode != "compare" or _attribute(compare, r"direction=(\w+)") != "LT":
            return None
        counter, limit = (_resolve(condition, name) for name in compare.operands)
        index = _attribute(counter, r"index=(\d+)") if counter.opcode == "get-tuple-element" else None
        if index is None:
            return None
        start = self._tuple_element(computation, loop.operands[0], int(index))
        add = _resolve(body, body.instructions[body.root].operands[int(index)])
        if start is None or add.opcode != "add":
            return None
        terms = [_resolve(body, name) for name in add.operands]
        step = next((_constant(term) for term in terms if term.opcode == "constant"), None)
        carried = any(t.opcode == "get-tuple-element" and _attribute(t, r"index=(\d+)") == index for t in terms)
        begin, end = _constant(_resolve(self.computations[computation], start)), _constant(limit)
        if step is None or not carried or begin is None or end is None or step < 1:
            return None
        return max(0, math.ceil((end - begin) / step))

    def _tuple_element(self, computation: str, name: str, index: int) -> str | None:
        made = _resolve(self.computations[computation], name)
        return made.operands[index] if made.opcode == "tuple" else None


def _resolve(computation: _Computation, name: str) -> _Instruction:
    """The instruction behind copies."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("copy", "bitcast", "convert") and instruction.operands:
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _constant(instruction: _Instruction) -> int | None:
    whole = instruction.opcode == "constant" and re.fullmatch(r"\s*(-?\d+)\s*", instruction.attributes)
    return int(whole[1]) if whole else None


def _called(instruction: _Instruction) -> list[str]:
    found = [name for _, name in _CALLED.findall(instruction.attributes)]
    for branches in _BRANCHES.findall(instruction.attributes):
        found += re.findall(r"[\w.\-]+", branches)
    return found


def _split_call(text: str) -> tuple[str, str]:
    """What stands inside the call's parentheses, and what behind them."""
    depth = 1
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return text[:position], text[position + 1 :]
    return text, ""


def _bytes(shape: str) -> int:
    """Bytes of a shape, padding of layouts left out; all elements of a tuple."""
    total = 0
    for dtype, sizes in re.findall(r"\b(pred|bf16|[fsuc]\d+)\w*\[([\d,]*)\]", shape):
        width = _WIDTHS.get(dtype) or max(int(dtype[1:]) // 8, 1)
        total += width * math.prod(int(size) for size in sizes.split(",") if size)
    return total


def _attribute(instruction: _Instruction, pattern: str) -> str | None:
    return _search(pattern, instruction.attributes)


def _search(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None
