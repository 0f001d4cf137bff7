"""Finetunes a Hugging Face checkpoint on preferences: Llama, Mistral, SmolLM2, Qwen, Gemma 2 and 3, OLMo 2, Phi-3.

PAPER     of each objective: docs/objectives.md. The learning rate of reward models is that of Llama 2's, arXiv
          2307.09288.
RESULT    SmolLM2-135M-Instruct, dpo, 200 UltraFeedback pairs (trees of at most 512 tokens, ties dropped), one epoch, 16
          steps, float32, --config.rows.tokens_per_step=4096; 419 other pairs:
          LoRA (--config.lora.rank=16, learning rate 5e-4): loss 0.667, reward accuracy 58.9 % (54.2 to 63.6);
          all parameters (2e-5): loss 0.672, reward accuracy 57.5 % (52.7 to 62.2); ln 2 is 0.693.
HARDWARE  parameters, gradients and AdamW's moments take 16 bytes a parameter, and the live reference 4 more, spread
          over all devices there are. What fits, before renting: experiments.plan takes this file too.
TIME      nobody has run it on an accelerator yet; experiments.plan says the least that a step can take.
COMMAND   python -m experiments.train --config=configs/finetune.py:dpo --workdir=runs/mine \\
              --config.init_from=FOLDER --config.data.train=preferences.jsonl.gz
          FOLDER holds config.json, safetensors and the tokenizer, or is the --workdir of an earlier run. The word after
          the colon is any objective, or a sum of some.
          Back to a folder: python -m experiments.export --workdir=runs/mine --output=DIR
DATA      any file that `python -m experiments.prepare` reads.

What is not said here is a default: docs/config.md, or --help.
"""

from ml_collections import ConfigDict

from prefjax.losses import objective as find_objective
from prefjax.requirements import PAIR_NUMBERS


def get_config(argument: str = "dpo") -> ConfigDict:
    objective, words = argument, set()
    while objective.endswith((",lora", ",smoke")):
        objective, _, word = objective.rpartition(",")
        words.add(word)
    facts = find_objective(objective)
    config = ConfigDict()
    config.objective = objective
    config.reference = dict(kind="live" if facts.requires.reference else "none")
    config.value_network = "own" if facts.requires.value else "none"
    if facts.requires.reward_head:  # width 1: a scalar reward; even: an embedding
        config.reward_head = dict(width=4, normalize=True, gate=True) if "gpm" in objective else dict(width=1)

    config.data = dict(
        train="",  # yours: there is no default
        tokenizer="",  # the checkpoint's
        holdout=0.1,
        encoding=dict(max_length=2048),
    )
    config.data.normalize_targets = facts.requires.reads == "rewards"
    config.data.pair_targets = "scores" if facts.requires.reads == "scores" else "labels"
    config.data.format = {f"{name}_field": name for name in PAIR_NUMBERS if name in facts.requires.inputs}
    if facts.requires.token_labels:
        config.data.format.spans_field = "spans"

    # What is computed comes from the checkpoint; this says how.
    config.model = dict(dtype="bfloat16", remat="full")
    config.optimizer = dict(learning_rate=5e-7, schedule="cosine", warmup_ratio=0.1, final_scale=0.1)
    if facts.requires.reward_head:
        config.optimizer.learning_rate = 1e-5
    config.train = dict(epochs=1, eval_every=100, checkpoint_every=200)
    config.mesh = dict(data=1, fsdp=-1)
    config.sampling = dict(prompts=32, max_new_tokens=256)
    if "lora" in words:
        config.lora = dict(rank=16)
        config.optimizer.learning_rate = 5e-4  # as in RESULT: a thousand times that of all parameters, measured for dpo
    if "smoke" in words:
        config.train = dict(steps=4, log_every=1, eval_every=2)
        config.sampling = dict(prompts=4, max_new_tokens=16)
    return config
