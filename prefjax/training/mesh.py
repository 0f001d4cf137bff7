"""Where arrays live: a (data, fsdp, tensor) device mesh and one list of (path regex -> PartitionSpec) rules.

Rows are spread over ("data", "fsdp"); parameters are cut over "fsdp" on one axis and "tensor" on the other.
"""

import dataclasses
import re
from typing import Any

import jax
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from prefjax.models.vocabulary import ROW_AXES
from prefjax.options import check_ranges, option
from prefjax.rows.arrays import Rows

AXES = ("data", "fsdp", "tensor")

# First match wins, on paths like "policy/layers/mlp/up/kernel". Scanned block parameters have a leading layer axis.
RULES = (
    (r"(embedding|head)$", P("tensor", "fsdp")),
    (r"(query|key|value|gate|up)/kernel(_codes|_scale)?$", P(None, "fsdp", "tensor")),
    (r"(attention/output|mlp/down)/kernel(_codes|_scale)?$", P(None, "tensor", "fsdp")),
    (r"(query|key|value|gate|up)/bias$", P(None, "tensor")),
    (r"(query|key|value|gate|up)/lora_a$", P(None, "fsdp")),
    (r"(query|key|value|gate|up)/lora_b$", P(None, None, "tensor")),
    (r"(attention/output|mlp/down)/lora_a$", P(None, "tensor")),
    (r"(attention/output|mlp/down)/lora_b$", P(None, None, "fsdp")),
    (r"", P()),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per axis. -1, for one axis at most, takes all that are left."""

    data: int = option(-1, "rows are spread over them, parameters copied", choices=(-1,), at_least=1, decides=False)
    fsdp: int = option(1, "rows are spread over them, parameters cut", choices=(-1,), at_least=1, decides=False)
    tensor: int = option(1, "heads, MLP and vocabulary are cut", choices=(-1,), at_least=1, decides=False)

    def __post_init__(self):
        check_ranges(self, "mesh")
        if [self.data, self.fsdp, self.tensor].count(-1) > 1:
            raise ValueError(f"mesh {dataclasses.asdict(self)}: one axis may be -1")


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The device mesh.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    fixed = 1
    for size in sizes:
        fixed *= max(size, 1)
    sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
    total = sizes[0] * sizes[1] * sizes[2]
    if total != len(devices):
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} needs {total} devices and {len(devices)} are there: "
            "set the mesh axes so that they multiply to it"
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of every array of `Rows`: the leading axis over data and fsdp."""
    return NamedSharding(mesh, P(ROW_AXES))


def row_shards(mesh: Mesh) -> int:
    """How many shards the leading axis of `Rows` has; B must be a multiple of it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def split_rows(mesh: Mesh, rows: Rows, parts: int) -> Rows:
    """[R, ...] -> [parts, R / parts, ...]: every device keeps its own rows, so nothing moves between devices.

    Raises:
      ValueError: the rows do not divide.
    """
    shards, count = row_shards(mesh), len(rows.valid)
    if count % (shards * parts):
        raise ValueError(
            f"{count} rows of groups do not divide into accumulation={parts} micro-batches on {shards} data shards: "
            f"make the rows per step a multiple of {shards * parts}"
        )

    def split(x):
        x = x.reshape(shards, parts, -1, *x.shape[1:]).swapaxes(0, 1).reshape(parts, -1, *x.shape[1:])
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, *row_sharding(mesh).spec)))

    return jax.tree.map(split, rows)


def merge_rows(parts: Any) -> Any:
    """[parts, R / parts, ...] -> [R, ...], in the order of the parts: rows, references and scores alike."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)


def host_share(mesh: Mesh) -> tuple[int, int]:
    """(which part of a step's rows this process holds, of how many). Processes that hold the same rows, as those that a
    tensor axis joins, have the same part."""
    parts: dict[int, set[int]] = {}
    for device, (rows,) in row_sharding(mesh).devices_indices_map((row_shards(mesh),)).items():
        parts.setdefault(device.process_index, set()).add(rows.start or 0)
    distinct = sorted({tuple(sorted(part)) for part in parts.values()})
    return distinct.index(tuple(sorted(parts[jax.process_index()]))), len(distinct)


def parameter_shardings(mesh: Mesh, params: Any) -> Any:
    """NamedShardings for a tree of parameters (or of their shapes), by `RULES`.

    A mesh axis that does not divide an array axis is left out there: that array axis is replicated over it.
    """

    def place(path, leaf):
        name = "/".join(str(key.key) for key in path)
        spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
        fitted = [
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, leaf.shape, strict=False)
        ]
        return NamedSharding(mesh, P(*fitted))

    return jax.tree_util.tree_map_with_path(place, params)


def optimizer_shardings(mesh: Mesh, optimizer: optax.GradientTransformation, params: Any) -> Any:
    """Shardings of the optimiser state: moments lie where their parameter lies, all else is replicated.

    Without explicit shardings `jit(optimizer.init)` would put every moment on one device (zeros depend on nothing).
    """
    replicated = NamedSharding(mesh, P())
    shapes = jax.eval_shape(optimizer.init, params)

    def place(moment, parameter, sharding):
        return sharding if moment.shape == parameter.shape else replicated

    return optax.tree.map_params(
        optimizer,
        place,
        shapes,
        params,
        parameter_shardings(mesh, params),
        transform_non_params=lambda _: replicated,
    )
