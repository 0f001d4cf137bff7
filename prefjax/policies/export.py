"""A trained policy or reward model as a Hugging Face folder: weights, config, tokenizer with its chat template."""

import json
from pathlib import Path

from prefjax.data.tokenizer_files import write_tokenizer
from prefjax.data.tokenizers import Tokenizer
from prefjax.models.huggingface import save_huggingface
from prefjax.policies.rewards import RewardModel
from prefjax.training.parameters import Policy, read_json, stop_ids


def export_policy(
    policy: Policy, folder: str | Path, *, dtype: str | None = None, shard_bytes: int = 5_000_000_000
) -> None:
    """Writes a policy into a new folder that transformers and vLLM load: weights, config, tokenizer, chat template.

    Args:
      dtype, shard_bytes: as of `save_huggingface`; errors too.
    """
    _write(policy, folder, dtype=dtype, shard_bytes=shard_bytes)
    generation = read_json(policy.origin, "generation_config.json") or _token_ids(policy.tokenizer)
    generation = {**generation, "eos_token_id": list(policy.stop_ids)}
    (Path(folder) / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def export_reward_model(
    reward_model: RewardModel,
    folder: str | Path,
    *,
    origin: str | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a scalar reward model into a new folder that transformers loads by AutoModelForSequenceClassification.

    Its one logit is the score of a response that ends with the end token, as they do in training.

    Args:
      origin: the Hugging Face folder that it goes back to; None: it began from a seed.
      dtype, shard_bytes: as of `save_huggingface`; errors too.

    Raises:
      ValueError: the head is an embedding, which no such class has; or the end token is the padding token too, so that
        transformers would not see it.
    """
    tokenizer, width = reward_model.tokenizer, reward_model.setup.reward_head.width
    if width != 1:
        raise ValueError(
            f"reward_head.width={width}: transformers has no model with an embedding head, only scalar ones"
        )
    stops = stop_ids(origin, tokenizer, reward_model.end_ids)
    if tokenizer.pad_id in (tokenizer.eos_id, *(reward_model.end_ids or [])):
        raise ValueError(
            f"the tokenizer's padding token is the end token (id {tokenizer.pad_id}): transformers reads the score at "
            "the last token that is no padding. Give data.tokenizer a folder whose tokenizer has its own"
        )
    setup = reward_model.setup
    trunk = Policy(setup.model, reward_model.params, setup.mesh, tokenizer, stops, reward_model.data, origin)
    _write(trunk, folder, dtype=dtype, shard_bytes=shard_bytes)


def _write(policy: Policy, folder: str | Path, *, dtype: str | None, shard_bytes: int) -> None:
    tokenizer, data, origin = policy.tokenizer, policy.data, policy.origin
    settings = {} if origin else {**_token_ids(tokenizer), "eos_token_id": list(policy.stop_ids)}
    if "reward_head" in policy.params:
        settings["pad_token_id"] = tokenizer.pad_id
    if not origin and data.encoding.max_length:
        settings["max_position_embeddings"] = data.encoding.max_length
    save_huggingface(
        folder, policy.model, policy.params, like=origin, settings=settings, dtype=dtype, shard_bytes=shard_bytes
    )
    write_tokenizer(folder, data.tokenizer, data.chat_template)


def _token_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    return {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
