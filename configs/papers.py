"""Runs of papers at their own size, for whoever has the chips. None was run here.

PAPER     of each recipe below: DPO, SLiC-HF, RSO, DRO, KTO, rDPO, SimPO's baselines (IPO among them), prefix sharing on
          its six datasets, delta learning, Tulu 2.5 and 3.
RESULT    NOT RUN. docs/cluster.md has the papers' numbers, what each run needs, and its commands.
HARDWARE  one node of eight 80 GB GPUs, or a TPU slice; experiments.plan says of each what fits: docs/cluster.md.
TIME      as docs/cluster.md says where a plan was made; nobody has measured any.
COMMAND   python -m experiments.train --config=configs/papers.py:prefix_hh --workdir=runs/prefix_hh \\
              --config.init_from=FOLDER
          FOLDER is the checkpoint that docs/cluster.md names, already finetuned where the paper's was. The word after
          the colon is a recipe: dpo_hh dpo_tldr slic_tldr rso_tldr rso_hh dro_uf_large dro_uf_xl kto_uf rdpo_hh
          simpo_dpo simpo_ipo simpo_kto simpo_simpo prefix_capybara prefix_hh prefix_metamath prefix_tldr
          prefix_helpsteer prefix_ultrafeedback delta_tulu3 tulu2_13b tulu3_8b. `:prefix_hh,shape` says the
          architecture too, for experiments.plan, where no checkpoint is.
DATA      named datasets, downloaded once; rso_* and delta_tulu3 read samples.jsonl.gz, samples of yours
          that docs/cluster.md describes.

Batches are counted in prompts, as papers count them; prefix sharing's are rows of so many tokens, as its scripts have
them. T5, GPT-2, GPT-J and Pythia are no decoders of prefjax: those recipes name a Llama of about the size, so their
numbers are no measure of the paper's. Warm-up is in steps; where a paper gives a share, of about as many as an epoch
has. What is not said here is a default: docs/config.md, or --help.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

_LLAMA3 = dict(num_kv_heads=8, vocab_size=128_256, rope_theta=500_000.0)
_LLAMA2 = dict(vocab_size=32_000, head_width=128, tie_embeddings=False)
SHAPES = {
    "llama3_1b": dict(
        num_layers=16, width=2048, num_heads=32, head_width=64, mlp_width=8192, tie_embeddings=True, **_LLAMA3
    ),
    "llama3_3b": dict(
        num_layers=28, width=3072, num_heads=24, head_width=128, mlp_width=8192, tie_embeddings=True, **_LLAMA3
    ),
    "llama3_8b": dict(
        num_layers=32, width=4096, num_heads=32, head_width=128, mlp_width=14_336, tie_embeddings=False, **_LLAMA3
    ),
    "mistral_7b": dict(
        vocab_size=32_000,
        num_layers=32,
        width=4096,
        num_heads=32,
        num_kv_heads=8,
        head_width=128,
        mlp_width=14_336,
        tie_embeddings=False,
    ),
    "llama2_7b": dict(num_layers=32, width=4096, num_heads=32, num_kv_heads=32, mlp_width=11_008, **_LLAMA2),
    "llama2_13b": dict(num_layers=40, width=5120, num_heads=40, num_kv_heads=40, mlp_width=13_824, **_LLAMA2),
}

_HH = {
    split: " + ".join(f"hh_rlhf/{part}:{split}" for part in ("helpful-base", "harmless-base"))
    for split in ("train", "test")
}


class Recipe(NamedTuple):
    """One run of a paper.

    config   what differs from the defaults, by section
    shape    a key of SHAPES
    lengths  whose lengths a plan takes: `experiments.plan --lengths`
    """

    config: dict[str, Any]
    shape: str
    lengths: str


def _recipe(objective: str, shape: str, lengths: str, **sections: Any) -> Recipe:
    return Recipe(dict(objective=objective, **sections), shape, lengths)


def _data(train: str, held_out: str = "", **others: Any) -> dict[str, Any]:
    return dict(train=train, **({"eval": held_out} if held_out else {"holdout": 0.01}), **others)


def _prompts(count: int) -> dict[str, Any]:
    return dict(batching="prompts", prompts_per_step=count)


def _limits(longest: int, prompt: int | None = None) -> dict[str, Any]:
    return dict(max_length=longest, max_prompt_length=prompt, truncation="trim_prompt_left")


_EPOCH = dict(epochs=1, eval_every=200, checkpoint_every=200)
_RMSPROP = dict(name="rmsprop", learning_rate=1e-6, warmup_steps=150)
_ADAFACTOR = dict(name="adafactor", learning_rate=1e-5)


def _simpo(objective: str, learning_rate: float, prompts: int = 128, **loss: float) -> Recipe:
    """Llama-3-8B-Instruct of SimPO's second version: 60,000 pairs, an epoch of 128 pairs a step."""
    return _recipe(
        objective,
        "llama3_8b",
        "paper:ultrafeedback",
        loss=loss,
        data=_data(
            "hf:princeton-nlp/llama3-ultrafeedback-armorm:train",
            "hf:princeton-nlp/llama3-ultrafeedback-armorm:test",
            encoding=_limits(2048, 1800),
        ),
        rows=_prompts(prompts),
        optimizer=dict(learning_rate=learning_rate, schedule="cosine", warmup_steps=47),
        train=_EPOCH,
    )


