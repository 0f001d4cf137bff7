"""IPO with a language model: how far it goes from the reference, against DPO (arXiv 2310.12036, section 5).

COMMAND  python -m experiments.run ipo.language_model:long
TIME     19 min of wall time beside other programs, at a load of 20 on two cores; 36 to 67 s of CPU an arm
RESULT   Both learn, by 0.43 and 0.47 of gold reward; that IPO stays nearer to SFT cannot be told after 60 steps, when
         neither is near IPO's target of 2 nats.

MODEL    A byte-level decoder of 0.13 M parameters (2 layers of width 64), trained from nothing: not the paper's model,
         and far below it. The world is the inn of prefjax/data/synthetic.py, with a gold reward of at most 3.05.
PROTOCOL SFT (240 steps of 48 demonstrations), then 60 steps of 24 pairs at 6e-4, of 4,096 with Bradley-Terry labels of
         the gold reward: DPO at beta = 2, IPO at tau = 0.25, whose target is a margin of 2 nats.
COLUMNS  SFT: the gold reward of the SFT policy's answers. gold, proxy reward: of the arm's. wins: against SFT, by
         either reward, a tie half. KL: to SFT, nats. Intervals are over held-out prompts, of one run of one seed.

TRY      --config.num_seeds=3         other seeds, each with a stem of its own
         --config.pairs=256           few pairs, seen often
         --config.steps=480           longer arms: DPO's margin has no end, IPO's has
"""

from collections.abc import Iterator

import matplotlib.figure
import ml_collections

from experiments.tables import language_model
from experiments.tables.harness import LONG, NOT_REPRODUCED, ORDER, Claim, Results, Row, Table
from experiments.tables.language_model import COLUMNS, Arm

ARMS = {
    "DPO": Arm("dpo", loss={"beta": 2.0}),
    "IPO": Arm("ipo", loss={"tau": 0.25}),
}
TABLE = Table("The comparison with DPO, by a language model", COLUMNS, 19.0, NOT_REPRODUCED, size=LONG, over="answers")
SETTINGS = language_model.settings(*ARMS)
PROTOCOL, cells = language_model.PROTOCOL, language_model.cells
SIZES = {"smoke": language_model.SMOKE, "long": {}, "paper": {}}


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    yield from language_model.rows(config, cell, ARMS)


CLAIMS = (
    Claim(
        "nearer",
        "the paper's IPO is held near the reference where DPO is not; after 60 steps neither is near IPO's target "
        "of 2 nats, so no difference of their KL can be told (lower end of the 95 % interval of DPO's minus its "
        "own)",
        lambda s: s.key == "IPO",
        lambda results, s: language_model.lead(results, "DPO", s.key, "KL")[0],
        0.0,
        NOT_REPRODUCED,
    ),
    Claim(
        "learns",
        "the gold reward is above that of SFT (minus the lower end of the 95 % interval)",
        lambda s: True,
        language_model.above_sft,
        0.0,
        ORDER,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Gold rewards of DPO and IPO, beside that of the SFT policy."""
    return language_model.plot(results, SETTINGS)
