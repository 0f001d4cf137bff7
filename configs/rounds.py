"""Rounds on the quickstart's world: sample from the policy, score, choose, train, and again from what came out.

PAPER     iterative DPO, arXiv 2312.16682 (section 3) and 2401.10020; `rso(...)` as rounds.select: arXiv 2309.06657.
          The data are this project's own, so no paper has this table.
RESULT    docs/rounds.md.
HARDWARE  two CPU cores.
TIME      twenty minutes on two cores that had much else to do; not measured on idle ones.
COMMAND   python -m experiments.rounds --config=configs/rounds.py:dpo --workdir=runs/rounds
          The word after the colon is any objective whose loss reads pairs, as ipo or simpo; with
          --config.rounds.select="" it reads rankings. `:dpo,smoke` is two rounds of two steps, to see whether all goes
          through, scored by the policy's own log-probs.
DATA      The prompts of the synthetic world of prefjax/data/synthetic.py, and its gold reward as scorer. Your own:
          --config.data.train=FILE --config.rounds.scorer=reward:runs/reward; from a model of yours
          --config=configs/finetune.py:dpo, which takes the same options.

What is not said here is a default: docs/config.md, or --help.
"""

from ml_collections import ConfigDict

from prefjax.losses import objective as find_objective


def get_config(argument: str = "dpo") -> ConfigDict:
    objective = argument.removesuffix(",smoke")
    facts = find_objective(objective)
    config = ConfigDict()
    config.objective = objective
    config.loss = dict(beta=2.0) if "beta" in facts.options else dict()  # as in configs/quickstart.py, for 30 bytes
    config.reference = dict(kind="live" if facts.requires.reference else "none")
    config.data = dict(pair_targets="scores" if facts.requires.reads == "scores" else "labels")
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
    config.optimizer = dict(learning_rate=6e-4, schedule="cosine", warmup_ratio=0.16)
    config.train = dict(steps=60, eval_every=30)
    config.sft = dict(
        optimizer=dict(learning_rate=4e-3, schedule="cosine", warmup_ratio=0.06, final_scale=0.05, b2=0.95),
        train=dict(steps=320, log_every=20, eval_every=160, checkpoint_every=160),
    )
    config.sampling = dict(max_new_tokens=64)
    config.rounds = dict(scorer="gold", prompts_per_round=768, max_new_tokens=64)
    if objective != argument:
        config.data.world = dict(train_examples=64, eval_examples=16)
        for stage in (config, config.sft):
            stage.train = dict(steps=2, log_every=1)
        config.sampling = dict(prompts=4, max_new_tokens=16)
        # The gold reward of what such a policy says is always the same, so that nothing is preferred.
        config.rounds = dict(scorer="mean_logp", prompts_per_round=16, samples=4, max_new_tokens=16, measured=2)
    return config
