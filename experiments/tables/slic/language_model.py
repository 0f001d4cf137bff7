"""SLiC-HF with a language model: imitating the best of 8 samples, and SLiC (arXiv 2305.10425, Table 1).

COMMAND  python -m experiments.run slic.language_model:long
TIME     not measured, some 5 min of CPU
RESULT   no reference run yet

MODEL    A byte-level decoder of 0.13 M parameters (2 layers of width 64), trained from nothing: not the paper's model,
         and far below it. The world is the inn of prefjax/data/synthetic.py, with a gold reward of at most 3.05.
PROTOCOL SFT (240 steps of 48 demonstrations); a reward model (bt, 100 steps) of 4,096 pairs with Bradley-Terry labels
         of the gold reward; 8 samples of SFT to each of 256 prompts, annotated by the reward model, curated.
         "SFT, best of 8" imitates the reward model's best of 8 samples; SLiC (delta 1, weight 0.1) takes direct pairs,
         or pairs of 4 samples, ranked ("sample-rank"). 60 steps of 24 records at 6e-4.
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
    "SFT, best of 8": Arm("sft", "best-worst"),
    "SLiC, direct": Arm("slic"),
    "SLiC, sample-rank": Arm("slic", "sft-sample-rank"),
}
TABLE = Table("Table 1, by a language model", COLUMNS, 25.0, ORDER, size=LONG, over="answers")
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
        "beats_imitation",
        "SLiC on ranked samples earns more gold reward than imitation (minus the lower end of the 95 % interval)",
        lambda s: s.key == "SLiC, sample-rank",
        ahead_of("SFT, best of 8"),
        0.0,
        ORDER,
    ),
    Claim(
        "beats_direct",
        "SLiC on ranked samples earns more gold reward than on direct pairs (minus the lower end of the 95 % interval)",
        lambda s: s.key == "SLiC, sample-rank",
        ahead_of("SLiC, direct"),
        0.0,
        ORDER,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Gold rewards of imitation and of SLiC, beside that of the SFT policy."""
    return language_model.plot(results, SETTINGS)
