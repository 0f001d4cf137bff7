"""DPO with a language model: what beta holds it to, and what it earns there (arXiv 2305.18290, Figure 2, left).

COMMAND  python -m experiments.run dpo.language_model:long
TIME     7 min on two CPU cores beside the test suite
RESULT   At beta = 2 the gold reward rises, by 0.43 at 0.2 nats. At 0.2 the policy goes 4 nats off, where the reward
         model's reward is highest and the gold one is not above SFT; at 20 nothing can be told after 60 steps.

MODEL    A byte-level decoder of 0.13 M parameters (2 layers of width 64), trained from nothing: not the paper's model,
         and far below it. The world is the inn of prefjax/data/synthetic.py, with a gold reward of at most 3.05.
PROTOCOL SFT (240 steps of 48 demonstrations), then DPO at each beta: 60 steps of 24 pairs at 6e-4, of 4,096 with
         Bradley-Terry labels of the gold reward.
COLUMNS  SFT: the gold reward of the SFT policy's answers. gold, proxy reward: of the arm's. wins: against SFT, by
         either reward, a tie half. KL: to SFT, nats. Intervals are over held-out prompts, of one run of one seed.

TRY      --config.num_seeds=3         other seeds, each with a stem of its own
         --config.steps=240           longer arms: how far they go before beta holds them
         --config.learning_rate=2e-3  larger steps
"""

import matplotlib.figure

from experiments.tables import language_model
from experiments.tables.harness import NOT_REPRODUCED, ORDER, Claim, Results
from experiments.tables.language_model import Arm

ARMS = {f"beta = {beta:g}": Arm("dpo", loss={"beta": beta}) for beta in (0.2, 2.0, 20.0)}
TABLE = language_model.table("Figure 2, left, by a language model", 7.0, NOT_REPRODUCED)
SETTINGS, run, cells = language_model.settings(ARMS), language_model.runner(ARMS), language_model.cells
PROTOCOL, SIZES = language_model.PROTOCOL, language_model.SIZES
CLAIMS = (
    language_model.learns(lambda s: s.key == "beta = 2"),
    Claim(
        "not_above_sft",
        "all of the paper's betas earn more than SFT; here 0.2 goes where the reward model's reward grows and the gold "
        "one does not, and 20 moves too little in 60 steps: no lead can be told (lower end of the 95 % interval)",
        lambda s: s.key != "beta = 2",
        lambda results, s: -language_model.above_sft(results, s),
        verdict=NOT_REPRODUCED,
    ),
    Claim(
        "held",
        "beta = 2 stays nearer to SFT than 0.2 (minus the lower end of the 95 % interval of the difference in KL)",
        lambda s: s.key == "beta = 2",
        lambda results, s: -language_model.lead(results, "beta = 0.2", s.key, "KL")[0],
        verdict=ORDER,
    ),
    Claim(
        "not_held_more",
        "the larger beta, the smaller the paper's KL; after 60 steps no difference of 20 from 2 can be told (lower end "
        "of the 95 % interval)",
        lambda s: s.key == "beta = 20",
        lambda results, s: language_model.lead(results, "beta = 2", s.key, "KL")[0],
        verdict=NOT_REPRODUCED,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Gold rewards of DPO at each beta, beside that of the SFT policy."""
    return language_model.plot(results, SETTINGS)
