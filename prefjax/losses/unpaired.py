"""Objectives on single responses with a label each: any K >= 1, `target` 1 for desirable and 0 for undesirable.

Notation of the docstrings, all in nats and all sums over response tokens (EOS included):

    a(y) = logp(y) - reference_logp(y)      the log-ratio of a response; 0 when policy == reference
    sp(x) = log(1 + e^x) = -log sigmoid(-x)

Every loss is [B], one number per prompt: the mean over the prompt's valid responses, unreduced over prompts. An invalid
slot contributes exactly zero loss and zero gradient, and so does a prompt with no valid slot.

>>> one = Responses(logp=jnp.array([[-9.0]]), reference_logp=jnp.array([[-11.0]]), target=jnp.array([[1.0]]))  # a = 2
>>> z0 = dict(baseline_logp=jnp.array([-30.0]), baseline_reference_logp=jnp.array([-31.0]))  # z0 = 1
>>> print(f"{kto(one.replace(**z0))[0]:.4f}")  # sigmoid(-0.1)
0.4750
>>> [f"{loss(one, beta=0.1)[0]:.4f}" for loss in (apo_zero_unpaired, bco, ulma_binary, ulma)]
['0.4502', '0.6444', '0.5981', '9.0000']
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from prefjax.losses.links import logistic
from prefjax.losses.objective import Carried
from prefjax.losses.reducers import from_zero, log_ratio, moving_mean, per_token, singles
from prefjax.losses.registry import LOG2, TARGET, for_singles
from prefjax.losses.responses import Responses
from prefjax.options import BelowOne, NonNegative, Positive, Share


def by_label(r: Responses, desirable, undesirable):
    """`desirable` where the target is 1, `undesirable` where it is 0; numbers or arrays."""
    return jnp.where(r.target > 0.5, desirable, undesirable)


def mismatched_mean(r: Responses, *, momentum: float, **_: float) -> dict[str, Float[Array, ""]]:
    """KTO's z0 before it is clamped: the mean log-ratio of the batch's mismatched responses, or its moving average."""
    r = singles(r, "reference_logp", "target", "baseline_logp", "baseline_reference_logp")
    gaps = r.baseline_logp - r.baseline_reference_logp
    return {"mismatched_log_ratio": moving_mean(r, "mismatched_log_ratio", gaps, jnp.any(r.valid, axis=-1), momentum)}


@for_singles(
    TARGET | {"baseline_logp", "baseline_reference_logp"},
    start=lambda r, desirable_weight, undesirable_weight, **_: by_label(
        r, desirable_weight / 2, undesirable_weight / 2
    ),
    reads="labels",
    coupled=True,
    carries=Carried(from_zero("mismatched_log_ratio"), mismatched_mean),
)
def kto(
    r: Responses,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
    momentum: BelowOne = 0.0,
) -> Float[Array, "B"]:
    """Kahneman-Tversky optimisation: desirable_weight sigmoid(-beta (a - z0)) for a desirable response,
    undesirable_weight sigmoid(beta (a - z0)) for an undesirable one.

    Source: arXiv 2402.01306, equation 8.
    Tokens: summed.
    Start: half the weight of the label.
    Elsewhere: TRL and EasyDeL have it as a trainer. TRL and HALOs shift responses within the micro-batch to make the
        mismatched pairs, HALOs averages z0 over its non-zero terms only, and their old `kto_pair` let gradient through
        z0. EasyDeL's DPO with `kto` is `cdpo`.

    z0 estimates KL(policy || reference) from mismatched responses, one per prompt (a response to another prompt, under
    this prompt). Which one is drawn once per record from the seed, so that a reference can be precomputed. The paper
    shifts the responses of the batch, so that a prompt meets a new one at every step: `rows.mismatched="step"`.

        z0 = stop_gradient(max(0, mean over the batch of (baseline_logp - baseline_reference_logp)))

    The mean runs over every prompt given that has a valid response, so the objective is coupled: give it the global
    batch. The push on a response is largest at a = z0 (beta / 4) and vanishes both ways. The paper advises
    desirable_weight n_desirable / (undesirable_weight n_undesirable) in [1, 3/2] (equation 9). The reduction over
    examples is the trainer's plain mean, as in the paper, not a mean of the two class means.

    momentum  above 0, the mean is a moving average that the train state carries, momentum * the one before + (1 -
              momentum) * the batch's, 0 at first: less noise of a small batch, and later by its length. No paper's.
    """
    r = singles(r, "reference_logp", "target", "baseline_logp", "baseline_reference_logp")
    mismatched = mismatched_mean(r, momentum=momentum)["mismatched_log_ratio"]
    z = beta * (log_ratio(r) - stop_gradient(jnp.maximum(0, mismatched)))
    return r.prompt_mean(by_label(r, desirable_weight * jax.nn.sigmoid(-z), undesirable_weight * jax.nn.sigmoid(z)))


@for_singles(TARGET, start=0.5, reads="labels")
def apo_zero_unpaired(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Unpaired APO-zero: sigmoid(-beta a) for a desirable response, sigmoid(beta a) for an undesirable one.

    Source: arXiv 2408.06266, equation 7 term by term.
    Tokens: summed.
    Start: 1/2.
    Elsewhere: TRL's KTO with `apo_zero_unpaired`.

    `kto` with z0 = 0, so no mismatched responses are scored and no prompt depends on another.
    """
    r = singles(r, "reference_logp", "target")
    z = beta * log_ratio(r)
    return r.prompt_mean(by_label(r, jax.nn.sigmoid(-z), jax.nn.sigmoid(z)))


