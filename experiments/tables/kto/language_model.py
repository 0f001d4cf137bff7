"""KTO with a language model: single labelled answers against pairs (arXiv 2402.01306, section 4.2).

COMMAND  python -m experiments.run kto.language_model:long
TIME     to be measured
RESULT   to be written

MODEL    A byte-level decoder of 0.13 M parameters (2 layers of width 64), trained from nothing: not the paper's model,
         and far below it. The world is the inn of prefjax/data/synthetic.py, with a gold reward of at most 3.05.
PROTOCOL SFT (240 steps of 48 demonstrations), then 60 steps of 24 records at 6e-4, beta = 2: DPO on 4,096 pairs with
         Bradley-Terry labels of the gold reward, KTO on 4,096 single answers, labelled by such draws against the
         prompt's mean.
COLUMNS  SFT: the gold reward of the SFT policy's answers. gold, proxy reward: of the arm's. wins: against SFT, by
         either reward, a tie half. KL: to SFT, nats. Intervals are over held-out prompts, of one run of one seed.

TRY      --config.num_seeds=3         other seeds, each with a stem of its own
         --config.pairs=1024          fewer records
         --config.steps=240           longer arms
"""

from collections.abc import Iterator

import matplotlib.figure
import ml_collections

from experiments.tables import language_model
from experiments.tables.harness import LONG, ORDER, Claim, Results, Row, Table
from experiments.tables.language_model import COLUMNS, Arm

ARMS = {
    "DPO": Arm("dpo", loss={"beta": 2.0}),
    "KTO": Arm("kto", loss={"beta": 2.0}),
}
TABLE = Table("The comparison with DPO, by a language model", COLUMNS, 7.0, ORDER, size=LONG, over="answers")
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
        "matches",
        "no lead of DPO over KTO in gold reward can be told (lower end of the 95 % interval of it)",
        lambda s: s.key == "KTO",
        lambda results, s: language_model.lead(results, "DPO", s.key, "gold reward")[0],
        0.0,
        ORDER,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Gold rewards of DPO and KTO, beside that of the SFT policy."""
    return language_model.plot(results, SETTINGS)
