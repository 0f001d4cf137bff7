"""RSO with a language model: pairs of people, SFT samples, rejection samples (arXiv 2309.06657, Tables 1 and 2).

COMMAND  python -m experiments.run rso.language_model:long
TIME     23 min of wall time beside other programs, at a load of 20 on two cores; 36 to 67 s of CPU an arm
RESULT   Not reproduced in gold reward: pairs of samples, ranked by the reward model, raise its own reward far more than
         direct pairs do (0.47 and 0.43 against 0.14), and no more gold reward can be told. Rejection samples go
         farthest from SFT.

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

import matplotlib.figure

from experiments.tables import language_model
from experiments.tables.harness import NOT_REPRODUCED, Claim, Results
from experiments.tables.language_model import Arm, not_ahead_of

ARMS = {
    "direct": Arm("dpo", loss={"beta": 2.0}),
    "sft-sample-rank": Arm("dpo", "sft-sample-rank", {"beta": 2.0}),
    "rso-sample-rank": Arm("dpo", "rso-sample-rank", {"beta": 2.0}),
}
TABLE = language_model.table("Tables 1 and 2, by a language model", 23.0, NOT_REPRODUCED)
SETTINGS, run, cells = language_model.settings(ARMS), language_model.runner(ARMS), language_model.cells
PROTOCOL, SIZES = language_model.PROTOCOL, language_model.SIZES
CLAIMS = (
    language_model.learns(lambda s: s.key == "direct"),
    Claim(
        "sft_beats_direct",
        "the paper's pairs of SFT samples win more than direct ones; here they raise the reward of the model that "
        "ranks them, and no lead in gold reward can be told (lower end of the 95 % interval)",
        lambda s: s.key == "sft-sample-rank",
        not_ahead_of("direct"),
        verdict=NOT_REPRODUCED,
    ),
    Claim(
        "rso_beats_sft",
        "the paper's rejection samples win more than SFT samples; here no lead in gold reward can be told, and "
        "they go farther from SFT (lower end of the 95 % interval)",
        lambda s: s.key == "rso-sample-rank",
        not_ahead_of("sft-sample-rank"),
        verdict=NOT_REPRODUCED,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Gold rewards of DPO on pairs of three sources, beside that of the SFT policy."""
    return language_model.plot(results, SETTINGS)
