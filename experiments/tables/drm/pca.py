"""DRM: principal components of chosen minus rejected embeddings are the axes that people judge by (arXiv 2502.13131).

COMMAND  python -m experiments.run drm.pca
TIME     15 s on two CPU cores
RESULT   The components span the axes within a degree and each is as accurate on its axis as the axis itself; the first
         is best over all. One Bradley-Terry direction lies between them and is worse for every kind of rater.

PROTOCOL Pairs of embeddings of 16 dimensions, whose difference has deviation 4, 3 and 2 along three axes at right
         angles, drawn anew for every seed, and 1 elsewhere. A rater judges by one of the axes, each as often, and
         chooses by Bradley-Terry on half the difference along it. 200,000 pairs; principal components of chosen minus
         rejected by `prefjax.contrib.decomposition`; one direction for all by `prefjax.losses.bt`; accuracies on 50,000
         further pairs of each kind of rater; 5 seeds. float64.
COLUMNS  known: 0 degrees; the accuracy of the axis of which the row is. ours: of head k, the k-th component; "one for
         all": the Bradley-Terry direction. Accuracies are shares of pairs.

TRY      --config.scale=2.0      large margins: labels nearly without noise
         --config.pairs=2000     few pairs: components of noise mix in
         --config.width=64       more dimensions that nobody judges by
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import matplotlib.figure
import ml_collections
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from experiments.tables import enumerable, figures
from experiments.tables.harness import EXACT, ORDER, Claim, Results, Row, Setting, Table, by_column
from prefjax.contrib.decomposition import decompose, head_accuracies
from prefjax.losses import Responses, objective

DEGREES, ACCURACY = "degrees", "accuracy"
DEVIATIONS = (4.0, 3.0, 2.0)
HEADS = tuple(f"head {k}" for k in range(len(DEVIATIONS)))
ONE = "one for all"
SPAN, BT = "components to axes", f"{ONE}, to components"
TABLE = Table("Equation 6, on axes that are known", ("known", "ours"), 0.3, ORDER, float64=True)
SETTINGS = (
    Setting({"raters": "all", "of": SPAN}, DEGREES),
    Setting({"raters": "all", "of": BT}, DEGREES),
    *(Setting({"raters": "all", "of": head}, ACCURACY) for head in HEADS),
    *(Setting({"raters": f"of axis {k}", "of": head}, ACCURACY) for k in range(len(HEADS)) for head in (HEADS[k], ONE)),
)
PROTOCOL = {"width": 16, "pairs": 200_000, "held_out": 50_000, "scale": 0.5, "num_seeds": 5}
SMOKE = {"width": 8, "pairs": 100_000, "held_out": 20_000, "num_seeds": 2}
SIZES = {"smoke": SMOKE, "long": {"num_seeds": 50}, "paper": {}}


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    """Angles and accuracies of every seed."""
    for seed in range(config.num_seeds):
        for key, metric, known, ours in _seed(config, np.random.default_rng([seed, 11])):
            yield from by_column(key, metric, {"known": known, "ours": ours}, seed)


def _seed(config: ml_collections.ConfigDict, rng: np.random.Generator) -> Iterator[tuple[str, str, float, float]]:
    """(Setting.key, metric, known, ours)."""
    axes = np.linalg.qr(rng.normal(size=(config.width, len(DEVIATIONS))))[0].T
    judged_by = rng.integers(len(axes), size=config.pairs)
    differences = _differences(config, rng, axes, judged_by)
    heads = decompose(differences, len(axes)).directions
    one = enumerable.minimise(_bradley_terry, np.zeros(config.width), differences)[None]
    yield f"all {SPAN}", DEGREES, 0.0, _angle(heads, axes)
    yield f"all {BT}", DEGREES, 0.0, _angle(heads, one)
    held_out = [_differences(config, rng, axes, np.full(config.held_out, k)) for k in range(len(axes))]
    by_head, by_axis, by_one = (
        np.array([head_accuracies(which, of_axis) for of_axis in held_out]) for which in (heads, axes, one)
    )
    for k, head in enumerate(HEADS):
        yield f"all {head}", ACCURACY, by_axis[:, k].mean(), by_head[:, k].mean()
        yield f"of axis {k} {head}", ACCURACY, by_axis[k, k], by_head[k, k]
        yield f"of axis {k} {ONE}", ACCURACY, by_axis[k, k], by_one[k, 0]


def _differences(
    config: ml_collections.ConfigDict, rng: np.random.Generator, axes: np.ndarray, judged_by: np.ndarray
) -> Float[np.ndarray, "n D"]:
    """Chosen minus rejected embeddings; judged_by [n]: the axis of each pair's rater."""
    count = len(judged_by)
    differences = rng.normal(size=(count, config.width))
    along = rng.normal(size=(count, len(axes))) * DEVIATIONS
    differences += (along - differences @ axes.T) @ axes
    margin = config.scale * along[np.arange(count), judged_by]
    right = rng.logistic(size=count) < margin  # Bradley-Terry: chosen as it is with the logistic function of the margin
    return np.where(right[:, None], differences, -differences)


@jax.jit
@jax.value_and_grad
def _bradley_terry(direction: Float[Array, "D"], differences: Float[Array, "n D"]) -> Float[Array, ""]:
    rewards = jnp.stack([differences @ direction, jnp.zeros(len(differences))], axis=1)
    return jnp.mean(objective("bt").loss(Responses(features=rewards[..., None])))


def _angle(space: Float[np.ndarray, "c D"], other: Float[np.ndarray, "d D"]) -> float:
    """The largest principal angle between what two sets of directions span, degrees."""
    return float(np.rad2deg(scipy.linalg.subspace_angles(space.T, other.T)).max())


def _less_than_head_0(results: Results, s: Setting) -> float:
    """Upper end of the 95 % interval of a head's lead over head 0; of head 0's over the axis itself."""
    if s.labels["of"] == HEADS[0]:
        return results.mean(s.key, "known", ACCURACY) - results.mean(s.key, "ours", ACCURACY) - 0.01
    return results.lead(s.key, f"all {HEADS[0]}", "ours", ACCURACY)[1]


def _lead_of_one_for_all(results: Results, s: Setting) -> float:
    """Over the head of the raters' own axis."""
    raters = s.labels["raters"]
    return results.lead(f"{raters} {ONE}", f"{raters} head {raters.split()[-1]}", "ours", ACCURACY)[1]


CLAIMS = (
    Claim(
        "angles",
        "the components span the axes, and hold the Bradley-Terry direction of all raters, within 5 degrees",
        lambda s: s.metric == DEGREES,
        lambda results, s: results.mean(s.key, "ours", DEGREES),
        5.0,
        EXACT,
    ),
    Claim(
        "head_0",
        "of the heads the first is best over all raters, and within 0.01 of its axis (upper end of the 95 % interval "
        "of the others' lead over it)",
        lambda s: s.metric == ACCURACY and s.labels["raters"] == "all",
        _less_than_head_0,
        verdict=ORDER,
    ),
    Claim(
        "own_head",
        "for the raters of an axis its head is more accurate than one direction for all (upper end of the 95 % "
        "interval of that one's lead)",
        lambda s: s.metric == ACCURACY and s.labels["raters"] != "all",
        _lead_of_one_for_all,
        verdict=ORDER,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Angles of a degree or two between components, axes and the one direction; each head's accuracy on its axis, which
    is that of the axis itself and above that of one direction for all."""
    return figures.dots(results, SETTINGS, known="known", ours="ours")
