"""Finetunes a Hugging Face checkpoint on preferences: Llama, Mistral, SmolLM2, Qwen, Gemma 2 and 3, OLMo 2, Phi-3.

COMMAND   python -m experiments.train --config=configs/finetune.py:dpo --workdir=runs/mine \
              --config.init_from=FOLDER --config.data.train=preferences.jsonl.gz
          FOLDER holds config.json, safetensors and the tokenizer, or is the --workdir of an earlier run. The word after
          the colon is any objective. Back to a folder: python -m experiments.export --workdir=runs/mine --output=DIR
DATA      any file that `python -m experiments.prepare` reads.
HARDWARE  parameters, gradients and AdamW's moments take 16 bytes a parameter, and the live reference 4 more, spread
          over all devices there are.
RESULT    SmolLM2-135M-Instruct, dpo, 200 UltraFeedback pairs (trees of at most 512 tokens, ties dropped), one epoch, 16
          steps, float32, --config.rows.tokens_per_step=4096 --config.optimizer.warmup_steps=2; 419 other pairs:
          LoRA (--config.lora.rank=16, learning rate 5e-4): loss 0.667, reward accuracy 58.9 % (54.2 to 63.6);
          all parameters (2e-5): loss 0.672, reward accuracy 57.5 % (52.7 to 62.2); ln 2 is 0.693.
"""

import ml_collections

from configs import quickstart
from prefjax.losses import OBJECTIVES


def get_config(objective: str = "dpo") -> ml_collections.ConfigDict:
    if objective not in OBJECTIVES:
        raise ValueError(f"configs/finetune.py:{objective}: choose one of {', '.join(sorted(OBJECTIVES))}")
    facts = OBJECTIVES[objective]
    config = quickstart.get_config("dpo" if objective == "sft" else objective)
    with config.unlocked():
        del config.sft
        config.objective = objective
        config.loss = dict(facts.options)
        config.reference.kind = "live" if facts.needs_reference else "none"
        config.value_network = "own" if "value" in facts.needs else "none"
        config.data.train = ""
        config.data.tokenizer = ""  # empty: the checkpoint's
        config.data.normalize_targets = facts.reads == "rewards"
        # What is computed comes from the checkpoint; this says how.
        config.model = dict(dtype="bfloat16", param_dtype="float32", remat="full", attention="auto")
        config.rows.tokens_per_step = 16_384
        config.optimizer = dict(
            name="adamw", learning_rate=5e-7, schedule="cosine", warmup_steps=20, final_scale=0.1, clip_norm=1.0
        )
        if facts.trains_reward_model:
            config.optimizer.learning_rate = 1e-5  # as Llama 2's reward models, arXiv 2307.09288
        config.train = dict(steps=0, epochs=1, log_every=10, eval_every=100, checkpoint_every=200)
        config.train.update(profile_steps=0, writers=())
        config.mesh = dict(data=1, fsdp=-1, tensor=1)
        config.sampling = dict(prompts=32, max_new_tokens=256, temperature=1.0)
    return config.lock()
