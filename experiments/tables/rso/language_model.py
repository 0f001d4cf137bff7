"""RSO with a language model: pairs of people, SFT samples, rejection samples (arXiv 2309.06657, Tables 1 and 2).

COMMAND  python -m experiments.run rso.language_model:long
TIME     not measured, some 5 min of CPU
RESULT   no reference run yet

MODEL    A byte-level decoder of 0.13 M parameters (2 layers of width 64), trained from nothing: not the paper's model,
         and far below it. The world is the inn of prefjax/data/synthetic.py, with a gold reward of at most 3.05.
PROTOCOL SFT (240 steps of 48 demonstrations); a reward model (bt, 100 steps) of 4,096 pairs with Bradley-Terry labels
         of the gold reward; 8 samples of SFT to each of 256 prompts, annotated by the reward model, curated.
         "direct": DPO (sigmoid-norm) on the pairs of the reward model. "sft-sample-rank" and "rso-sample-rank":
         rso(count=4) of the samples at beta = 1e6 and 0.5. 60 steps of 24 pairs at 6e-4, beta = 2.
COLUMNS  SFT: the gold reward of the SFT policy's answers. gold, proxy reward: of the arm's. wins: against SFT, by
         either reward, a tie half. KL: to SFT, nats. Intervals are over held-out prompts, of one run of one seed.

TRY      --config.num_seeds=3         other seeds, each with a stem of its own
         --config.samples=16          more samples to choose from
         --config.steps=240           longer arms
"""

from collections.abc import Iterator

import matplotlib.figure
import ml_collections

from experiments.tables import language_model
from experiments.tables.harness import LONG, ORDER, Claim, Results, Row, Table
from experiments.tables.language_model import COLUMNS, Arm, ahead_of

ARMS = {
    "direct": Arm("dpo", loss={"beta": 2.0}),
    "sft-sample-rank": Arm("dpo", "sft-sample-rank", {"beta": 2.0}),
    "rso-sample-rank": Arm("dpo", "rso-sample-rank", {"beta": 2.0}),
}
TABLE = Table("Tables 1 and 2, by a language model", COLUMNS, 25.0, ORDER, size=LONG, over="answers")
SETTINGS = language_model.settings(*ARMS)
PROTOCOL, cells = language_model.PROTOCOL, language_model.cells
SIZES = {"smoke": language_model.SMOKE, "long": {}, "paper": {}}


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    yield from language_model.rows(config, cell, ARMS)


CLAIMS = (
    Claim(
        "learns",
        "the gold reward is above that of SFT (minus the lower end of the 95 % interval)",
        lambda s: True,
        language_model.above_sft,
        0.0,
        ORDER,
    ),
    Claim(
        "sft_beats_direct",
        "pairs of SFT samples earn more gold reward than direct pairs (minus the lower end of the 95 % interval)",
        lambda s: s.key == "sft-sample-rank",
        ahead_of("direct"),
        0.0,
        ORDER,
    ),
    Claim(
        "rso_beats_sft",
        "pairs of rejection samples earn more gold reward than of SFT samples (minus the lower end of the 95 % "
        "interval)",
        lambda s: s.key == "rso-sample-rank",
        ahead_of("sft-sample-rank"),
        0.0,
        ORDER,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Gold rewards of DPO on pairs of three sources, beside that of the SFT policy."""
    return language_model.plot(results, SETTINGS)
