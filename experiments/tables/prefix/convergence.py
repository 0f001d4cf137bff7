"""Prefix sharing with a language model: the same losses on the way, the same policy (arXiv 2410.20305, abstract).

COMMAND  python -m experiments.run prefix.convergence:long
TIME     23 min of wall time beside other programs, at a load of 20 on two cores; 36 to 67 s of CPU an arm
RESULT   The training losses of the two layouts are the same within 4e-5 of the first one at every step, and the
         policies give the same 128 answers.

MODEL    A byte-level decoder of 0.13 M parameters (2 layers of width 64), trained from nothing: not the paper's model,
         and far below it. The world is the inn of prefjax/data/synthetic.py, with a gold reward of at most 3.05.
PROTOCOL SFT (240 steps of 48 demonstrations), then DPO, 60 steps of 24 of 4,096 pairs at 6e-4, beta = 2: once with two
         rows a pair, once with shared prompts in packed rows; the same pairs in the same order. float32.
COLUMNS  SFT: the gold reward of the SFT policy's answers. gold, proxy reward: of the arm's. wins: against SFT, by
         either reward, a tie half. KL: to SFT, nats. Intervals are over held-out prompts, of one run of one seed.

TRY      --config.num_seeds=3         other seeds, each with a stem of its own
         --config.prompts_per_step=48  larger steps
         --config.steps=480           longer arms
"""

import matplotlib.figure
import numpy as np

from experiments.tables import language_model
from experiments.tables.harness import EXACT, Claim, Results, Setting
from experiments.tables.language_model import METRIC, Arm

PLAIN = "two rows a pair"

ARMS = {
    "two rows a pair": Arm("dpo", loss={"beta": 2.0}, layout="pairs"),
    "shared, packed": Arm("dpo", loss={"beta": 2.0}),
}
TABLE = language_model.table("No effect on convergence, by a language model", 23.0, EXACT)
SETTINGS, run, cells = language_model.settings(ARMS), language_model.runner(ARMS), language_model.cells
PROTOCOL, SIZES = language_model.PROTOCOL, language_model.SIZES


def _apart(results: Results, s: Setting) -> float:
    ours, plain = (results.curve(name, "curve", "loss")[1] for name in (s.key, PLAIN))
    return float(np.abs(ours - plain).max() / plain[:, 0].min())


CLAIMS = (
    Claim(
        "same_losses",
        "at every logged step the training loss is that of two rows a pair (largest difference over the first loss)",
        lambda s: True,
        _apart,
        1e-3,
        EXACT,
    ),
    Claim(
        "same_policy",
        "the gold reward of the answers is that of two rows a pair (difference of the means)",
        lambda s: True,
        lambda results, s: abs(results.mean(s.key, "gold reward", METRIC) - results.mean(PLAIN, "gold reward", METRIC)),
        0.05,
        EXACT,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Gold rewards of DPO with two rows a pair and with shared, packed rows, beside that of the SFT policy."""
    return language_model.plot(results, SETTINGS)
