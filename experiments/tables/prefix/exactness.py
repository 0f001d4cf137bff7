"""Prefix sharing: the same loss and the same gradient in every layout (arXiv 2410.20305, section 3).

COMMAND  python -m experiments.run prefix.exactness
TIME     20 s on two CPU cores
RESULT   Two rows a pair, one shared row a pair, and shared rows packed with others give one loss, one mean margin and
         one gradient, to rounding in float64.

PROTOCOL A random decoder (2 layers of width 32, grouped queries) and a random reference; 12 pairs with prompts of 4 to
         24 and responses of 1 to 12 random tokens; DPO at beta = 0.1 through the train step of prefjax, reference live.
         float64 throughout.
COLUMNS  pairs: the plain layout, every response in a row of its own behind its prompt. ours: the layout of the row.

TRY      --config.pairs=64           more pairs, more to a row
         --config.layers=6           a deeper model
         --config.attention=dense    the plain attention instead of live tiles
"""

import functools
from collections.abc import Iterator

import jax
import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import figures
from experiments.tables.harness import EXACT, Claim, Results, Row, Setting, Table, by_column
from prefjax.losses import objective
from prefjax.models import ModelConfig, init
from prefjax.rows.arrays import Branches, RowShape
from prefjax.rows.layout import build_rows
from prefjax.rows.trees import TokenTree
from prefjax.training.metrics import Metrics
from prefjax.training.scoring import Setup
from prefjax.training.step import init_params, loss_and_gradients

LAYOUTS = ("shared", "shared_packed")
METRICS = ("loss", "mean margin", "gradient norm", "cosine of the gradients")
GROUPS = 4  # pairs a packed row
TABLE = Table("Exactness, section 3", ("pairs", "ours"), 0.3, EXACT, float64=True)
SETTINGS = tuple(Setting({"layout": layout, "what": metric}, metric) for layout in LAYOUTS for metric in METRICS)
PROTOCOL = {"pairs": 12, "layers": 2, "width": 32, "vocabulary": 61, "attention": "tiled"}
SIZES = {
    "smoke": {"pairs": 6, "layers": 1, "width": 16, "attention": "dense"},
    "long": {"pairs": 200, "layers": 4, "width": 64},
    "paper": {},
}


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    model = ModelConfig(
        vocab_size=config.vocabulary,
        num_layers=config.layers,
        width=config.width,
        num_heads=4,
        num_kv_heads=2,
        head_width=8,
        mlp_width=2 * config.width,
        attention=config.attention,
        dtype="float64",
        param_dtype="float64",
    )
    setup = Setup(model, objective("dpo", beta=0.1))
    rng = np.random.default_rng(0)
    jitter = lambda leaf: np.asarray(leaf) + 0.3 * rng.normal(size=leaf.shape)
    policy, reference = (jax.tree.map(jitter, init(model, jax.random.key(seed))) for seed in (0, 1))
    params, trees = init_params(setup, policy), _trees(config, rng)
    step = jax.jit(functools.partial(loss_and_gradients, setup))
    outcome = lambda layout: _outcome(*jax.device_get(step(params, reference, _rows(layout, trees))))
    gradient, plain = outcome("pairs")
    for layout in LAYOUTS:
        other, shared = outcome(layout)
        norms = [np.linalg.norm(x) for x in (gradient, other)]
        values = {
            "loss": (plain["loss"], shared["loss"]),
            "mean margin": (plain["margin"], shared["margin"]),
            "gradient norm": norms,
            "cosine of the gradients": (1.0, gradient @ other / norms[0] / norms[1]),
        }
        for metric, (known, ours) in values.items():
            yield from by_column(f"{layout} {metric}", metric, {"pairs": known, "ours": ours})


def _trees(config: ml_collections.ConfigDict, rng: np.random.Generator) -> list[TokenTree]:
    tokens = lambda low, high: rng.integers(3, config.vocabulary, rng.integers(low, high)).astype(np.int32)
    target = np.array([1, 0], np.float32)
    return [TokenTree(tokens(4, 25), (tokens(1, 13), tokens(1, 13)), target, example_id=i) for i in range(config.pairs)]


def _rows(layout: str, trees: list[TokenTree]):
    groups = GROUPS if layout.endswith("packed") else 1
    grouped = [trees[i : i + groups] for i in range(0, len(trees), groups)]
    length = 64 * groups
    return build_rows(grouped, RowShape(layout, len(grouped), length, length, groups, Branches(2)))


def _outcome(gradients, metrics) -> tuple[np.ndarray, dict[str, float]]:
    """The whole gradient as one vector, and the metrics."""
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradients)]), dict(Metrics(metrics))


def _off(results: Results, setting: Setting) -> float:
    plain, ours = (results.mean(setting.key, col, setting.metric) for col in ("pairs", "ours"))
    return abs(ours - plain) / abs(plain)


CLAIMS = (
    Claim(
        "equal",
        "loss, mean margin and gradient norm are those of two rows a pair, relative to their size",
        lambda s: not s.metric.startswith("cosine"),
        _off,
        1e-12,
    ),
    Claim(
        "gradient",
        "the gradients of both layouts point one way (1 - cosine)",
        lambda s: s.metric.startswith("cosine"),
        _off,
        1e-10,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Loss, mean margin, gradient norm and the cosine between gradients for shared and for packed rows, each on the
    value of two rows a pair."""
    return figures.dots(results, SETTINGS, known="pairs", ours="ours")
