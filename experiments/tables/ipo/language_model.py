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

import matplotlib.figure

from experiments.tables import language_model
from experiments.tables.harness import NOT_REPRODUCED, Claim, Results
from experiments.tables.language_model import Arm

ARMS = {
    "DPO": Arm("dpo", loss={"beta": 2.0}),
    "IPO": Arm("ipo", loss={"tau": 0.25}),
}
TABLE = language_model.table("The comparison with DPO, by a language model", 19.0, NOT_REPRODUCED)
SETTINGS, run, cells = language_model.settings(ARMS), language_model.runner(ARMS), language_model.cells
PROTOCOL, SIZES = language_model.PROTOCOL, language_model.SIZES
CLAIMS = (
    Claim(
        "nearer",
        "the paper's IPO is held near the reference where DPO is not; after 60 steps neither is near IPO's target "
        "of 2 nats, so no difference of their KL can be told (lower end of the 95 % interval of DPO's minus its "
        "own)",
        lambda s: s.key == "IPO",
        lambda results, s: language_model.lead(results, "DPO", s.key, "KL")[0],
        verdict=NOT_REPRODUCED,
    ),
    language_model.learns(lambda s: True),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Gold rewards of DPO and IPO, beside that of the SFT policy."""
    return language_model.plot(results, SETTINGS)
