"""The quickstart: a tiny model learns to speak by SFT and to please by a preference objective, on two CPU cores.

COMMAND   python -m experiments.train --config=configs/quickstart.py:dpo --workdir=runs/quickstart
          The word after the colon is any objective of docs/objectives.md but sft, which is the stage before, and
          rationale_dpo, whose rationales the data lacks; bt, gpm and others of theirs train a reward model. All of
          them, with one table: python -m experiments.zoo
DATA      The synthetic world of prefjax/data/synthetic.py, nothing is downloaded: clean pairs, thumbs or gold rewards;
          gold rewards as scores of pairs and of rankings of four; their difference as margin, and its Bradley-Terry
          probability; spans of responses with what they earn. Your own file: --config.data.train=preferences.jsonl.gz
TIME      under 4 minutes on two CPU cores.
RESULT    see the table in README.md.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from prefjax.data.records import NUMBERS
from prefjax.losses import OBJECTIVES

# Responses of 30 bytes and clean labels: a beta of 2 asks for margins of about a nat, which keeps the policy near SFT.
BETA = 2.0
# Where beta times the log-ratio is to become a gold reward itself, 1 is enough; per token the same margin is a 30th.
BETA_OF_REWARDS, BETA_PER_TOKEN = 1.0, 60.0
REGRESSIONS = ("soft_ce", "mmpo", "reward_rpo", "infonca", "nca", "dpo_rw", "exo_rw", "ulma_continuous", "gpo_score")
PER_TOKEN = ("dpo_norm", "simpo", "alphapo")
# They see differences to other prompts' responses alone: nothing holds what all log-ratios have in common, and at the
# usual learning rate all of them fall together, by 50 nats.
DRIFTING = ("bco", "aot_unpaired")
# Everything else is the default of the objective, or said here.
LOSS = {
    "ipo": dict(tau=0.25),
    "rso_sigmoid": dict(gamma=BETA),
    "rso_hinge": dict(gamma=1.0),
    "rso_hinge_raw": dict(gamma=1.0),
    "gpo": dict(beta=1.0),  # the exponential link's push grows where a pair is ranked wrongly
    "discopop": dict(tau=1.0),  # with the default the first steps lower the margin
    "dpop": dict(penalty=5.0),
    "sppo": dict(beta=0.5),  # log-ratios of +1 and -1 nat
    "cal_dpo": dict(beta=0.5),
    "pmpo": dict(beta=0.75),  # at 0.5 what is undesirable would be forbidden altogether
    "cpo": dict(alpha=0.1),
    "bt": dict(centering=0.01),
    "bt_margin": dict(centering=0.01),
    "orpo": dict(weight=2.0),
    # The KL of the chosen response is their reward and nothing bounds it; a large beta is content before it grows.
    "tdpo1": dict(beta=10.0),
    "sparsepo": dict(beta=10.0),
    "dpo_rw": dict(reward_temperature=1.0),
    "exo_rw": dict(reward_temperature=1.0),
}


def loss_options(objective: str) -> dict:
    """All options of an objective, with the values that suit this data."""
    options = dict(OBJECTIVES[objective].options)
    if "beta" in options:
        options["beta"] = BETA_OF_REWARDS if objective in REGRESSIONS else BETA
        if objective in PER_TOKEN:
            options["beta"] = BETA_PER_TOKEN
    return options | LOSS.get(objective, {})


def get_config(objective: str = "dpo") -> ml_collections.ConfigDict:
    if objective not in OBJECTIVES:
        raise ValueError(f"configs/quickstart.py:{objective}: choose one of {', '.join(OBJECTIVES)}")
    if objective == "sft":
        raise ValueError("configs/quickstart.py:sft is the stage before: set it by --config.sft of any objective")
    facts = OBJECTIVES[objective]
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.objective = objective
    config.loss = loss_options(objective)

    config.data = ml_collections.ConfigDict()
    config.data.train = "synthetic"  # or a .jsonl, .jsonl.gz or .parquet file, a named dataset, or a mixture of them
    config.data.eval = ""  # empty: hold out a share of the training prompts
    config.data.holdout = 0.1
    config.data.tokenizer = "byte"
    config.data.chat_template = placeholder(str)  # None: the tokenizer's own; plain, or a Jinja template
    config.data.rankings = placeholder(str)  # best_worst, adjacent, all
    # "labels" or "scores". SPPO reads how often each response of a pair wins: with clean labels always, or never.
    config.data.pair_targets = "scores" if facts.reads == "scores" and objective != "sppo" else "labels"
    config.data.normalize_targets = facts.reads == "rewards"
    config.data.methods = ""  # data methods for training records, docs/data_methods.md
    config.data.directory = ""  # where prepared data is kept; empty: in the workdir
    config.data.mixture_seed = 0
    config.data.tfds_dir = ""  # where named datasets are kept; empty: ~/tensorflow_datasets
    config.data.manual_dir = ""  # their files, fetched by hand; empty: they are downloaded
    config.data.format = dict(ties="drop", auxiliary_field=placeholder(str))
    for name in NUMBERS:  # the columns of a pair's margin and of P(chosen is better), where the objective reads them
        config.data.format[f"{name}_field"] = name if name in facts.needs else placeholder(str)
    # The column of weighted spans of the responses, where the objective reads them.
    config.data.format.spans_field = "spans" if "token_weight" in facts.needs else placeholder(str)
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
    if objective == "soft_ce":
        config.data.world.temperature = 1.0  # without it every probability is 1, and it is dpo

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
    # writers: where metrics go besides metrics.jsonl, "tensorboard" and "wandb" (requirements-loggers.txt).
    # profile_steps: so many steps after the first are traced into workdir/profile.
    config.train = dict(steps=120, log_every=10, eval_every=30, checkpoint_every=60, profile_steps=0, writers=())
    if facts.trains_reward_model:  # a new head has far to go, and no policy to stay near to
        config.optimizer.learning_rate = 3e-3
    elif objective in DRIFTING:
        config.optimizer.learning_rate = 5e-5
    config.reference = dict(kind="live" if facts.needs_reference else "none", init_from="", cache="")
    config.reference.update(update_every=0, update_rate=0.0)  # above 0 the reference follows the policy (TR-DPO)
    config.mesh = dict(data=-1, fsdp=1, tensor=1)
    config.init_from = ""
    config.value_network = "own" if "value" in facts.needs else "none"
    if facts.trains_reward_model:  # width 1: a scalar reward; even: an embedding
        gpm = objective == "gpm"
        config.reward_head = dict(width=4 if gpm else 1, normalize=gpm, gate=gpm)
    config.lora = dict(rank=0, alpha=16.0, targets="attention/|mlp/", quantize="none")  # rank 0: all are trained
    config.accumulation = 1
    config.head_chunk = 512
    config.check_start = True

    # The stage before: everything it does not set here is as above.
    config.sft = ml_collections.ConfigDict()
    config.sft.optimizer = dict(
        name="adamw", learning_rate=4e-3, schedule="cosine", warmup_steps=20, final_scale=0.05, clip_norm=1.0, b2=0.95
    )
    config.sft.train = dict(steps=320, log_every=20, eval_every=160, checkpoint_every=160)
    config.sft.train.writers = config.train.get_oneway_ref("writers")

    config.sampling = dict(prompts=256, max_new_tokens=64, temperature=1.0)
    return config.lock()
