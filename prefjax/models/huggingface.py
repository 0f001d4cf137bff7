"""Hugging Face folders (config.json, safetensors) <-> ModelConfig and parameters, tensor by tensor, without torch."""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from prefjax.models import decoder, families
from prefjax.models.decoder import ModelConfig
from prefjax.models.parameters import Params
from prefjax.state_files import read_object

_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = ("F64", "F32", "F16", "BF16")
# Buffers that old files hold beside the parameters; computed from config.json here.
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$")


def is_checkpoint(folder: str | Path) -> bool:
    """Whether this is a Hugging Face model folder (and not a run's working directory, which has a config.json too)."""
    path = Path(folder) / "config.json"
    return path.is_file() and "model_type" in read_object(path)


def read_config(folder: str | Path, **numerics: str) -> ModelConfig:
    """The architecture that config.json says.

    Args:
      numerics: `dtype`, `param_dtype`, `remat`, `attention` of the ModelConfig.

    Raises:
      ValueError: an architecture, or a value of config.json, that the decoder does not compute; names it.
    """
    return _model_config(folder, _read(folder)[1], **numerics)


def read_params(folder: str | Path, config: ModelConfig, shardings: Any = None) -> Params:
    """Parameters of a folder in `config.param_dtype`, each device's share read from the files straight onto it.

    No more than one device's share of one parameter is in host memory at a time.

    Args:
      config: as `read_config` gives it; numerics may differ.
      shardings: a tree of shardings like the parameters; None puts everything on the default device.

    Raises:
      ValueError: names the fields of `config` that contradict the folder, tensors that are missing, not expected, or
        of another shape, or a tensor type that is no floating point.
    """
    family, fields = _read(folder)
    require_same(config, _model_config(folder, fields), str(folder))
    tensors, plan = _Tensors(folder), _plan(config, family)
    copies = {"lm_head.weight": plan["embedding"].name} if config.tie_embeddings else {}
    tensors.check({name: shape for piece in plan.values() for name, shape in piece.expected()}, copies)
    shapes = decoder.shapes(config)
    if shardings is None:
        shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)

    def place(path, shape, sharding):
        read = functools.partial(plan[_name(path)].read, tensors, shape.dtype)
        return _placed(shape.shape, sharding, read)

    return jax.tree_util.tree_map_with_path(place, shapes, shardings)


def load_huggingface(
    folder: str | Path, *, shardings: Callable[[Params], Any] | None = None, **numerics: str
) -> tuple[ModelConfig, Params]:
    """Config and parameters of a folder, errors as in `read_config` and `read_params`.

    Args:
      shardings: from the parameters' shapes to their shardings, for instance
        `functools.partial(parameter_shardings, mesh)`; None puts everything on the default device.
    """
    config = read_config(folder, **numerics)
    return config, read_params(folder, config, None if shardings is None else shardings(decoder.shapes(config)))


