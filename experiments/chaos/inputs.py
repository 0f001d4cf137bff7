"""Records, files, option values and models' folders that nobody should give."""

import copy
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import quickstart
from experiments.chaos.records import fuzzed_file, fuzzed_lines, outcome
from experiments.chaos.tally import DIFFERENT, FAULT, FINE, REFUSED, Tally, damage_a_file
from experiments.config_flag import complete
from prefjax.data.tokenizer_files import write_tokenizer
from prefjax.models import ModelConfig, init
from prefjax.models.huggingface import save_huggingface
from prefjax.options import walk
from prefjax.policies.open import open_policy
from prefjax.training.config import StageConfig
from prefjax.training.runs import run_config

_VALUES: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 7, 10**9, 2**63, -(10**400), 10**400, True),
    *(-1.0, -0.1, 0.0, 0.5, 1.0, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")),
    *("", "nonsense", "-1", "nan", (), (1, 2), ("a",)),
)


def records(folder: Path, seed: int, size: int) -> Tally:
    """Lines of damaged JSON, a hundred a file."""
    tally = Tally("a fuzzed record")
    for number in range(0, size, 100):
        path = folder / f"records-{number}.jsonl"
        lines = list(fuzzed_lines(seed + number, min(100, size - number)))
        path.write_bytes(b"\n".join(lines))
        _read(tally, path, len(lines))
        path.unlink()
    return tally


def files(folder: Path, seed: int, size: int) -> Tally:
    """Files of every container and encoding, three of four damaged."""
    tally = Tally("a fuzzed file")
    for number in range(size):
        path = fuzzed_file(folder, seed + number)
        _read(tally, path, 1)
        path.unlink()
    return tally


def _read(tally: Tally, path: Path, count: int) -> None:
    try:
        found = outcome(path)
    except Exception as error:
        tally.ends += [(FAULT, f"{path.name}: {type(error).__name__}: {str(error)[:300]}")] * count
        return
    kept = 0 if isinstance(found, str) else min(found[0], count)
    tally.ends += [(FINE, "")] * kept + [(REFUSED, "")] * (count - kept)


def options(seed: int, size: int) -> Tally:
    """Any value for any field of a config: outside of the field's range it must be refused by the field's name."""
    tally, draw = Tally("an option's value"), random.Random(seed)
    plain = complete(quickstart.get_config("dpo"), "configs/quickstart.py:dpo").to_dict()
    fields = [(path, field) for path, field in walk(StageConfig) if field.kind in (int, float, str, bool, tuple)]
    for _ in range(size):
        path, field = draw.choice(fields)
        values, value = copy.deepcopy(plain), draw.choice(_VALUES)
        holder = values
        *sections, name = path.split(".")
        for section in sections:
            holder[section] = holder.get(section) or {}
            holder = holder[section]
        holder[name] = value
        allowed = type(value) is field.kind and (value in field.range if field.kind is not tuple else True)
        try:
            run_config(values)
        except (ValueError, OSError) as error:
            named = name in str(error) or sections and sections[0] in str(error)
            tally.ends.append((REFUSED if named else FAULT, f"{path}={value!r}: {error}"))
        except Exception as error:
            tally.ends.append((FAULT, f"{path}={str(value)[:40]}: {type(error).__name__}: {error}"))
        else:
            number = type(value) is int and field.kind is float and value in field.range
            tally.ends.append((FINE if allowed or number else DIFFERENT, f"{path}={value!r}"))
    return tally


def folders(folder: Path, seed: int, size: int) -> Tally:
    """A model's folder with a damaged file, or a config.json that says something else."""
    tally, draw = Tally("a model's folder"), random.Random(seed)
    model = ModelConfig(
        vocab_size=264, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_width=8, mlp_width=24, qk_norm="head"
    )
    whole = folder / "model"
    params = jax.device_get(init(model, jax.random.key(0)))
    save_huggingface(whole, model, params, settings=dict(max_position_embeddings=512))
    write_tokenizer(whole, "byte")
    for _ in range(size):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            own = Path(place) / "model"
            shutil.copytree(whole, own)
            name = _contradict(own, draw) if draw.random() < 0.6 else damage_a_file(own, draw)
            try:
                policy = open_policy(own)
                np.asarray(jax.tree.leaves(policy.params)[0])
                # Weights have no checksum of their own, so what opens is what the folder says.
                tally.ends.append((FINE, name))
            except (ValueError, OSError) as error:
                tally.ends.append((REFUSED if place in str(error) else FAULT, f"{name}: {str(error)[:300]}"))
            except Exception as error:
                tally.ends.append((FAULT, f"{name}: {type(error).__name__}: {str(error)[:300]}"))
    return tally


def _contradict(folder: Path, draw: random.Random) -> str:
    """Gives a random field of config.json a random value."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    name, value = draw.choice(sorted(config)), draw.choice([*_VALUES, None, {}, [], {"a": 1}, 100_000_000])
    config[name] = value
    path.write_text(json.dumps(config))
    return f"config.json {name}={str(value)[:40]}"
