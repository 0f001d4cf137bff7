"""Large runs to plan: what `python -m experiments.plan` compiles. Any config of a run can be planned the same way.

PAPER     prefix sharing, arXiv 2410.20305; the shapes are those of Llama 3.1 8B and 70B and Llama 3.2 1B, as their
          config.json say.
RESULT    docs/plans.md: the 8B model on v5e-16 takes 11.06 of 17.18 GB a device.
HARDWARE  a CPU; what is planned for need not be there.
TIME      1 to 4 minutes a TPU plan of the 8B model, 10 to 30 s a GPU plan.
COMMAND   python -m experiments.plan --config=configs/plan.py:llama3_8b --topology=v5e-16
          The word after the colon is a shape: llama3_1b llama3_8b llama3_70b. Needs requirements-aot.txt.
DATA      none: lengths come from --lengths.

DPO, float32 parameters and AdamW, bfloat16 compute, everything recomputed in the backward pass, parameters cut over all
chips, reference precomputed. --config.lora.rank=16 --config.lora.quantize=nf4 says what QLoRA needs. What is not said
here is a default: docs/config.md, or --help.
"""

from ml_collections import ConfigDict

SHAPES = {
    "llama3_1b": dict(num_layers=16, width=2048, num_heads=32, head_width=64, mlp_width=8192, tie_embeddings=True),
    "llama3_8b": dict(num_layers=32, width=4096, num_heads=32, head_width=128, mlp_width=14_336, tie_embeddings=False),
    "llama3_70b": dict(num_layers=80, width=8192, num_heads=64, head_width=128, mlp_width=28_672, tie_embeddings=False),
}


def get_config(shape: str = "llama3_8b") -> ConfigDict:
    if shape not in SHAPES:
        raise ValueError(f"configs/plan.py:{shape}: choose one of {', '.join(SHAPES)}")
    config = ConfigDict()
    config.objective = "dpo"
    config.rows = dict(row_length=4096, tokens_per_step=65_536)
    config.model = dict(
        vocab_size=128_256, num_kv_heads=8, rope_theta=500_000.0, dtype="bfloat16", remat="full", **SHAPES[shape]
    )
    config.optimizer = dict(schedule="linear", warmup_steps=150)
    config.train = dict(steps=1500)
    config.reference = dict(kind="precomputed")
    config.mesh = dict(data=1, fsdp=-1)
    return config
