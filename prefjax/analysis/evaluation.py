"""What the log-probs of held-out responses say about a policy and its reference, every number with its interval."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from prefjax.analysis.statistics import share

RESAMPLES = 1000
ACCURACIES = (
    "reward_accuracy",
    *(f"{name}_ranking_accuracy{per}" for name in ("policy", "reference") for per in ("", "_per_token")),
)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, from `count` comparisons, responses or prompts."""

    value: float
    low: float
    high: float
    count: int


@dataclasses.dataclass(frozen=True)
class Scored:
    """N prompts with up to K responses each; a slot that is not `valid` holds anything.

    policy_logp, reference_logp  log-prob of the response, nats, summed over its tokens, the end token included
    length                       tokens summed in them
    target                       higher is better; responses of one prompt with different targets make pairs
    """

    policy_logp: Float[np.ndarray, "N K"]
    reference_logp: Float[np.ndarray, "N K"]
    length: Int[np.ndarray, "N K"]
    target: Float[np.ndarray, "N K"]
    valid: Bool[np.ndarray, "N K"]

    def take(self, prompts: Int[np.ndarray, "M"] | Bool[np.ndarray, "N"]) -> "Scored":
        """Some of the prompts."""
        return Scored(*(getattr(self, field.name)[prompts] for field in dataclasses.fields(self)))

    @property
    def reward(self) -> Float[np.ndarray, "N K"]:
        """log pi - log ref: DPO's implicit reward (arXiv 2305.18290, equation 5) divided by beta, nats."""
        return self.policy_logp.astype(np.float64) - self.reference_logp


class Pairs(NamedTuple):
    """M pairs: `better` and `worse` are responses of the prompt at `prompt`, the former with the higher target."""

    prompt: Int[np.ndarray, "M"]
    better: Int[np.ndarray, "M"]
    worse: Int[np.ndarray, "M"]

    def gap(self, values: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "M"]:
        """Value of the better response minus that of the worse."""
        values = np.asarray(values, np.float64)
        return values[self.prompt, self.better] - values[self.prompt, self.worse]


def pairs_of(scored: Scored) -> Pairs:
    """All pairs of valid responses of one prompt with different targets."""
    valid = scored.valid[:, :, None] & scored.valid[:, None, :]
    return Pairs(*np.nonzero(valid & (scored.target[:, :, None] > scored.target[:, None, :])))


