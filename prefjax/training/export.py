"""A trained policy or reward model as a Hugging Face folder: weights, config, tokenizer with its chat template."""

import json
from pathlib import Path
from typing import Any

from prefjax.data.encoding import end_id
from prefjax.data.tokenizer_files import write_tokenizer
from prefjax.data.tokenizers import Tokenizer, load_tokenizer
from prefjax.models import ModelConfig
from prefjax.models.huggingface import save_huggingface
from prefjax.training.config import StageConfig
from prefjax.training.mesh import MeshConfig, make_mesh
from prefjax.training.rewards import load_reward_model
from prefjax.training.stage import complete_model, load_policy


def export_policy(
    config: StageConfig,
    workdir: str | Path,
    folder: str | Path,
    *,
    like: str | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes the policy of a run's newest checkpoint into a new folder that transformers and vLLM load.

    Parameters are spread over all devices of this process while they are read.

    Args:
      workdir: of the run; "" exports the parameters that `config` starts from when it starts from a seed.
      like, dtype, shard_bytes: as of `save_huggingface`; errors too.
    """
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.chat_template)
    model = complete_model(config.model, tokenizer)
    params = load_policy(config, model, make_mesh(MeshConfig(data=1, fsdp=-1)), str(workdir))
    write_policy(config, model, tokenizer, params, folder, like=like, dtype=dtype, shard_bytes=shard_bytes)


def export_reward_model(
    config: StageConfig,
    workdir: str | Path,
    folder: str | Path,
    *,
    like: str | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes the reward model of a run's newest checkpoint into a new folder that transformers loads by
    AutoModelForSequenceClassification; arguments as of `export_policy`.

    Its one logit is the score of a response that ends with the end token, as they do in training.

    Raises:
      ValueError: the head is an embedding, which no such class has; or the end token is the padding token too, so that
        transformers would not see it.
    """
    reward_model = load_reward_model(config, workdir)
    tokenizer, width = reward_model.tokenizer, config.reward_head.width
    if width != 1:
        raise ValueError(
            f"reward_head.width={width}: transformers has no model with an embedding head, only scalar ones"
        )
    if tokenizer.pad_id in (tokenizer.eos_id, end_id(tokenizer, chat=tokenizer.has_chat_template)):
        raise ValueError(
            f"the tokenizer's padding token is the end token (id {tokenizer.pad_id}): transformers reads the score at "
            "the last token that is no padding. Give data.tokenizer a folder whose tokenizer has its own"
        )
    model, params = reward_model.setup.model, reward_model.params
    write_policy(config, model, tokenizer, params, folder, like=like, dtype=dtype, shard_bytes=shard_bytes)


def write_policy(
    config: StageConfig,
    model: ModelConfig,
    tokenizer: Tokenizer,
    params: Any,
    folder: str | Path,
    *,
    like: str | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes any parameters of this model, with the tokenizer that `config.data` names, as `export_policy` does."""
    generation = _read(like, "generation_config.json")
    ids = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
    stops = stop_ids(like, tokenizer)
    settings = {} if like else {**ids, "eos_token_id": stops}
    if "reward_head" in params:
        settings["pad_token_id"] = tokenizer.pad_id
    if not like and config.data.encoding.max_length:
        settings["max_position_embeddings"] = config.data.encoding.max_length
    save_huggingface(folder, model, params, like=like, settings=settings, dtype=dtype, shard_bytes=shard_bytes)
    write_tokenizer(folder, config.data.tokenizer, config.data.chat_template)
    if "reward_head" in params:
        return
    generation = {**(generation or ids), "eos_token_id": stops}
    (Path(folder) / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def _read(folder: str | None, name: str) -> dict[str, Any]:
    path = Path(folder or "") / name
    return json.loads(path.read_text()) if folder and path.is_file() else {}


def _stops(before: int | list[int] | None, tokenizer: Tokenizer) -> list[int]:
    """Ids at which generation stops: those it had, EOS, and the end of turn that responses were trained to end with."""
    ids = before if isinstance(before, list) else [] if before is None else [before]
    ends = [tokenizer.eos_id, *([end_id(tokenizer, chat=True)] if tokenizer.has_chat_template else [])]
    return list(dict.fromkeys([*ids, *ends]))


def stop_ids(folder: str | None, tokenizer: Tokenizer) -> list[int]:
    """Ids at which the policy of a folder, or one that began there, stops; None: of a policy that began from a seed."""
    generation, config = _read(folder, "generation_config.json"), _read(folder, "config.json")
    return _stops(generation.get("eos_token_id", config.get("eos_token_id")), tokenizer)
