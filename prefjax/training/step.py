"""The train step: pure, jitted with explicit shardings, state donated. It never knows how rows were laid out."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from prefjax.data.rows import Rows
from prefjax.models import decoder, lora, reward_head
from prefjax.training import mesh as mesh_lib
from prefjax.training import metrics as metrics_lib
from prefjax.training.scoring import (
    Reference,
    Scores,
    Setup,
    assemble,
    counted_prompts,
    score,
    score_reference,
    whole_policy,
)


class TrainState(NamedTuple):
    """All that training changes. params: {"policy": ..., and "value": ... with a value network of its own}.

    With LoRA "policy" holds the adapters only (and a value or reward head on the trunk). A reward model is a "policy"
    with a reward head in place of the vocabulary's.
    """

    step: Any  # int32 scalar
    params: Any
    optimizer: Any
    reference: Any = None  # parameters of a reference that follows the policy; None where it stays as it is


def init_params(setup: Setup, policy: Any, *, seed: int = 0) -> Any:
    """Trained parameters from a policy's: adds the reward head of a reward model, the value head, or the value network
    as a copy of the policy with one.

    DRO starts the value network from the same initial model (arXiv 2405.19107, section 4); the head starts at 0.

    Args:
      seed: of the adapters, which with LoRA take the policy's place, and of the reward head.
    """
    key = jax.random.key(seed)
    trained = lora.init(setup.lora, policy, key) if setup.lora.rank else policy
    if setup.objective.trains_reward_model:
        head = reward_head.init(setup.reward_head, setup.model, jax.random.fold_in(key, 1))
        return {"policy": {name: leaf for name, leaf in trained.items() if name != "head"} | head}
    if setup.value_network == "none":
        return {"policy": trained}
    head = decoder.init_value_head(setup.model)
    if setup.value_network == "trunk":
        return {"policy": trained | head}
    return {"policy": trained, "value": jax.tree.map(jnp.copy, policy) | head}


def state_shardings(
    mesh: Mesh, optimizer: optax.GradientTransformation, params: Any, reference: Any = None
) -> TrainState:
    """Shardings of a TrainState for parameters of these shapes."""
    return TrainState(
        step=NamedSharding(mesh, P()),
        params=mesh_lib.parameter_shardings(mesh, params),
        optimizer=mesh_lib.optimizer_shardings(mesh, optimizer, params),
        reference=None if reference is None else mesh_lib.parameter_shardings(mesh, reference),
    )


def init_state(mesh: Mesh, optimizer: optax.GradientTransformation, params: Any, reference: Any = None) -> TrainState:
    """Step 0 with fresh optimiser state, placed on the mesh.

    Args:
      reference: where it follows the policy, the one to start with; it is copied.
    """
    shardings = state_shardings(mesh, optimizer, params, reference)
    params = jax.device_put(params, shardings.params)
    moments = jax.jit(optimizer.init, out_shardings=shardings.optimizer)(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), shardings.step)
    own = None if reference is None else jax.tree.map(jnp.copy, jax.device_put(reference, shardings.reference))
    return TrainState(step=step, params=params, optimizer=moments, reference=own)


def batch_loss(setup: Setup, scores: Scores, reference: Reference, rows: Rows) -> tuple[Float[Array, ""], Any]:
    """Sum of weight * loss over counted prompts (the caller divides by their global number), and its ingredients."""
    responses = assemble(setup, scores, reference, rows)
    setup.objective.check_inputs(responses)
    losses = setup.objective.loss(responses, **setup.options)
    counted = counted_prompts(setup, rows)
    return jnp.where(counted, rows.weight.reshape(-1) * losses, 0).sum(), (responses, losses, counted)


def loss_and_gradients(setup: Setup, params: Any, reference_params: Any, rows: Rows) -> tuple[Any, metrics_lib.Ratios]:
    """Gradients of (sum of weight * loss) / (counted prompts) over the global batch, and its metrics.

    The result does not depend on how prompts fall into rows, micro-batches or devices. A coupled objective under
    accumulation is differentiated in two passes: score every micro-batch, differentiate the loss of the whole batch
    with respect to the scores, then pull that back through each micro-batch. One forward pass more, and exact.

    Args:
      reference_params: None without a live reference. With LoRA always there: the policy's base, and the reference.
    """
    total = jnp.maximum(counted_prompts(setup, rows).sum(), 1)
    gradients_of_loss = functools.partial(_loss_gradients, setup, reference_params=reference_params, total=total)
    if setup.accumulation == 1:
        gradients, (scores, reference) = gradients_of_loss(params, rows=rows)
        return gradients, _metrics(setup, scores, reference, rows)

    micro = _split(setup, rows)
    wide = lambda dtype: jnp.promote_types(dtype, jnp.float32)  # micro-batches of bfloat16 parameters add up in float32
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, wide(x.dtype)), params)
    add = functools.partial(jax.tree.map, jnp.add)
    if not setup.objective.coupled:

        def accumulate(summed, part):
            gradients, parts = gradients_of_loss(params, rows=part)
            return add(summed, gradients), parts

        gradients, (scores, reference) = jax.lax.scan(accumulate, zeros, micro)
        return gradients, _metrics(setup, *_merge((scores, reference, micro)))

    scores, reference = jax.lax.map(functools.partial(_forward, setup, params, reference_params), micro)

    def global_loss(scores):
        return batch_loss(setup, *_merge((scores, reference, micro)))[0] / total

    pulled = jax.grad(global_loss)(scores)

    def pull_back(summed, part):
        rows, cotangent = part
        frozen = score_reference(setup, reference_params, rows)  # unused, and so dropped, unless the scores read it
        whole = lambda params: whole_policy(setup, params, reference_params)
        _, vjp = jax.vjp(lambda params: score(setup, whole(params), rows, frozen), params)
        return add(summed, vjp(cotangent)[0]), None

    gradients, _ = jax.lax.scan(pull_back, zeros, (micro, pulled))
    return gradients, _metrics(setup, *_merge((scores, reference, micro)))


def make_train_step(
    setup: Setup, optimizer: optax.GradientTransformation, schedule: optax.Schedule, state: TrainState
) -> Callable[[TrainState, Any, Rows], tuple[TrainState, metrics_lib.Ratios]]:
    """(state, reference parameters or None, rows) -> (state, metrics). The state is donated: use the returned one.

    Where the reference follows the policy it is the state's, and the one given is not read.
    """
    shardings = state_shardings(setup.mesh, optimizer, state.params, state.reference)

    def train_step(state: TrainState, reference_params: Any, rows: Rows):
        frozen = state.reference if setup.update_every else reference_params
        gradients, metrics = loss_and_gradients(setup, state.params, frozen, rows)
        updates, moments = optimizer.update(gradients, state.optimizer, state.params)
        one = jnp.ones((), jnp.int32)
        metrics["grad_norm"] = (optax.global_norm(gradients), one)
        metrics["learning_rate"] = (jnp.asarray(schedule(state.step), jnp.float32), one)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        reference = _followed(setup, state.reference, params["policy"], step)
        return TrainState(step=step, params=params, optimizer=moments, reference=reference), metrics

    replicated = NamedSharding(setup.mesh, P())
    return jax.jit(
        train_step,
        in_shardings=(shardings, _reference_shardings(setup), mesh_lib.row_sharding(setup.mesh)),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
    )


def make_eval_step(setup: Setup, params: Any) -> Callable[[Any, Any, Rows], metrics_lib.Ratios]:
    """(parameters, reference parameters or None, rows) -> metrics, and two numbers for the start check.

    start_gap is max |log pi - log ref| over valid responses; expected_loss the objective's closed form at pi = ref.
    """

    def eval_step(params: Any, reference_params: Any, rows: Rows):
        scores, reference = _forward(setup, params, reference_params, rows)
        metrics = _metrics(setup, scores, reference, rows)
        _, (responses, _, counted) = batch_loss(setup, scores, reference, rows)
        if setup.objective.at_init is not None:
            expected = setup.objective.at_init(responses, **setup.options)
            weighted = jnp.where(counted, rows.weight.reshape(-1) * expected, 0)
            metrics["expected_loss"] = (weighted.sum(), counted.sum())
        if reference.logp is not None:
            gap = jnp.where(responses.valid, jnp.abs(responses.logp - responses.reference_logp), 0)
            metrics["start_gap"] = (gap.max(), jnp.ones((), jnp.int32))
        return metrics

    trained = mesh_lib.parameter_shardings(setup.mesh, params)
    return jax.jit(
        eval_step,
        in_shardings=(trained, _reference_shardings(setup), mesh_lib.row_sharding(setup.mesh)),
        out_shardings=NamedSharding(setup.mesh, P()),
    )


def _reference_shardings(setup: Setup):
    if setup.reference != "live" and not setup.lora.rank:
        return None
    return mesh_lib.parameter_shardings(setup.mesh, frozen_shapes(setup))


def frozen_shapes(setup: Setup) -> Any:
    """Shapes of the parameters a step gets besides the trained ones: a live reference, or the adapters' base."""
    return jax.eval_shape(functools.partial(lora.freeze, setup.lora), decoder.shapes(setup.model))