def bootstrap(
    statistic: Callable[[Int[np.ndarray, "N"]], float], count: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval (2.5 %, 97.5 %) of a statistic of `count` independent units under resampling them with
    replacement (Efron 1979). `statistic` gets the indices drawn; draws for which it is not finite are left out."""
    values = _replicates(statistic, count, resamples, seed)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _replicates(statistic, count, resamples, seed) -> Float[np.ndarray, "resamples"]:
    rng = np.random.default_rng(seed)
    return np.array([statistic(rng.integers(count, size=count)) for _ in range(resamples)])


def clustered_mean(values: Float[np.ndarray, "M"], cluster: Int[np.ndarray, "M"]) -> Estimate | None:
    """The mean of all values; the bootstrap draws whole clusters (prompts), whose values depend on each other. None
    without values."""
    if not len(values):
        return None
    clusters = np.unique(cluster, return_inverse=True)[1]
    sums, counts = np.bincount(clusters, values), np.bincount(clusters)
    low, high = bootstrap(lambda drawn: sums[drawn].sum() / counts[drawn].sum(), len(sums))
    return Estimate(float(np.mean(values)), low, high, len(values))


def pair_share(correct: Float[np.ndarray, "M"], prompt: Int[np.ndarray, "M"]) -> Estimate | None:
    """A share of pairs. Wilson interval where every prompt has one pair, bootstrap over prompts elsewhere."""
    if not len(correct) or len(np.unique(prompt)) < len(prompt):
        return clustered_mean(correct, prompt)
    one = share(float(np.mean(correct)), len(correct))
    return Estimate(one.value, one.low, one.high, one.count)


def _higher(gap):
    """1 where the better response is higher, a tie counts one half."""
    return (gap > 0) + 0.5 * (gap == 0)


def accuracies(scored: Scored) -> dict[str, Estimate | None]:
    """Shares of pairs that are ordered rightly.

    reward_accuracy                       the better response has the higher implicit reward; a tie counts one half
    policy_ranking_accuracy, reference_…  the better response has at least the log-prob of the worse (arXiv 2405.19534,
                                          section 2: R(x, y_w, y_l) = 1 if pi(y_w | x) >= pi(y_l | x))
    …_per_token                           the same with log-probs divided by the response's length
    """
    pairs = pairs_of(scored)
    return {measure: pair_share(_right(scored, pairs, measure), pairs.prompt) for measure in ACCURACIES}


def margins(scored: Scored) -> tuple[Estimate | None, dict[str, float]]:
    """reward(better) - reward(worse) over pairs, nats: the mean, and its quantiles by name ("5 %", ...)."""
    pairs = pairs_of(scored)
    gap = pairs.gap(scored.reward)
    quantiles = np.quantile(gap, QUANTILES) if len(gap) else []
    names = [f"{100 * q:g} %" for q in QUANTILES]
    return clustered_mean(gap, pairs.prompt), dict(zip(names, map(float, quantiles), strict=False))


def divergences(scored: Scored) -> dict[str, Estimate | None]:
    """log ref - log pi over responses, nats. Estimates KL(ref || pi) where the responses came from the reference.

    per_response  mean over responses
    per_token     the sum over all responses divided by their tokens
    """
    prompt, _ = np.nonzero(scored.valid)
    away, length = -scored.reward[scored.valid], scored.length[scored.valid]
    sums, tokens = (np.bincount(prompt, x, minlength=len(scored.valid)) for x in (away, length))
    per_token = None
    if len(away):
        low, high = bootstrap(lambda drawn: sums[drawn].sum() / tokens[drawn].sum(), len(sums))
        per_token = Estimate(float(sums.sum() / tokens.sum()), low, high, len(away))
    return {"per_response": clustered_mean(away, prompt), "per_token": per_token}


def lengths(scored: Scored) -> dict[str, Estimate | None]:
    """What length has to do with it, in tokens.

    better, worse       mean length of the better and of the worse response of a pair
    ratio               of the two means
    better_is_longer    share of pairs; equal lengths count one half
    preferred_is_longer share of pairs in which the response of higher reward is the longer one, ties one half
    correlation         Pearson's, of implicit reward and length over all responses
    gap_correlation     the same of their differences within pairs: what is left once the prompt is fixed
    """
    pairs = pairs_of(scored)
    length, reward = scored.length.astype(np.float64), scored.reward
    of_side = lambda side: length[pairs.prompt, side]
    better, worse = of_side(pairs.better), of_side(pairs.worse)
    longer, gap = pairs.gap(length), pairs.gap(reward)
    prompt, _ = np.nonzero(scored.valid)
    agree = np.where((longer == 0) | (gap == 0), 0.5, (longer > 0) == (gap > 0)).astype(np.float64)
    return {
        "better": clustered_mean(better, pairs.prompt),
        "worse": clustered_mean(worse, pairs.prompt),
        "ratio": _clustered(lambda drawn: better[drawn].sum() / worse[drawn].sum(), pairs.prompt),
        "better_is_longer": pair_share(_higher(longer), pairs.prompt),
        "preferred_is_longer": pair_share(agree, pairs.prompt),
        "correlation": _correlation(reward[scored.valid], length[scored.valid], prompt),
        "gap_correlation": _correlation(gap, longer, pairs.prompt),
    }


def _correlation(x, y, cluster) -> Estimate | None:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None

    def pearson(drawn):
        a, b = x[drawn] - x[drawn].mean(), y[drawn] - y[drawn].mean()
        scale = np.sqrt((a**2).sum() * (b**2).sum())
        return (a * b).sum() / scale if scale else np.nan

    return _clustered(pearson, cluster)


def _clustered(statistic, cluster) -> Estimate | None:
    """A statistic of the values at some indices, with a bootstrap that draws whole clusters of them."""
    if not len(cluster):
        return None
    order = np.argsort(cluster, kind="stable")
    starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    members = np.split(order, starts[1:])
    low, high = bootstrap(lambda drawn: statistic(np.concatenate([members[unit] for unit in drawn])), len(members))
    return Estimate(float(statistic(np.arange(len(cluster)))), low, high, len(cluster))


def by_subset(scored: Scored, subsets: Sequence[str]) -> tuple[dict[str, dict], dict[str, Estimate | None]]:
    """`accuracies` and the mean margin of every subset, and the mean of each accuracy over subsets, all alike.

    The second is how RewardBench (arXiv 2403.13787) gives every category the same weight, however many prompts it has.
    Its interval draws prompts within each subset. Subsets without a pair are left out.

    Args:
      subsets: of each prompt.
    """
    names = np.asarray(subsets)
    parts = {name: scored.take(names == name) for name in dict.fromkeys(subsets)}
    parts = {name: part for name, part in parts.items() if len(pairs_of(part).prompt)}
    tables = {name: accuracies(part) | {"margin": margins(part)[0]} for name, part in parts.items()}
    return tables, {measure: _mean_of(parts, measure) for measure in (ACCURACIES if parts else ())}


def _mean_of(parts: Mapping[str, Scored], measure: str) -> Estimate:
    values, drawn = [], []
    for seed, part in enumerate(parts.values()):
        pairs = pairs_of(part)
        right, unit = _right(part, pairs, measure), np.unique(pairs.prompt, return_inverse=True)[1]
        sums, counts = np.bincount(unit, right), np.bincount(unit)
        values.append(right.mean())
        mean = lambda chosen, sums=sums, counts=counts: sums[chosen].sum() / counts[chosen].sum()
        drawn.append(_replicates(mean, len(sums), RESAMPLES, seed))
    low, high = np.quantile(np.mean(drawn, axis=0), (0.025, 0.975))
    return Estimate(float(np.mean(values)), float(low), float(high), len(parts))


def _right(scored: Scored, pairs: Pairs, measure: str) -> Float[np.ndarray, "M"]:
    if measure == "reward_accuracy":
        return _higher(pairs.gap(scored.reward))
    name, _, suffix = measure.partition("_ranking_accuracy")
    logp = np.asarray(getattr(scored, f"{name}_logp"), np.float64)
    return (pairs.gap(logp / np.maximum(scored.length, 1) if suffix else logp) >= 0).astype(np.float64)
