"""What a table is made of: settings (its rows), tidy results, claims with a bound, and the paper's own statements."""

import tomllib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import scipy.stats
from jaxtyping import Float

EXACT = "EXACT"  # equals a number that is known without running
ORDER = "ORDER"  # the paper's ordering holds
SIGN = "SIGN"  # the paper's direction holds, its size does not
NOT_REPRODUCED = "NOT REPRODUCED"
NOT_RUN = "NOT RUN"  # it needs data, weights or chips that are not here
UNVERIFIED = "UNVERIFIED PAPER NUMBER"  # compared with a number that nobody has read in the paper yet
VERDICTS = (EXACT, ORDER, SIGN, NOT_REPRODUCED, NOT_RUN, UNVERIFIED)
SECONDS = "seconds"  # a metric of no setting: what a cell's parts took, though they were there before
NOTHING = "—"  # a cell without a statement; the verdict of a row that is no claim's, a user's own

CPU, LONG = "cpu", "long"  # CPU: the size of a table's `PROTOCOL`
SIZES = ("smoke", CPU, LONG, "paper")  # of seconds, of the scoreboard, more of everything, what the paper ran


class UsageError(ValueError):
    """What was asked for cannot be run; the message names the field and the fix. The command exits with 2."""


class NotRun(UsageError):
    """A table needs something that is not here; the message says what, and how to give it."""


class Row(NamedTuple):
    """One number, one line of rows.jsonl. `seed` and `step` are None for a number that is computed, not trained for."""

    row: str
    col: str
    metric: str
    seed: int | None
    step: int | None
    value: float


def by_column(
    row: str, metric: str, values: Mapping[str, float], seed: int | None = None, step: int | None = None
) -> Iterator[Row]:
    """One number of a row in each of these columns: computed, or of a seed after so many steps."""
    for col, value in values.items():
        yield Row(row, col, metric, seed, step, float(value))


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    labels  its first cells, e.g. {"data": "D1", "loss": "ipo", "tau": 0.5}
    metric  the metric it shows (claims may look at others)
    fact    the paper's statement about it: a key of paper.toml, or None where the paper says nothing
    own     the row of a user's own objective (`--rows=+module:loss`): shown, and no claim is about it
    """

    labels: Mapping[str, Any]
    metric: str
    fact: str | None = None
    own: bool = False

    @property
    def key(self) -> str:
        """Its name in `Row.row`."""
        return " ".join(str(label) for label in self.labels.values())


class Results:
    """Tidy rows, indexed. The arrays have one line per seed, and exactly one for a computed number."""

    def __init__(self, rows: Iterable[Row]):
        grouped = defaultdict(dict)
        for row in rows:
            grouped[row.row, row.col, row.metric][row.seed, row.step] = row.value
        self._curves = {}
        for name, values in grouped.items():
            seeds = list(dict.fromkeys(seed for seed, _ in values))
            steps = list(dict.fromkeys(step for _, step in values))
            self._curves[name] = steps, np.array([[values[seed, step] for step in steps] for seed in seeds])

    def curve(self, row: str, col: str, metric: str) -> tuple[list[int], Float[np.ndarray, "seeds steps"]]:
        """The steps at which it was measured, and its values there."""
        return self._curves[row, col, metric]

    def final(self, row: str, col: str, metric: str) -> Float[np.ndarray, "seeds"]:
        """Its values at the last step."""
        return self._curves[row, col, metric][1][:, -1]

    def mean(self, row: str, col: str, metric: str) -> float:
        """The mean over seeds at the last step."""
        return float(self.final(row, col, metric).mean())

    def lead(self, better: str, worse: str, col: str, metric: str) -> tuple[float, float]:
        """The 95 % interval of how much more one row has than another in a column at the last step, paired by seed."""
        return bootstrap_interval(self.final(better, col, metric) - self.final(worse, col, metric))


@dataclass(frozen=True)
class Claim:
    """A statement that must hold for every setting it is about, or the command exits with 1.

    where    which settings it is about
    measure  (results, setting) -> a number that must be at most `at_most`
    verdict  the word its settings get while it holds
    paper    whether it measures against the paper's own number: a setting whose number nobody has verified then gets
             UNVERIFIED PAPER NUMBER, whatever comes out
    """

    name: str
    text: str
    where: Callable[[Setting], bool]
    measure: Callable[[Results, Setting], float]
    at_most: float = 0.0
    verdict: str = EXACT
    paper: bool = False


def away_from(known: str) -> Callable[[Results, Setting], float]:
    """For a claim: how far the number that a row shows is from the one in the column `known`."""
    return lambda results, s: abs(results.mean(s.key, "ours", s.metric) - results.mean(s.key, known, s.metric))


@dataclass(frozen=True)
class Table:
    """What is said of a whole table.

    shows    what of the paper it reproduces
    columns  the `Row.col`s to print
    minutes  on two CPU cores, at the size of its reference run
    verdict  the word it gets while all its claims hold
    float64  whether its cells compute in float64
    size     of its reference run: :cpu, or :long where a language model runs, which then has no :cpu
    over     what the printed intervals are over, which `Row.seed` numbers
    """

    shows: str
    columns: tuple[str, ...]
    minutes: float
    verdict: str
    float64: bool = False
    size: str = CPU
    over: str = "seeds"


@dataclass(frozen=True)
class Judgement:
    """What the claims say about some results.

    rows     the verdict of each setting: that of the first claim about it, NOT REPRODUCED if any claim fails on it
    reasons  why a setting is red: the claim that fails on it, or that says it cannot be reproduced; else None
    claims   for each claim the largest measurement, the setting it occurs at, and whether the claim holds everywhere
    """

    rows: list[str]
    reasons: list[str | None]
    claims: list[tuple[float, str, bool]]

    @property
    def holds(self) -> bool:
        return all(holds for *_, holds in self.claims)


def judge(
    settings: Sequence[Setting], claims: Sequence[Claim], results: Results, unverified: Collection[str] = ()
) -> Judgement:
    """Measures every claim on every setting it is about. A measurement that is not a number fails the claim.

    unverified  the facts (`Setting.fact`) that nobody has read in the paper
    """
    verdicts, reasons, outcomes = {s.key: NOTHING for s in settings if s.own}, {}, []
    for claim in claims:
        about = [s for s in settings if not s.own and claim.where(s)]
        if not about:
            raise ValueError(f"claim {claim.name!r} is about no setting; check its `where`")
        measured = {s.key: float(claim.measure(results, s)) for s in about}
        open_ = {s.key for s in about if claim.paper and s.fact in unverified}
        for key, value in measured.items():
            if key in open_:
                verdicts.setdefault(key, UNVERIFIED)
            elif not value <= claim.at_most:
                verdicts[key] = NOT_REPRODUCED
                reasons[key] = f"{claim.text}: here {value:.3g}, bound {claim.at_most:g}"
            elif claim.verdict == NOT_REPRODUCED:
                reasons.setdefault(key, claim.text)
            verdicts.setdefault(key, claim.verdict)
        counted = {key: value for key, value in measured.items() if key not in open_} or measured
        worst = max(counted, key=lambda key: np.inf if np.isnan(counted[key]) else counted[key])
        holds = bool(counted[worst] <= claim.at_most) or len(open_) == len(measured)
        outcomes.append((counted[worst], worst, holds))
    unclaimed = [s.key for s in settings if s.key not in verdicts]
    if unclaimed:
        raise ValueError(f"no claim is about {', '.join(unclaimed)}; every row of a table needs one")
    return Judgement([verdicts[s.key] for s in settings], [reasons.get(s.key) for s in settings], outcomes)


def get_config(table_id: str, module: ModuleType, size: str = CPU) -> ml_collections.ConfigDict:
    """A table's protocol at one of its sizes: its `PROTOCOL`, and what its `SIZES` say differs.

    Raises:
        UsageError: there is no such size.
        NotRun: it runs a language model, which takes longer than :cpu may.
    """
    if size not in SIZES:
        raise UsageError(f"{table_id} has the sizes {', '.join(f':{name}' for name in SIZES)}, got :{size}")
    if size == CPU != module.TABLE.size:
        asked = f"ask for {table_id}:{LONG}"
        raise NotRun(f"it runs language models, {module.TABLE.minutes:g} minutes of two CPU cores: {asked}")
    return ml_collections.ConfigDict({**module.PROTOCOL, **({} if size == CPU else module.SIZES[size])})


def cell_names(module: ModuleType, config: ml_collections.ConfigDict) -> list[str]:
    """What a table computes at once: the names that its `cells` gives, or all of it where it has none.

    Raises:
        NotRun: the table needs something that is not here.
    """
    return module.cells(config) if hasattr(module, "cells") else ["all"]


def mean_interval(values: Float[np.ndarray, "seeds *rest"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds and half the width of its 95 % confidence interval (Student's t), each of shape [*rest]."""
    count = len(values)
    quantile = scipy.stats.t.ppf(0.975, count - 1)
    return values.mean(axis=0), quantile * values.std(axis=0, ddof=1) / np.sqrt(count)