def label_means(r: Responses, *, beta: float, momentum: float) -> dict[str, Float[Array, ""]]:
    """The mean beta a of each label in the batch, or their moving averages."""
    r = singles(r, "reference_logp", "target")
    reward, desirable = beta * log_ratio(r), r.target > 0.5
    kinds = {"desirable": desirable, "undesirable": ~desirable}
    return {name: moving_mean(r, name, reward, r.valid & kind, momentum) for name, kind in kinds.items()}


@for_singles(
    TARGET,
    start=LOG2,
    reads="labels",
    coupled=True,
    carries=Carried(from_zero("desirable", "undesirable"), label_means),
)
def bco(r: Responses, *, beta: Positive = 0.01, momentum: BelowOne = 0.0) -> Float[Array, "B"]:
    """Binary classifier optimisation: sp(-(beta a - d)) for a desirable response, sp(beta a - d) for an undesirable
    one, d the mean of the two labels' mean beta a.

    Source: arXiv 2404.04656; d is its reward shift.
    Tokens: summed.
    Start: log 2.
    Elsewhere: TRL and EasyDeL have it as a trainer. TRL's d is the running mean of all rewards pooled, which differs
        where one label is more frequent; EasyDeL lets gradient through d.

    d = stop_gradient((mean beta a of the desirable + mean beta a of the undesirable) / 2) over all responses of the
    batch, so the objective is coupled: give it the global batch. With one label in the batch, d is half that label's
    mean. The paper's density-ratio weights of undesirable responses are the records' `weight`.

    momentum  above 0, each mean is a moving average that the train state carries, as the paper keeps one of d: momentum
              * the one before + (1 - momentum) * the batch's, 0 at first, as it was where the batch lacks the label.
              No text that could be read says how long it is.
    """
    r = singles(r, "reference_logp", "target")
    shift = sum(label_means(r, beta=beta, momentum=momentum).values()) / 2
    z = beta * log_ratio(r) - stop_gradient(shift)
    return r.prompt_mean(by_label(r, logistic(z), logistic(-z)))


