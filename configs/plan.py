"""Large runs to plan: what `python -m experiments.plan` compiles. Any config of a run can be planned the same way.

COMMAND   python -m experiments.plan --config=configs/plan.py:llama3_8b --topology=v5e-16
          The word after the colon is a shape: llama3_1b llama3_8b llama3_70b.
SHAPES    Llama 3.1 8B and 70B and Llama 3.2 1B, as their config.json say. DPO, float32 parameters and AdamW, bfloat16
          compute, everything recomputed in the backward pass, parameters cut over all chips, reference precomputed.
RESULT    docs/plans.md
"""

import ml_collections

SHAPES = {
    "llama3_1b": dict(num_layers=16, width=2048, num_heads=32, head_width=64, mlp_width=8192, tie_embeddings=True),
    "llama3_8b": dict(num_layers=32, width=4096, num_heads=32, head_width=128, mlp_width=14_336, tie_embeddings=False),
    "llama3_70b": dict(num_layers=80, width=8192, num_heads=64, head_width=128, mlp_width=28_672, tie_embeddings=False),
}


def get_config(shape: str = "llama3_8b") -> ml_collections.ConfigDict:
    if shape not in SHAPES:
        raise ValueError(f"configs/plan.py:{shape}: choose one of {', '.join(SHAPES)}")
    config = ml_collections.ConfigDict()
    config.objective = "dpo"
    config.loss = dict(beta=0.1)
    config.data = dict(train="synthetic", tokenizer="byte")  # not read: lengths come from --lengths
    config.rows = dict(layout="shared_packed", batching="rows", row_length=4096, tokens_per_step=65_536)
    config.model = dict(
        vocab_size=128_256,
        num_kv_heads=8,
        rope_theta=500_000.0,
        dtype="bfloat16",
        param_dtype="float32",
        remat="full",
        attention="auto",
        **SHAPES[shape],
    )
    config.optimizer = dict(name="adamw", learning_rate=1e-6, schedule="linear", warmup_steps=150, clip_norm=1.0)
    config.train = dict(steps=1500)
    config.reference = dict(kind="precomputed")
    config.lora = dict(rank=0, quantize="none")  # rank 16 and "nf4": what QLoRA needs
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    config.accumulation = 1
    return config.lock()