def bootstrap_interval(
    values: Float[np.ndarray, "seeds *strata"], draws: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of `values`, by a bootstrap over seeds that is stratified: seeds are drawn anew,
    with replacement, within each of the strata (settings, tasks) by itself (arXiv 2108.13264, section 4.2).

    Of two methods that saw the same data and the same start, give the differences seed by seed: the noise that they
    share then cancels. The draws are the same in every call.
    """
    values = values.reshape(len(values), -1)
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(values), size=(draws, *values.shape))
    means = np.take_along_axis(values[None], drawn, axis=1).mean(axis=(1, 2))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def over_seeds(experiment: Callable[[jax.Array], Any], num_seeds: int) -> Any:
    """`experiment(key)` for the seeds 0 .. num_seeds - 1 at once: NumPy arrays with a leading axis of seeds.

    What a seed gives does not depend on how many run beside it.

    Raises:
        UsageError: num_seeds is less than 2, so that there is no interval.
    """
    if num_seeds < 2:
        raise UsageError(f"config.num_seeds must be at least 2 for a confidence interval, got {num_seeds}")
    keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
    return jax.device_get(jax.jit(jax.vmap(experiment))(keys))


def load_paper(path: Path) -> dict[str, Any]:
    """paper.toml: `[paper]` (name, title, arxiv) and, per table, the paper's statements with their provenance.

    Each statement names its `source` (the figure, table or text), `section`, arXiv `version` and whether somebody
    `verified` it in the paper. Only verified statements are ever shown.

    Raises:
        ValueError: a statement says neither verified = true nor false, or it is verified but lacks provenance.
    """
    paper = tomllib.loads(path.read_text())
    for table in paper.keys() - {"paper"}:
        for name, fact in paper[table].items():
            if not isinstance(fact.get("verified"), bool):
                raise ValueError(f"{path.name}: [{table}.{name}] needs verified = true or false")
            missing = [field for field in ("source", "section", "version") if not fact.get(field)]
            if fact["verified"] and missing:
                raise ValueError(f"{path.name}: [{table}.{name}] is verified, so it needs {', '.join(missing)}")
    return paper