def _followed(setup: Setup, reference: Any, policy: Any, step: Array) -> Any:
    """The state's reference after a step, as TR-DPO moves it."""
    if not setup.update_every:
        return reference
    policy = {name: policy[name] for name in reference}  # a value head on the trunk is none of the reference's
    moved = optax.incremental_update(policy, reference, setup.update_rate)
    return optax.periodic_update(moved, reference, step, setup.update_every)


def _loss_gradients(setup, params, *, rows, reference_params, total):
    reference = score_reference(setup, reference_params, rows)

    def loss(params):
        scores = score(setup, whole_policy(setup, params, reference_params), rows, reference)
        return batch_loss(setup, scores, reference, rows)[0] / total, scores

    gradients, scores = jax.grad(loss, has_aux=True)(params)
    return gradients, (scores, reference._replace(head=None))


def _forward(setup, params, reference_params, rows):
    reference = score_reference(setup, reference_params, rows)
    scores = score(setup, whole_policy(setup, params, reference_params), rows, reference)
    return scores, reference._replace(head=None)


def _metrics(setup, scores, reference, rows):
    _, (responses, losses, counted) = batch_loss(setup, scores, reference, rows)
    metrics = metrics_lib.response_metrics(responses, losses, counted, rows.weight.reshape(-1))
    return metrics | metrics_lib.row_metrics(rows)


def _split(setup: Setup, rows: Rows) -> Rows:
    """[R, ...] -> [A, R / A, ...]: every device keeps its own rows, so nothing moves between devices."""
    shards, parts = mesh_lib.row_shards(setup.mesh) if setup.mesh is not None else 1, setup.accumulation
    if rows.valid.shape[0] % (shards * parts):
        raise ValueError(
            f"{rows.valid.shape[0]} rows of groups do not divide into accumulation={parts} micro-batches on "
            f"{shards} data shards: make the rows per step a multiple of {shards * parts}"
        )

    def split(x):
        x = x.reshape(shards, parts, -1, *x.shape[1:]).swapaxes(0, 1).reshape(parts, -1, *x.shape[1:])
        if setup.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(
            x, NamedSharding(setup.mesh, P(None, *mesh_lib.row_sharding(setup.mesh).spec))
        )

    return jax.tree.map(split, rows)


def _merge(parts):
    """[A, R / A, ...] -> [R, ...], in micro-batch order (prompts, references and scores alike)."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)