@for_singles(TARGET, start=LOG2, reads="labels")
def ulma_binary(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Pointwise DPO: sp(-beta a) for a desirable response, sp(beta a) for an undesirable one.

    Source: arXiv 2312.02554, pointwise DPO with binary labels and its Z(x) taken as 1, as in the authors' code.
    Tokens: summed; the authors' code feeds means per token.
    Start: log 2.
    Elsewhere: not in TRL or EasyDeL.

    `bco` without the shift. The authors add the means of the two classes, here every response weighs the same.
    """
    r = singles(r, "reference_logp", "target")
    z = beta * log_ratio(r)
    return r.prompt_mean(by_label(r, logistic(z), logistic(-z)))


@for_singles(TARGET, start=lambda r, **_: by_label(r, -r.reference_logp, LOG2), reads="labels")
def ulma(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Unified language model alignment (ULMA): -logp for a desirable response, sp(beta a) for an undesirable one.

    Source: arXiv 2312.02554, with every desirable response a demonstration (the authors' code, log-loss).
    Tokens: summed; the authors' code feeds means per token.
    Start: -logp or log 2 by label.
    Elsewhere: not in TRL or EasyDeL.

    Demonstrations are imitated as in SFT, undesirable responses are unlearned relative to the reference.
    """
    r = singles(r, "reference_logp", "target")
    return r.prompt_mean(by_label(r, -r.logp, logistic(-beta * log_ratio(r))))


@for_singles({"target", "kl"}, reads="labels", coupled=True)
def pmpo(r: Responses, *, alpha: Share = 0.5, beta: Positive = 0.5) -> Float[Array, "B"]:
    """PMPO: -alpha mean logp of the desirable + (1 - alpha) mean logp of the undesirable responses + beta mean
    KL(reference || policy).

    Source: arXiv 2410.04166, equation 10 (negated); the defaults are ours.
    Tokens: summed, the KL over the vocabulary at every response position too.
    Start: its first two terms; the KL is 0.
    Elsewhere: not in TRL or EasyDeL.

    The mean of a kind is over the responses of that kind to a prompt, and over the prompts of the batch that have one:
    where some have only one kind, as single labelled responses do, each kind weighs the same however frequent it is, so
    the objective is coupled: give it the global batch. alpha = 1 learns from desirable responses alone, alpha = 0 from
    undesirable ones; these have no lower bound without the KL.
    """
    r = singles(r, "target", "kl")
    desirable = r.target > 0.5
    accepted, rejected = (_mean_of_kind(r, kind) for kind in (desirable, ~desirable))
    return -alpha * accepted + (1 - alpha) * rejected + beta * r.prompt_mean(r.kl)


def _mean_of_kind(r: Responses, kind: Bool[Array, "B K"]) -> Float[Array, "B"]:
    """Per prompt the mean logp of one kind, times the prompts per prompt that has it: its mean over all is theirs."""
    own = dataclasses.replace(r, valid=r.valid & kind)
    prompts, having = (jnp.sum(jnp.any(valid, axis=-1)) for valid in (r.valid, own.valid))
    return own.prompt_mean(r.logp) * prompts / jnp.maximum(having, 1)


@for_singles(TARGET, start=lambda r, beta: by_label(r, 0.0, 2 * LOG2 / beta), reads="labels")
def npo(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Negative preference optimisation (NPO): 2 / beta sp(beta a) for an undesirable response, 0 for a desirable one.

    Source: arXiv 2404.05868, as in the code of its authors' successors (open-unlearning's compute_dpo_loss).
    Tokens: summed.
    Start: 2 log 2 / beta for an undesirable response.
    Elsewhere: not in TRL or EasyDeL.

    To unlearn: gradient ascent on logp that fades as a response falls below the reference, its limit as beta goes to 0.
    What is to be kept is a term of its own: npo + sft.
    """
    r = singles(r, "reference_logp", "target")
    return r.prompt_mean(by_label(r, 0.0, 2 / beta * logistic(-beta * log_ratio(r))))


@for_singles({"length", "target"}, reads="labels")
def simnpo(r: Responses, *, beta: Positive = 1.0, delta: NonNegative = 0.0) -> Float[Array, "B"]:
    """NPO without a reference (SimNPO): 2 / beta sp(beta (logp / n + delta)) for an undesirable response, 0 for a
    desirable one.

    Source: arXiv 2410.07163, as in open-unlearning's code, whose delta and defaults these are.
    Tokens: mean.
    Start: depends on the model.
    Elsewhere: not in TRL or EasyDeL.
    """
    r = singles(r, "length", "target")
    return r.prompt_mean(by_label(r, 0.0, 2 / beta * logistic(-beta * (per_token(r, r.logp) + delta))))
