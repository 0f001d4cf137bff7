"""Hidden states -> log-probs of the scored tokens -> sums per response. Never a [R, T, V] array.

Only scored tokens go through the vocabulary head, gathered from all rows of a device and `chunk` at a time, each chunk
recomputed in the backward pass: the largest array is [chunk, V], and chunks of padding are skipped. On a mesh every
device multiplies its own part of the vocabulary by the states of all devices that share the parameters ("fsdp"): what
travels is states and a few numbers per token, and no device holds the head, or its gradient, whole.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from prefjax.models import vocabulary
from prefjax.models.vocabulary import ROW_AXES


class TokenScores(NamedTuple):
    """Per scored token, nats, at least float32; 0 where nothing is scored.

    logp        log pi(target | everything before it)
    log_sum_p2  log sum_v pi(v)^2, the log-probability that two draws agree (WPO, arXiv 2406.11827, equation 2)
    kl          sum_v ref(v) (log ref(v) - log pi(v)), the KL from reference to policy (TDPO, arXiv 2404.11999, eq. 9)
    """

    logp: Float[Array, "R S"]
    log_sum_p2: Float[Array, "R S"] | None = None
    kl: Float[Array, "R S"] | None = None


class Head(NamedTuple):
    """What the vocabulary head is applied to, and its weights."""

    hidden: Float[Array, "R T D"]
    weights: Float[Array, "V D"]


class Targets(NamedTuple):
    """The slots of the tokens to score.

    ids         the tokens
    predictors  position whose hidden state predicts each; the last prompt token for a first response token
    scored      which slots hold a token; the others cost (almost) nothing
    """

    ids: Int[Array, "R S"]
    predictors: Int[Array, "R S"]
    scored: Bool[Array, "R S"]


def token_scores(
    policy: Head,
    targets: Targets,
    *,
    chunk: int = 512,
    softcap: float | None = None,
    log_sum_p2: bool = False,
    reference: Head | None = None,
    mesh: Mesh | None = None,
) -> TokenScores:
    """Scores every token that counts; the statistics come out of the same pass over the logits.

    Args:
      chunk: scored tokens of a device that go through the head at once.
      softcap: logits become softcap * tanh(logits / softcap) (Gemma 2); None is off.
      log_sum_p2: also return this statistic.
      reference: the frozen model's states and weights; with them `kl` is returned (no gradient reaches them).
      mesh: where rows lie over ("data", "fsdp") and the vocabulary over `vocabulary.axes`; None on one device.
    """
    score = functools.partial(_token_scores, chunk=chunk, softcap=softcap, log_sum_p2=log_sum_p2)
    reference = jax.lax.stop_gradient(reference)
    if mesh is None or mesh.size == 1:
        return score(policy, reference, targets)

    axes = vocabulary.axes(policy.weights.shape[0], mesh)

    def on_device(policy, reference, targets):
        # Said once, here, and not where chunks meet the weights: the gradients then cross devices once, not per chunk.
        policy, reference = (_declare_varying(head, axes) for head in (policy, reference))
        return score(policy, reference, targets, axes=axes)

    rows, table = P(ROW_AXES), P(axes or None, None)
    head = Head(hidden=rows, weights=table)
    specs = (head, head if reference else None, rows)
    return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=rows)(policy, reference, targets)


def _declare_varying(head, axes):
    """Declares that weights differ in what they do by row, and states by part of the vocabulary."""
    if head is None:
        return None
    hidden = jax.lax.pcast(head.hidden, "tensor", to="varying") if "tensor" in axes else head.hidden
    uncut = tuple(axis for axis in ROW_AXES if axis not in axes)
    return Head(hidden, jax.lax.pcast(head.weights, uncut, to="varying"))


def _token_scores(policy, reference, targets, *, chunk, softcap, log_sum_p2, axes=()):
    """One device's rows and its part of the vocabulary, which is cut over the mesh axes `axes`.

    Devices along "tensor" hold the same rows, those along "fsdp" others: where "fsdp" cuts, they score their chunks
    together.
    """
    count, (_, length, width) = targets.ids.size, policy.hidden.shape
    chunk = min(chunk, count)
    flat = targets.scored.reshape(-1)
    # Scored tokens first: the chunks behind them hold nothing and are skipped.
    order = jnp.pad(jnp.argsort(~flat, stable=True), (0, -count % chunk))
    place = jnp.where(flat, jnp.cumsum(flat), flat.sum() + jnp.cumsum(~flat)) - 1
    predictors = (targets.predictors + jnp.arange(len(targets.predictors))[:, None] * length).reshape(-1)
    states = lambda head: head.hidden.reshape(-1, width)[predictors[order]].reshape(-1, chunk, width)
    ids = targets.ids.reshape(-1)[order].reshape(-1, chunk)
    operands = states(policy), states(reference) if reference else None, ids
    # All devices go through as many chunks, as they add up their parts of the vocabulary in each.
    filled = jax.lax.pmax(flat.sum(), ROW_AXES) if axes else flat.sum()
    live = jnp.arange(0, len(order), chunk) < filled
    together = "fsdp" in axes
    gather = lambda x: jax.lax.all_gather(x, "fsdp", tiled=True) if together else x
    own = lambda x: jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("fsdp") * chunk, chunk) if together else x

    def score(operands):
        chosen, frozen, ids = jax.tree.map(gather, operands)
        # The cast is inside, so that the chunks' gradients of the weights add up in the parameters' own precision.
        z = vocabulary.logits(chosen, policy.weights, softcap)
        normaliser = _log_sum_exp(z, axes)
        kl = p2 = None
        if log_sum_p2:
            p2 = _log_sum_exp(2 * z, axes) - 2 * normaliser
        if reference is not None:
            y = vocabulary.logits(frozen, reference.weights, softcap)
            reference_normaliser = _log_sum_exp(y, axes)
            gap = _sum((jnp.exp(y - reference_normaliser[:, None]) * (y - z)).sum(-1), axes)
            kl = gap - reference_normaliser + normaliser
        return jax.tree.map(own, TokenScores(logp=_target_logit(z, ids, axes) - normaliser, log_sum_p2=p2, kl=kl))

    def skip(operands):
        return jax.tree.map(lambda x: 0 * operands[2].astype(x.dtype), jax.eval_shape(score, operands))

    # Recomputed as a whole: from inside a cond, every chunk would keep a copy of the weights for its backward pass.
    one_chunk = jax.checkpoint(lambda part: jax.lax.cond(part[0], score, skip, part[1]))
    scores = jax.lax.map(one_chunk, (live, operands))
    unsort = lambda x: x.reshape(-1)[place].reshape(targets.scored.shape)
    return jax.tree.map(lambda x: jnp.where(targets.scored, unsort(x), 0), scores)


def _log_sum_exp(z, axes):
    if not axes:
        return jax.nn.logsumexp(z, axis=-1)
    top = jax.lax.pmax(jax.lax.stop_gradient(z.max(-1)), axes)
    return top + jnp.log(_sum(jnp.exp(z - top[:, None]).sum(-1), axes))


def _target_logit(z, ids, axes):
    if not axes:
        return jnp.take_along_axis(z, ids[:, None], axis=-1)[:, 0]
    ids = ids - jax.lax.axis_index(axes) * z.shape[-1]
    here = (ids >= 0) & (ids < z.shape[-1])
    found = jnp.take_along_axis(z, jnp.where(here, ids, 0)[:, None], axis=-1)[:, 0]
    return _sum(jnp.where(here, found, 0), axes)


def _sum(x, axes):
    return jax.lax.psum(x, axes) if axes else x


def response_sums(
    values: Float[Array, "R S"], slots: Int[Array, "R S"], *, groups: int, branches: int, group_rows: int
) -> Float[Array, "B G N"]:
    """Sums token values into their branch slots g * N + n; in layout `pairs` a group's N rows are added up.

    Args:
      values: per scored token, already multiplied by `target_weights` (so padding adds 0).
      group_rows: B, leading axis of the per-group arrays; R // B rows belong to one row of groups.
    """
    slot = jnp.arange(groups * branches)
    # A masked sum and not a scatter: deterministic on every platform, and fused without the [R, S, G * N] array.
    sums = jnp.where(slots[:, :, None] == slot[None, None], values[:, :, None], 0).sum(1)
    return sums.reshape(group_rows, -1, groups, branches).sum(1)