def _prefix(
    dataset: str, train: str, held_out: str, row_length: int, longest: int, prompt: int, **changes: Any
) -> Recipe:
    """Prefix sharing with packing, a row a GPU of eight, and a reference that scores every step, as its speeds were."""
    return _recipe(
        "dpo",
        changes.pop("shape", "llama3_8b"),
        f"paper:{dataset}",
        loss=dict(beta=changes.pop("beta", 0.1)),
        data=_data(train, held_out, encoding=_limits(longest, prompt)),
        rows=dict(row_length=row_length, tokens_per_step=8 * row_length),
        optimizer=dict(warmup_steps=20, **changes),
        reference=dict(kind="live"),
        train=_EPOCH,
    )


def _rso(data: str) -> Recipe:
    """Pairs of what Algorithm 1 accepts of 64 samples of every prompt."""
    return _recipe(
        "rso_sigmoid",
        "llama3_1b",
        data,
        data=_data("samples.jsonl.gz", methods="rso(count=8, beta=0.5)"),
        rows=_prompts(32),
        optimizer=_ADAFACTOR,
        train=_EPOCH,
    )


def _dro(shape: str, steps: int) -> Recipe:
    """Single responses with UltraFeedback's overall ratings, a value network of its own."""
    return _recipe(
        "dro",
        shape,
        "paper:ultrafeedback",
        value_network="own",
        data=_data("ultrafeedback/overall:train", normalize_targets=True, encoding=dict(max_length=2048)),
        rows=_prompts(8),  # four responses each
        optimizer=dict(name="adafactor", learning_rate=1e-4, warmup_steps=150),
        train=dict(steps=steps, eval_every=1000, checkpoint_every=1000),
    )


