"""The quickstart: a tiny model learns to speak by SFT and to please by a preference objective, on two CPU cores.

COMMAND   python -m experiments.train --config=configs/quickstart.py:dpo --workdir=runs/quickstart
          The word after the colon is any objective: dpo cdpo rdpo ipo slic rso_hinge kto dro dro_p.
DATA      The synthetic world of prefjax/data/synthetic.py, nothing is downloaded. Your own file:
          --config.data.train=preferences.jsonl.gz
TIME      under 4 minutes on two CPU cores.
RESULT    see the table in README.md.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from prefjax.losses import OBJECTIVES

# Responses of 30 bytes and clean labels: a beta of 2 asks for margins of about a nat, which keeps the policy near SFT.
LOSS = {
    "dpo": dict(beta=2.0),
    "cdpo": dict(beta=2.0, label_smoothing=0.1),
    "rdpo": dict(beta=2.0, flip_rate=0.1),
    "ipo": dict(tau=0.25, normalize="none"),
    "slic": dict(delta=1.0, regularizer_weight=0.1),
    "rso_hinge": dict(gamma=1.0),
    "kto": dict(beta=2.0, desirable_weight=1.0, undesirable_weight=1.0),
    "dro": dict(tau=1.0),
    "dro_p": dict(tau=1.0),
}


def get_config(objective: str = "dpo") -> ml_collections.ConfigDict:
    if objective not in LOSS:
        raise ValueError(f"configs/quickstart.py:{objective}: choose one of {', '.join(LOSS)}")
    needs = OBJECTIVES[objective].needs
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.objective = objective
    config.loss = LOSS[objective]

    config.data = ml_collections.ConfigDict()
    config.data.train = "synthetic"  # or a .jsonl, .jsonl.gz or .parquet file, a named dataset, or a mixture of them
    config.data.eval = ""  # empty: hold out a share of the training prompts
    config.data.holdout = 0.1
    config.data.tokenizer = "byte"
    config.data.chat_template = placeholder(str)  # None: the tokenizer's own; plain, or a Jinja template
    config.data.rankings = placeholder(str)  # best_worst, adjacent, all
    config.data.pair_targets = "labels"
    config.data.normalize_targets = OBJECTIVES[objective].reads == "rewards"
    config.data.directory = ""  # where prepared data is kept; empty: in the workdir
    config.data.mixture_seed = 0
    config.data.tfds_dir = ""  # where named datasets are kept; empty: ~/tensorflow_datasets
    config.data.manual_dir = ""  # their files, fetched by hand; empty: they are downloaded
    config.data.format = dict(ties="drop", auxiliary_field=placeholder(str))
    config.data.encoding = dict(
        max_length=2048,
        max_prompt_length=placeholder(int),
        max_response_length=placeholder(int),
        truncation="drop",  # trim_prompt_left, trim_responses, trim_both
        special_text="reject",
    )
    config.data.world = dict(train_examples=8192, eval_examples=512, temperature=0.0, flip_rate=0.0, seed=0)
    if objective in ("rdpo", "cdpo"):
        config.data.world.flip_rate = 0.1  # the noise they assume; without it rDPO's loss has no minimum

    config.rows = ml_collections.ConfigDict()
    config.rows.layout = "shared_packed"
    config.rows.batching = "rows"
    config.rows.row_length = 0  # 0: suggested from the data
    config.rows.tokens_per_step = 4096
    config.rows.prompts_per_step = 0
    config.rows.window = 4096

    config.model = ml_collections.ConfigDict()
    config.model.vocab_size = 0  # 0: the tokenizer's
    config.model.num_layers = 3
    config.model.width = 96
    config.model.num_heads = 4
    config.model.num_kv_heads = 2
    config.model.head_width = 24
    config.model.mlp_width = 256
    config.model.tie_embeddings = False
    config.model.dtype = "float32"
    config.model.remat = "none"  # full, dots
    config.model.attention = "auto"

    config.optimizer = dict(name="adamw", learning_rate=6e-4, schedule="cosine", warmup_steps=10, clip_norm=1.0)
    config.train = dict(steps=120, log_every=10, eval_every=30, checkpoint_every=60)
    config.reference = dict(kind="live" if "reference_logp" in needs else "none", init_from="", cache="")
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.init_from = ""
    config.value_network = "own" if "value" in needs else "none"
    config.accumulation = 1
    config.head_chunk = 512
    config.check_start = True

    # The stage before: everything it does not set here is as above.
    config.sft = ml_collections.ConfigDict()
    config.sft.optimizer = dict(
        name="adamw", learning_rate=4e-3, schedule="cosine", warmup_steps=20, final_scale=0.05, clip_norm=1.0, b2=0.95
    )
    config.sft.train = dict(steps=320, log_every=20, eval_every=160, checkpoint_every=160)

    config.sampling = dict(prompts=256, max_new_tokens=64, temperature=1.0)
    return config.lock()