def save_huggingface(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    *,
    like: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes config.json and weights as transformers and vLLM load them; `read_params` gives the parameters back.

    The weights of one file at most are in host memory at a time. For parameters that this process can see whole. With
    a scalar reward head in place of the vocabulary's they become an AutoModelForSequenceClassification of one label,
    which `read_params` does not take.

    Args:
      folder: new or empty.
      like: the folder the model came from: its config.json is kept, type of numbers and `settings` aside. None: that
        of the first family that computes the same.
      settings: further entries of config.json, for instance `max_position_embeddings`.
      dtype: of the files; None is `config.param_dtype`.
      shard_bytes: a larger model is cut into several files with an index.

    Raises:
      ValueError: no family computes what this model does, or `like` is of another architecture.
      FileExistsError: the folder holds something.
    """
    folder, dtype = Path(folder), jnp.dtype(dtype or config.param_dtype)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: export into a new folder")
    if like is None:
        family = families.family_of(config)
        values = families.write_architecture(config, family)
    else:
        family, fields = _read(like)
        require_same(config, _model_config(like, fields), str(like))
        values = read_object(Path(like) / "config.json")
        # The newer name of torch_dtype, and a pointer to code that does not come along.
        for name in ("dtype", "auto_map"):
            values.pop(name, None)
    values |= {"torch_dtype": dtype.name, **(settings or {})}
    if rewards := "reward_head" in params:
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        values |= {"architectures": [family.classifier], **labels}
        config = dataclasses.replace(config, tie_embeddings=True)  # no vocabulary head
    plan = _plan(config, family)
    if rewards:
        plan["reward_head"] = _Piece("score.weight", (config.width, 1), 0, 1, transposed=True)
    folder.mkdir(parents=True, exist_ok=True)
    _write_tensors(folder, plan, params, dtype, shard_bytes)
    # Last, so that a folder whose writing was cut off is no checkpoint.
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def require_same(config: ModelConfig, other: ModelConfig, source: str) -> None:
    """Raises ValueError with every field in which two architectures differ."""
    ours, theirs = families.architecture(config), families.architecture(other)
    wrong = [f"model.{name}={ours[name]!r}, not {theirs[name]!r}" for name in ours if ours[name] != theirs[name]]
    if wrong:
        raise ValueError(f"the model contradicts {source}: {'; '.join(wrong)}. Leave these fields out")


def _read(folder: str | Path) -> tuple[families.Family, dict[str, Any]]:
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: it must be a Hugging Face model folder")
    return families.read_architecture(read_object(path), str(path))


def _model_config(folder: str | Path, fields: Mapping[str, Any], **numerics: str) -> ModelConfig:
    try:
        return ModelConfig(**fields, **numerics)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}/config.json: {error}") from error


def _name(path: Any) -> str:
    return "/".join(key.key for key in path)


class _Piece(NamedTuple):
    """One of our parameters in the files. Kernels are [inputs, outputs] here and [outputs, inputs] there.

    name   of the tensor that holds it, with {} for the layer
    shape  ours, with the leading axis of layers if it has one
    start  first row among those fused in one tensor
    rows   of the whole tensor
    """

    name: str
    shape: tuple[int, ...]
    start: int
    rows: int
    transposed: bool

    @property
    def layers(self) -> int:
        return self.shape[0] if "{}" in self.name else 0

    def expected(self) -> list[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every tensor this parameter is in."""
        one = self.shape[1:] if self.layers else self.shape
        shape = (self.rows, *(one[:-1] if self.transposed else one[1:]))
        return [(self.name.format(layer), shape) for layer in range(self.layers or 1)]

    def stored(self, leaf: jax.Array | np.ndarray, layer: int, dtype: np.dtype) -> np.ndarray:
        """What the files keep of our parameter: of one layer, in their orientation."""
        block = np.asarray(leaf[layer] if self.layers else leaf).astype(dtype)
        return block.T if self.transposed else block

    def read(self, tensors: "_Tensors", dtype: np.dtype, index: tuple[slice, ...]) -> np.ndarray:
        """The block of our parameter at `index`."""
        ranges = [range(*part.indices(size)) for part, size in zip(index, self.shape, strict=True)]
        layers = ranges.pop(0) if self.layers else [None]
        block = np.empty((len(layers), *map(len, ranges)), dtype)
        for at, layer in enumerate(layers):
            spans = [slice(span.start, span.stop) for span in (ranges[::-1] if self.transposed else ranges)]
            spans[0] = slice(spans[0].start + self.start, spans[0].stop + self.start)
            stored = tensors.read(self.name.format(layer), tuple(spans))
            block[at] = stored.T if self.transposed else stored
        return block if self.layers else block[0]


def _plan(config: ModelConfig, family: families.Family) -> dict[str, _Piece]:
    """Where each of our parameters is, by path."""
    shapes = {_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(decoder.shapes(config))}
    stored = {path: family.stored(path) for path in shapes}
    rows = lambda path: shapes[path][-1] if path.startswith("layers/") else shapes[path][0]
    plan = {}
    for path, (name, rank) in stored.items():
        fused = {other.rank: rows(p) for p, other in stored.items() if other.name == name}
        start = sum(size for other, size in fused.items() if other < rank)
        plan[path] = _Piece(name, shapes[path], start, sum(fused.values()), path.endswith("/kernel"))
    return plan


class _Tensors:
    """The tensors of a folder's safetensors files, opened and not read."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if (self.folder / _INDEX).is_file():
            weights = read_object(self.folder / _INDEX).get("weight_map")
            names = list(weights.values()) if isinstance(weights, dict) else [weights]
            for name in names:
                if not isinstance(name, str) or Path(name).name != name:
                    raise ValueError(f"{self.folder / _INDEX}: {name!r} is no name of a file in this folder")
            files = sorted(set(names))
        else:
            files = [_ONE_FILE]
        absent = [name for name in files if not (self.folder / name).is_file()]
        if absent:
            raise FileNotFoundError(f"{folder} holds no {', '.join(absent)}: weights must be safetensors files")
        self._slices = {}
        for name in files:
            try:
                file = safe_open(self.folder / name, framework="np")
                self._slices |= {tensor: file.get_slice(tensor) for tensor in file.keys()}
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{self.folder / name} is damaged: {error}") from error

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        return self._slices[name][index]

    def check(self, expected: Mapping[str, tuple[int, ...]], copies: Mapping[str, str]) -> None:
        """Raises ValueError naming what differs from these names and shapes.

        Args:
          copies: tensors that may be there too if they equal another one.
        """
        found = {name for name in self._slices if not _COMPUTED.search(name)}
        problems = [f"{name} is missing" for name in expected if name not in found]
        problems += [f"{name} is not expected" for name in sorted(found - {*expected, *copies})]
        for name in filter(found.__contains__, expected):
            shape, dtype = tuple(self._slices[name].get_shape()), self._slices[name].get_dtype()
            if shape != expected[name]:
                problems.append(f"{name} has shape {shape}, not {expected[name]}")
            elif dtype not in _DTYPES:
                problems.append(f"{name} has type {dtype}, none of {', '.join(_DTYPES)}")
        if not problems:
            problems = [
                f"{name} differs from {other} that it is tied to"
                for name, other in copies.items()
                if name in found and not self._equal(name, other)
            ]
        if problems:
            more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise ValueError(f"{self.folder} does not match its config.json: {'; '.join(problems[:8])}{more}")

    def _equal(self, *names: str) -> bool:
        one, other = (self._slices[name] for name in names)
        rows = one.get_shape()[0]
        parts = (slice(start, min(start + 4096, rows)) for start in range(0, rows, 4096))
        return one.get_shape() == other.get_shape() and all(np.array_equal(one[part], other[part]) for part in parts)


def _placed(shape: tuple[int, ...], sharding: jax.sharding.Sharding, read: Callable[..., np.ndarray]) -> jax.Array:
    """An array of blocks, each read once and put on every device of this process that holds it."""
    holders = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        holders.setdefault(tuple((part.start, part.stop) for part in index), []).append(device)
    pieces = []
    for spans, devices in holders.items():
        block = read(tuple(slice(*span) for span in spans))
        pieces += [jax.device_put(block, device) for device in devices]
        jax.block_until_ready(pieces)  # so that only one block is in host memory
    return jax.make_array_from_single_device_arrays(shape, sharding, pieces)


def _write_tensors(folder: Path, plan: Mapping[str, _Piece], params: Params, dtype: np.dtype, limit: int) -> None:
    """Safetensors files of at most `limit` bytes (or one tensor), and an index if there are several."""
    leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    tensors, sizes = {}, {}
    for path, piece in sorted(plan.items(), key=lambda item: item[1].start):
        for layer, (name, shape) in enumerate(piece.expected()):
            tensors.setdefault(name, []).append((path, layer))
            sizes[name] = int(np.prod(shape)) * dtype.itemsize
    files, room = [[]], limit
    for name in sizes:
        if sizes[name] > room and files[-1]:
            files.append([])
            room = limit
        files[-1].append(name)
        room -= sizes[name]
    named = {_ONE_FILE: files[0]}
    if len(files) > 1:
        named = {f"model-{i:05}-of-{len(files):05}.safetensors": names for i, names in enumerate(files, 1)}
        index = {"metadata": {"total_size": sum(sizes.values())}}
        index["weight_map"] = {name: file for file, names in named.items() for name in names}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
    os.umask(mask := os.umask(0))
    for file, names in named.items():
        parts = lambda name: [plan[path].stored(leaves[path], layer, dtype) for path, layer in tensors[name]]
        # safetensors writes memory as it lies, and a transpose lies the wrong way.
        whole = {name: np.ascontiguousarray(np.concatenate(parts(name))) for name in names}
        save_file(whole, folder / file, metadata={"format": "pt"})
        # safetensors writes for the owner alone, whatever the process's mask says.
        (folder / file).chmod(0o666 & ~mask)