RECIPES = {
    "dpo_hh": _recipe(
        "dpo",
        "llama3_3b",
        "paper:hh",
        data=_data(_HH["train"], _HH["test"], encoding=_limits(512)),
        rows=_prompts(64),
        optimizer=_RMSPROP,
        train=_EPOCH,
    ),
    "dpo_tldr": _recipe(
        "dpo",
        "llama2_7b",
        "paper:tldr",
        loss=dict(beta=0.5),
        data=_data("tldr:train", "tldr:validation"),
        rows=_prompts(64),
        optimizer=_RMSPROP,
        train=_EPOCH,
    ),
    "slic_tldr": _recipe(
        "slic",
        "llama3_1b",
        "paper:tldr",
        data=_data("tldr:train", "tldr:validation"),
        rows=_prompts(32),
        optimizer=_ADAFACTOR,
        train=_EPOCH,
    ),
    "rso_tldr": _rso("paper:tldr"),
    "rso_hh": _rso("paper:hh"),
    "dro_uf_large": _dro("llama3_1b", 40_000),
    "dro_uf_xl": _dro("llama3_3b", 20_000),
    "kto_uf": _recipe(
        "kto",
        "llama3_8b",
        "paper:ultrafeedback",
        data=_data("ultrafeedback_binarized:train", "ultrafeedback_binarized:test", encoding=dict(max_length=2048)),
        rows=_prompts(16),  # two responses each
        optimizer=dict(learning_rate=5e-6, schedule="cosine", warmup_steps=382, epsilon=1e-5, weight_decay=0.01),
        train=_EPOCH,
    ),
    "rdpo_hh": _recipe(
        "rdpo",
        "llama2_7b",
        "paper:hh",
        data=_data(_HH["train"], _HH["test"], methods="flip_labels(rate=0.1)", encoding=_limits(512)),
        rows=_prompts(16),
        optimizer=dict(learning_rate=1e-3, warmup_steps=150),
        lora=dict(rank=16),
        train=_EPOCH,
    ),
    "simpo_dpo": _simpo("dpo", 3e-7, beta=0.01),
    "simpo_ipo": _simpo("ipo", 5e-7),
    "simpo_kto": _simpo("kto", 5e-7),
    "simpo_simpo": _simpo("simpo", 1e-6, beta=10.0, gamma=3.0),
    "prefix_capybara": _prefix("capybara", "capybara_dpo:train", "", 7936, 2842, 2180),
    "prefix_hh": _prefix("hh", _HH["train"], _HH["test"], 8192, 1024, 512),
    "prefix_metamath": _prefix("metamath", "metamath_dpo:train", "metamath_dpo:eval", 8192, 2048, 1024),
    "prefix_tldr": _prefix("tldr", "tldr:train", "tldr:validation", 8192, 1024, 768),
    "prefix_helpsteer": _prefix("helpsteer", "tulu_2_5/helpsteer:train", "", 8192, 2048, 1024),
    "prefix_ultrafeedback": _prefix(
        "ultrafeedback",
        "ultrafeedback_binarized:train",
        "ultrafeedback_binarized:test",
        8192,
        1024,
        512,
        shape="mistral_7b",
        beta=0.01,
        learning_rate=5e-7,
    ),
    "delta_tulu3": _recipe(
        "dpo_norm",
        "llama3_8b",
        "paper:ultrafeedback",
        data=_data(
            "samples.jsonl.gz",
            methods="delta_pairs(model='model', strong='Qwen2.5-3B-Instruct', weak='Qwen2.5-1.5B-Instruct')",
            encoding=dict(max_length=2048),
        ),
        rows=_prompts(128),
        optimizer=dict(learning_rate=5e-7, schedule="linear", warmup_steps=200),
        train=_EPOCH,
    ),
    "tulu2_13b": _recipe(
        "dpo",
        "llama2_13b",
        "paper:ultrafeedback",
        data=_data("tulu_2_5/ultrafeedback_mean_aspects:train", encoding=dict(max_length=4096)),
        rows=_prompts(32),
        optimizer=dict(learning_rate=5e-7, schedule="linear", warmup_steps=570),
        train=dict(epochs=3, eval_every=500, checkpoint_every=500),
    ),
    "tulu3_8b": _recipe(
        "dpo_norm",
        "llama3_8b",
        "paper:ultrafeedback",
        data=_data("hf:allenai/llama-3.1-tulu-3-8b-preference-mixture:train", encoding=dict(max_length=2048)),
        rows=_prompts(128),
        optimizer=dict(learning_rate=5e-7, schedule="linear", warmup_steps=200),
        train=_EPOCH,
    ),
}


def get_config(argument: str = "prefix_hh") -> ConfigDict:
    name, _, word = argument.partition(",")
    if name not in RECIPES or word not in ("", "shape"):
        raise ValueError(
            f"configs/papers.py:{argument}: choose one of {', '.join(RECIPES)}; behind it `,shape` or nothing"
        )
    recipe = RECIPES[name]
    config = ConfigDict(recipe.config)
    config.model = dict(dtype="bfloat16", remat="full", **(SHAPES[recipe.shape] if word else {}))
    if "reference" not in config:
        config.reference = dict(kind="none" if config.objective in ("slic", "simpo") else "precomputed")
    config.mesh = dict(data=1, fsdp=-1)
    config.sampling = dict(max_new_tokens=256)
    return config
