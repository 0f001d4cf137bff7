"""KTO with a language model: single labelled answers against pairs (arXiv 2402.01306, section 4.2).

COMMAND  python -m experiments.run kto.language_model:long
TIME     21 min of wall time beside other programs, at a load of 20 on two cores; 36 to 67 s of CPU an arm
RESULT   Not reproduced at these settings, which are those of DPO. KTO goes sixteen times as far (KL 3.8 nats against
         0.2) and the reward model likes it better, but 29 of its 128 answers leave the grammar (SFT: 7), so the gold
         reward does not rise; DPO's does, by 0.43.

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

import matplotlib.figure

from experiments.tables import language_model
from experiments.tables.harness import NOT_REPRODUCED, Claim, Results
from experiments.tables.language_model import Arm

ARMS = {
    "DPO": Arm("dpo", loss={"beta": 2.0}),
    "KTO": Arm("kto", loss={"beta": 2.0}),
}
TABLE = language_model.table("The comparison with DPO, by a language model", 21.0, NOT_REPRODUCED)
SETTINGS, run, cells = language_model.settings(ARMS), language_model.runner(ARMS), language_model.cells
PROTOCOL, SIZES = language_model.PROTOCOL, language_model.SIZES
CLAIMS = (
    language_model.learns(lambda s: s.key == "DPO"),
    Claim(
        "kto_learns",
        "the paper's KTO learns as well as DPO; here its gold reward is not above that of SFT, as far as can be "
        "told (lower end of the 95 % interval)",
        lambda s: s.key == "KTO",
        lambda results, s: -language_model.above_sft(results, s),
        verdict=NOT_REPRODUCED,
    ),
    Claim(
        "matches",
        "the paper's KTO matches or passes DPO; with DPO's settings here it goes far and garbles answers, and DPO "
        "leads in gold reward (minus the lower end of the 95 % interval)",
        lambda s: s.key == "KTO",
        lambda results, s: -language_model.lead(results, "DPO", s.key, "gold reward")[0],
        verdict=NOT_REPRODUCED,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Gold rewards of DPO and KTO, beside that of the SFT policy."""
    return language_model.plot(results, SETTINGS)
