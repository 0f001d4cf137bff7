"""Where a policy's parameters come from: a seed, another run's newest checkpoint, or a Hugging Face folder."""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from prefjax.data.config import DataConfig
from prefjax.data.encoding import end_id
from prefjax.data.records import Message
from prefjax.data.tokenizers import TemplateError, Tokenizer, load_tokenizer
from prefjax.losses import objective
from prefjax.models import ModelConfig, hub, init, lora
from prefjax.models.huggingface import is_checkpoint, read_params
from prefjax.options import build
from prefjax.state_files import read_object
from prefjax.training.checkpoint import load_params, load_proof
from prefjax.training.mesh import parameter_shardings


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy that was opened: what samples from it, scores with it, trains on from it, or writes it elsewhere.

    params    of the decoder alone, on `mesh`
    stop_ids  tokens that end a response
    data      names the tokenizer and its chat template, and says how long texts may be
    origin    the Hugging Face folder that it goes back to; None: it began from a seed
    """

    model: ModelConfig
    params: Any
    mesh: Mesh
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    data: DataConfig = DataConfig()
    origin: str | None = None


def tokenizer_of(data: DataConfig, model: ModelConfig) -> Tokenizer:
    """The tokenizer of a run, held to the model's vocabulary. Raises as `load_tokenizer`."""
    return load_tokenizer(
        data.tokenizer,
        data.chat_template,
        vocab_size=model.vocab_size,
        chat_template_kwargs=data.chat_template_kwargs,
        date=data.date,
    )


def complete_model(model: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The model with its vocabulary size: the tokenizer's, where it says none."""
    return model if model.vocab_size else dataclasses.replace(model, vocab_size=tokenizer.vocab_size)


def read_policy(source: str, model: ModelConfig, mesh: Mesh, *, seed: int = 0) -> Any:
    """A policy's parameters on the mesh, adapters merged into what they lie on.

    Args:
      source: a run's workdir, or a Hugging Face folder or model; empty: fresh parameters.
      seed: of fresh parameters.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the folder holds another architecture than `model`; names the fields. Or a reward model.
    """
    source, key = hub.local(source), jax.random.key(seed)
    fresh = functools.partial(init, model)
    shapes = jax.eval_shape(fresh, key)
    shardings = parameter_shardings(mesh, shapes)
    if not source:
        return jax.jit(fresh, out_shardings=shardings)(key)
    if is_checkpoint(source):
        return read_params(source, model, shardings)
    proof = load_proof(source)
    options = proof.identity["config"] if proof else {}
    name = options.get("objective", "")
    if _trains_reward_model(name):
        raise ValueError(f"{source} holds a reward model ({name}), which is no policy: it has no vocabulary head")
    if proof and options["lora"]["rank"]:
        adapters = build(lora.LoraConfig, options["lora"], f"{source}: config.lora")
        base = lora.freeze(adapters, read_policy(proof.facts["init_from"], model, mesh, seed=options["seed"]))
        saved = load_params(source, {"policy": on_mesh(mesh, lora.shapes(adapters, shapes))})["policy"]
        return jax.jit(functools.partial(lora.merge, adapters), out_shardings=shardings)(base, saved)
    return load_params(source, {"policy": on_mesh(mesh, shapes)})["policy"]


def _trains_reward_model(name: str) -> bool:
    try:
        return objective(name).requires.reward_head
    except ValueError:
        return False  # no run's, or one whose module is not here


def on_mesh(mesh: Mesh, shapes: Any) -> Any:
    """Shapes with the shardings that parameters of these names have."""
    place = lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
    return jax.tree.map(place, shapes, parameter_shardings(mesh, shapes))


def stop_ids(folder: str | None, tokenizer: Tokenizer, ends: Sequence[int] | None = None) -> tuple[int, ...]:
    """Ids at which a policy stops: those of its Hugging Face folder, EOS, and those that responses end with.

    Args:
      folder: the one it goes back to; None: it began from a seed.
      ends: seen in the data of its run; None: there is no run, and the template is asked.
    """
    config = read_json(folder, "config.json")
    before = read_json(folder, "generation_config.json").get("eos_token_id", config.get("eos_token_id"))
    ids = before if isinstance(before, list) else [] if before is None else [before]
    if ends is None and tokenizer.has_chat_template:
        with contextlib.suppress(TemplateError):  # the template wants more than a question, so the folder has to say
            ends = [end_id((Message("user", "a"),), tokenizer)]
    return tuple(dict.fromkeys([*ids, tokenizer.eos_id, *(ends or [])]))


def ends_of_run(workdir: str | Path) -> list[int] | None:
    """Ids that end responses of a run's training data; None where no run says."""
    return read_json(str(workdir), "run.json").get("data", {}).get("train", {}).get("end_ids")


def context_of(source: str) -> int | None:
    """Positions that a policy was made for, as its Hugging Face folder says, through the runs between; None: not said.

    Args:
      source: as `read_policy` takes it.
    """
    if source and is_checkpoint(source):
        return read_json(source, "config.json").get("max_position_embeddings")
    return read_json(source, "run.json").get("context")


def read_json(folder: str | None, name: str) -> dict[str, Any]:
    """A JSON file of a folder; empty where there is none."""
    path = Path(folder or "") / name
    return read_object(path) if folder and path.is_file() else {}
