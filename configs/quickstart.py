"""The quickstart: a tiny model learns to speak by SFT and to please by a preference objective, on two CPU cores.

PAPER     of each objective: docs/objectives.md. The data are this project's own, so no paper has this table.
RESULT    dpo: gold reward 0.27 after SFT, 1.48 +- 0.18 after DPO, of at most 3.05; 77 % wins against SFT; held-out
          reward accuracy 95.1 %. Others: README.md; all of them: docs/zoo.md.
HARDWARE  two CPU cores.
TIME      under 4 minutes.
COMMAND   python -m experiments.train --config=configs/quickstart.py:dpo --workdir=runs/quickstart
          The word after the colon is any objective of docs/objectives.md but sft, which is the stage before, and
          rationale_dpo, whose rationales the data lacks; bt, gpm and others of theirs train a reward model. Or a sum
          of them, "0.8*dpo + 0.2*bco_pair + 1.0*sft", or its name there, mpo. All, with one table:
          python -m experiments.zoo
          `:dpo,smoke` takes four steps of each stage, to see whether data of yours go through.
DATA      The synthetic world of prefjax/data/synthetic.py, nothing is downloaded: clean pairs, thumbs or gold rewards;
          gold rewards as scores of pairs and of rankings of four; their difference as margin, and its Bradley-Terry
          probability; spans of responses with what they earn. Your own file: --config.data.train=preferences.jsonl.gz

What is not said here is a default: docs/config.md, or --help.
"""

from ml_collections import ConfigDict

from prefjax.losses import Objective, Sum
from prefjax.losses import objective as find_objective
from prefjax.requirements import PAIR_NUMBERS

# Responses of 30 bytes and clean labels: a beta of 2 asks for margins of about a nat, which keeps the policy near SFT.
BETA = 2.0
# Where beta times the log-ratio is to become a gold reward itself, 1 is enough; per token the same margin is a 30th.
BETA_OF_REWARDS, BETA_PER_TOKEN = 1.0, 60.0
REGRESSIONS = ("soft_ce", "mmpo", "reward_rpo", "infonca", "nca", "dpo_rw", "exo_rw", "ulma_continuous", "gpo_score")
PER_TOKEN = ("dpo_norm", "simpo", "alphapo", "tpo_l")
# It sees differences to other prompts' responses alone: nothing holds what all log-ratios have in common, and at the
# usual learning rate all of them fall together, by 50 nats.
DRIFTING = ("aot_unpaired",)
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
    "bco": dict(momentum=0.99),  # a shift that lags holds back what would drift like aot_unpaired
    "pmpo": dict(beta=1.5),  # at 1 what is undesirable would be forbidden altogether
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


def loss_options(facts: Objective) -> dict:
    """Options with other values than the objective's defaults, which suit this data; of a sum by its terms."""
    if isinstance(facts, Sum):
        return {key: loss_options(term.objective) for key, term in facts.terms.items()}
    (facts,) = facts.cores
    options, objective = {}, facts.name
    if "beta" in facts.options:
        options["beta"] = BETA_OF_REWARDS if objective in REGRESSIONS else BETA
        if objective in PER_TOKEN:
            options["beta"] = BETA_PER_TOKEN
    return options | LOSS.get(objective, {}) | dict(facts.given)


def get_config(argument: str = "dpo") -> ConfigDict:
    objective = argument.removesuffix(",smoke")
    facts = find_objective(objective)
    if facts.requires.imitates:
        name = facts.name
        raise ValueError(f"configs/quickstart.py:{name} is the stage before: set it by --config.sft of any objective")
    names = {one.name for one in facts.cores}
    config = ConfigDict()
    config.objective = objective
    config.loss = loss_options(facts)
    config.reference = dict(kind="live" if facts.requires.reference else "none")
    config.value_network = "own" if facts.requires.value else "none"
    if facts.requires.reward_head:  # width 1: a scalar reward; even: an embedding
        config.reward_head = dict(width=4, normalize=True, gate=True) if "gpm" in names else dict(width=1)

    config.data = dict(holdout=0.1, normalize_targets=facts.requires.reads == "rewards", encoding=dict(max_length=2048))
    config.data.pair_targets = "scores" if facts.requires.reads == "scores" else "labels"
    config.data.format = {f"{name}_field": name for name in PAIR_NUMBERS if name in facts.requires.inputs}
    if facts.requires.token_labels:
        config.data.format.spans_field = "spans"
    config.data.world = dict(
        flip_rate=0.1 if names & {"rdpo", "cdpo"} else 0.0,  # the noise they assume; else rDPO has no minimum
        temperature=1.0 if "soft_ce" in names else 0.0,  # without it every probability is 1, and it is dpo
    )

    config.rows = dict(tokens_per_step=4096)
    config.model = dict(
        vocab_size=0,  # the tokenizer's
        num_layers=3,
        width=96,
        num_heads=4,
        num_kv_heads=2,
        head_width=24,
        mlp_width=256,
        tie_embeddings=False,
    )
    config.optimizer = dict(learning_rate=6e-4, schedule="cosine", warmup_ratio=0.08)
    if facts.requires.reward_head:  # a new head has far to go, and no policy to stay near to
        config.optimizer.learning_rate = 3e-3
    elif names <= {*DRIFTING}:
        config.optimizer.learning_rate = 5e-5
    config.train = dict(steps=120, eval_every=30, checkpoint_every=60)
    config.train.eval_samples = 0 if facts.requires.reward_head else 3

    # The stage before. Its optimizer and train are its own, the rest is as above.
    config.sft = dict(
        optimizer=dict(learning_rate=4e-3, schedule="cosine", warmup_ratio=0.06, final_scale=0.05, b2=0.95),
        train=dict(steps=320, log_every=20, eval_every=160, checkpoint_every=160, eval_samples=0),
    )
    config.sampling = dict(max_new_tokens=64)
    if objective != argument:
        config.data.world.train_examples, config.data.world.eval_examples = 64, 16
        for stage in (config, config.sft):
            stage.train = dict(steps=4, log_every=1, eval_every=2)
        config.sampling = dict(prompts=4, max_new_tokens=16)
    return config
