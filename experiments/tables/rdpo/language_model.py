"""rDPO with a language model: three labels in ten exchanged (arXiv 2403.00409, abstract).

COMMAND  python -m experiments.run rdpo.language_model:long
TIME     20 min of wall time beside other programs, at a load of 20 on two cores; 29 to 51 s of CPU an arm
RESULT   Exchanged labels cost DPO all that it gains. rDPO is not reproduced: at DPO's settings it diverges, to 12 nats
         from SFT with a gold reward of -3.9, since its loss has no lower bound.

MODEL    A byte-level decoder of 0.13 M parameters (2 layers of width 64), trained from nothing: not the paper's model,
         and far below it. The world is the inn of prefjax/data/synthetic.py, with a gold reward of at most 3.05.
PROTOCOL SFT (240 steps of 48 demonstrations), then 60 steps of 24 pairs at 6e-4, beta = 2, on 4,096 pairs with
         Bradley-Terry labels of the gold reward, of which flip_labels(rate=0.3) exchanges three in ten; "DPO, clean":
         none. rDPO is told the rate.
COLUMNS  SFT: the gold reward of the SFT policy's answers. gold, proxy reward: of the arm's. wins: against SFT, by
         either reward, a tie half. KL: to SFT, nats. Intervals are over held-out prompts, of one run of one seed.

TRY      --config.num_seeds=3         other seeds, each with a stem of its own
         --config.pairs=1024          fewer pairs
         --config.steps=240           longer arms: the noise is learnt by heart
"""

import matplotlib.figure

from experiments.tables import language_model
from experiments.tables.harness import NOT_REPRODUCED, ORDER, Claim, Results
from experiments.tables.language_model import Arm, ahead_of

NOISE = "flip_labels(rate=0.3)"

ARMS = {
    "DPO, clean": Arm("dpo", loss={"beta": 2.0}),
    "DPO": Arm("dpo", loss={"beta": 2.0}, methods=NOISE),
    "rDPO": Arm("rdpo", loss={"beta": 2.0, "flip_rate": 0.3}, methods=NOISE),
}
TABLE = language_model.table("The abstract's claim, by a language model", 20.0, NOT_REPRODUCED)
SETTINGS, run, cells = language_model.settings(ARMS), language_model.runner(ARMS), language_model.cells
PROTOCOL, SIZES = language_model.PROTOCOL, language_model.SIZES
CLAIMS = (
    language_model.learns(lambda s: s.key == "DPO, clean"),
    Claim(
        "noise_stops",
        "exchanged labels leave DPO no gain in gold reward that can be told (lower end of the 95 % interval)",
        lambda s: s.key == "DPO",
        lambda results, s: -language_model.above_sft(results, s),
        verdict=ORDER,
    ),
    Claim(
        "noise_costs",
        "exchanged labels cost DPO gold reward (minus the lower end of the 95 % interval)",
        lambda s: s.key == "DPO, clean",
        ahead_of("DPO"),
        verdict=ORDER,
    ),
    Claim(
        "robust",
        "the paper's rDPO is robust to exchanged labels; at DPO's settings here it diverges, as its loss has no "
        "lower bound where labels are wrong more often than it is told, and earns less than DPO (lower end of the "
        "95 % interval of its lead)",
        lambda s: s.key == "rDPO",
        lambda results, s: language_model.lead(results, s.key, "DPO", "gold reward")[0],
        verdict=NOT_REPRODUCED,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Gold rewards of DPO with clean labels, and of DPO and rDPO with exchanged ones, beside that of the SFT policy."""
    return language_model.plot(results, SETTINGS)
