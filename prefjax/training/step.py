"""The train step: pure, jitted with explicit shardings, state donated. It never knows how rows were laid out."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from prefjax.models import decoder, lora, reward_head
from prefjax.rows.arrays import Rows
from prefjax.training import mesh as mesh_lib
from prefjax.training.metrics import Metrics, Ratios, carried_metrics, response_metrics, row_metrics, term_metrics
from prefjax.training.optimizers import learning_rate
from prefjax.training.parameters import Policy
from prefjax.training.processes import one_at_a_time
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


@flax.struct.dataclass
class TrainState:
    """All that training changes, and what it leaves alone.

    params     {"policy": ..., and "value": ... with a value network of its own}. With LoRA "policy" holds the adapters
               only (and a value or reward head on the trunk). A reward model is a "policy" with a reward head in place
               of the vocabulary's.
    skipped    int32 scalar: updates left out, where the setup skips those that are not finite
    opt_state  of the optimiser `tx`
    reference  parameters of a reference that follows the policy; None where it stays as it is
    carried    numbers that the objective carries from step to step; None where it carries none
    frozen     the reference that training started with, where one is live, or the adapters' base; else None
    """

    step: Any  # int32 scalar
    params: Any
    opt_state: Any
    reference: Any = None
    frozen: Any = None
    skipped: Any = None
    carried: Any = None
    tx: optax.GradientTransformation | None = flax.struct.field(pytree_node=False, default=None)

    def changing(self) -> "TrainState":
        """The state without what stays as it is: what a compiled step takes and returns."""
        return self.replace(frozen=None, tx=None)

    def saved(self) -> dict[str, Any]:
        """The parts that a checkpoint holds: those that training changes, where this run has them."""
        names = ("step", "params", "opt_state", "reference", "skipped", "carried")
        return {name: part for name in names if (part := getattr(self, name)) is not None}


def init_params(setup: Setup, policy: Any, *, seed: int = 0) -> Any:
    """Trained parameters from a policy's: adds the reward head of a reward model, the value head, or the value network
    as a copy of the policy with one.

    DRO starts the value network from the same initial model (arXiv 2405.19107, section 4); the head starts at 0.

    Args:
      seed: of the adapters, which with LoRA take the policy's place, and of the reward head.
    """
    key = jax.random.key(seed)
    trained = lora.init(setup.lora, policy, key) if setup.lora.rank else policy
    if setup.objective.requires.reward_head:
        head = reward_head.init(setup.reward_head, setup.model, jax.random.fold_in(key, 1))
        return {"policy": {name: leaf for name, leaf in trained.items() if name != "head"} | head}
    if setup.value_network == "none":
        return {"policy": trained}
    head = decoder.init_value_head(setup.model)
    if setup.value_network == "trunk":
        return {"policy": trained | head}
    return {"policy": trained, "value": jax.tree.map(jnp.copy, policy) | head}


def state_shardings(setup: Setup, state: TrainState) -> TrainState:
    """Shardings of what changes of a state of these shapes."""
    place = lambda tree: None if tree is None else mesh_lib.parameter_shardings(setup.mesh, tree)
    return TrainState(
        step=NamedSharding(setup.mesh, P()),
        params=place(state.params),
        opt_state=mesh_lib.optimizer_shardings(setup.mesh, state.tx, state.params),
        reference=place(state.reference),
        skipped=NamedSharding(setup.mesh, P()),
        carried=place(initial_carried(setup)),
    )


def initial_carried(setup: Setup) -> Any:
    """What the objective carries into the first step, float32 numbers; None where it carries nothing."""
    return jax.tree.map(np.float32, setup.objective.initial_carried()) or None


def init_state(
    setup: Setup,
    policy: Policy | Any,
    tx: optax.GradientTransformation,
    *,
    reference: Policy | Any = None,
    seed: int | None = None,
) -> TrainState:
    """Step 0 with fresh optimiser state, placed on the mesh. What is given is copied, and stays usable.

    Args:
      policy: a policy that was opened, or the parameters of one: where training starts.
      tx: any optax transformation.
      reference: what a live reference is; None: the policy. With LoRA it is the adapters' base, always.
      seed: of adapters and reward head; None: the setup's.
    """
    policy, reference = (given.params if isinstance(given, Policy) else given for given in (policy, reference))
    policy = lora.freeze(setup.lora, policy)
    policy = jax.device_put(policy, mesh_lib.parameter_shardings(setup.mesh, policy))
    frozen = None
    if setup.lora.rank:
        frozen = policy
    elif setup.reference == "live":
        frozen = policy if reference is None else reference
        frozen = jax.device_put(frozen, mesh_lib.parameter_shardings(setup.mesh, frozen))
    copy = functools.partial(jax.tree.map, jnp.copy)
    params = copy(init_params(setup, policy, seed=setup.seed if seed is None else seed))
    return place_state(setup, params, tx, frozen=frozen, follows=copy(frozen) if setup.update_every else None)


def place_state(
    setup: Setup, params: Any, tx: optax.GradientTransformation, *, frozen: Any = None, follows: Any = None
) -> TrainState:
    """Step 0 of trained parameters as they are, with fresh optimiser state. They belong to the state from here on.

    Args:
      frozen: see `TrainState`; on the mesh already.
      follows: the reference that follows the policy, as it starts.
    """
    shardings = state_shardings(setup, TrainState(None, params, None, follows, tx=tx))
    params = jax.device_put(params, shardings.params)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
    step, skipped = (jax.device_put(jnp.zeros((), jnp.int32), shardings.step) for _ in range(2))
    follows = None if follows is None else jax.device_put(follows, shardings.reference)
    carried = jax.device_put(initial_carried(setup), shardings.carried)
    return TrainState(step, params, opt_state, follows, frozen, skipped, carried, tx)


def batch_loss(
    setup: Setup, scores: Scores, reference: Reference, rows: Rows, carried: Any = None
) -> tuple[Float[Array, ""], Any]:
    """Sum of weight * loss over counted prompts (the caller divides by their global number), and its ingredients.

    Args:
      carried: of the state, for an objective that carries numbers from step to step.
    """
    responses = assemble(setup, scores, reference, rows).replace(carried=carried)
    setup.objective.check_inputs(responses)
    losses = setup.objective.loss(responses)
    counted = counted_prompts(setup, rows)
    return jnp.where(counted, rows.weight.reshape(-1) * losses, 0).sum(), (responses, losses, counted)


def loss_and_gradients(
    setup: Setup, params: Any, reference_params: Any, rows: Rows, carried: Any = None
) -> tuple[Any, Ratios]:
    """Gradients of (sum of weight * loss) / (counted prompts) over the global batch, and its metrics.

    Arguments as of `gradients_and_batch`.
    """
    gradients, batch = gradients_and_batch(setup, params, reference_params, rows, carried)
    return gradients, _metrics(setup, *batch, carried)


def gradients_and_batch(
    setup: Setup, params: Any, reference_params: Any, rows: Rows, carried: Any = None
) -> tuple[Any, tuple[Scores, Reference, Rows]]:
    """Gradients of (sum of weight * loss) / (counted prompts) over the global batch, and the batch as it was scored.

    The result does not depend on how prompts fall into rows, micro-batches or devices. A coupled objective under
    accumulation is differentiated in two passes: score every micro-batch, differentiate the loss of the whole batch
    with respect to the scores, then pull that back through each micro-batch. One forward pass more, and exact.

    Args:
      reference_params: None without a live reference. With LoRA always there: the policy's base, and the reference.
      carried: what the objective carries into the step; None for one without state.
    """
    total = jnp.maximum(counted_prompts(setup, rows).sum(), 1)
    gradients_of_loss = functools.partial(
        _loss_gradients, setup, reference_params=reference_params, total=total, carried=carried
    )
    if setup.accumulation == 1:
        gradients, (scores, reference) = gradients_of_loss(params, rows=rows)
        return gradients, (scores, reference, rows)

    micro = mesh_lib.split_rows(setup.mesh, rows, setup.accumulation)
    wide = lambda dtype: jnp.promote_types(dtype, jnp.float32)  # micro-batches of bfloat16 parameters add up in float32
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, wide(x.dtype)), params)
    add = functools.partial(jax.tree.map, jnp.add)
    if not setup.objective.coupled:

        def accumulate(summed, part):
            gradients, parts = gradients_of_loss(params, rows=part)
            return add(summed, gradients), parts

        gradients, (scores, reference) = jax.lax.scan(accumulate, zeros, micro)
        return gradients, mesh_lib.merge_rows((scores, reference, micro))

    scores, reference = jax.lax.map(functools.partial(_forward, setup, params, reference_params), micro)

    def global_loss(scores):
        return batch_loss(setup, *mesh_lib.merge_rows((scores, reference, micro)), carried)[0] / total

    pulled = jax.grad(global_loss)(scores)

    def pull_back(summed, part):
        rows, cotangent = part
        frozen = score_reference(setup, reference_params, rows)  # unused, and so dropped, unless the scores read it
        whole = lambda params: whole_policy(setup, params, reference_params)
        _, vjp = jax.vjp(lambda params: score(setup, whole(params), rows, frozen), params)
        return add(summed, vjp(cotangent)[0]), None

    gradients, _ = jax.lax.scan(pull_back, zeros, (micro, pulled))
    return gradients, mesh_lib.merge_rows((scores, reference, micro))


def jit_train_step(setup: Setup, state: TrainState) -> jax.stages.Wrapped:
    """(what changes of a state, what is frozen, rows) -> (what changes, metrics), for states of these shapes.

    What changes is donated, what is frozen is not: it may be the caller's own.
    """
    shardings, tx = state_shardings(setup, state), state.tx

    def train_step(state: TrainState, frozen: Any, rows: Rows) -> tuple[TrainState, Metrics]:
        reference_params = state.reference if setup.update_every else frozen
        gradients, batch = gradients_and_batch(setup, state.params, reference_params, rows, state.carried)
        metrics, carried = _metrics(setup, *batch, state.carried), _carried_on(setup, *batch, state.carried)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        one = jnp.ones((), jnp.int32)
        metrics |= carried_metrics(carried)
        metrics["grad_norm"] = (optax.global_norm(gradients), one)
        rate = learning_rate(opt_state)
        if rate is not None:
            metrics["learning_rate"] = (jnp.asarray(rate, jnp.float32), one)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        reference = _followed(setup, state.reference, params["policy"], step)
        new = state.replace(step=step, params=params, opt_state=opt_state, reference=reference, carried=carried)
        if setup.skip_non_finite:
            new, metrics = _unless_finite(state, new, metrics)
        return new, Metrics(metrics)

    return jax.jit(
        train_step,
        in_shardings=(shardings, _frozen_shardings(setup, state.frozen), mesh_lib.row_sharding(setup.mesh)),
        out_shardings=(shardings, NamedSharding(setup.mesh, P())),
        donate_argnums=0,
    )


class TrainStep:
    """(state, rows) -> (state, metrics). The state given is donated: go on with the one returned.

    Compiled at the first call, and again for rows of another shape. Metrics are fetched from the devices when they are
    read, so that a loop that does not read them runs ahead.

    program  what is compiled; None before the first call
    """

    def __init__(self, setup: Setup):
        self._setup = setup
        self.program: jax.stages.Wrapped | None = None

    def __call__(self, state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        if self.program is None:
            self.program = jit_train_step(self._setup, state)
        changed, metrics = one_at_a_time(self.program(state.changing(), state.frozen, rows))
        return changed.replace(frozen=state.frozen, tx=state.tx), metrics


def make_train_step(setup: Setup) -> TrainStep:
    """The train step of a setup, for any optimiser and any rows."""
    return TrainStep(setup)


def make_eval_step(setup: Setup) -> Callable[..., Metrics]:
    """(parameters, what is frozen or None, rows, what the objective carries) -> metrics, and two for the start check.

    start_gap is max |log pi - log ref| over valid responses; expected_loss the objective's closed form at pi = ref.
    Nothing is carried on from it.
    """

    def eval_step(params: Any, frozen: Any, rows: Rows, carried: Any) -> Metrics:
        scores, reference = _forward(setup, params, frozen, rows)
        metrics = _metrics(setup, scores, reference, rows, carried)
        _, (responses, _, counted) = batch_loss(setup, scores, reference, rows, carried)
        if setup.objective.start is not None:
            expected = setup.objective.at_init(responses)
            weighted = jnp.where(counted, rows.weight.reshape(-1) * expected, 0)
            metrics["expected_loss"] = (weighted.sum(), counted.sum())
        if reference.logp is not None:
            gap = jnp.where(responses.valid, jnp.abs(responses.logp - responses.reference_logp), 0)
            metrics["start_gap"] = (gap.max(), jnp.ones((), jnp.int32))
        return Metrics(metrics)

    compiled: list[jax.stages.Wrapped] = []

    def step(params: Any, frozen: Any, rows: Rows, carried: Any = None) -> Metrics:
        if not compiled:
            trained = mesh_lib.parameter_shardings(setup.mesh, params)
            rows_at = mesh_lib.row_sharding(setup.mesh)
            compiled.append(
                jax.jit(
                    eval_step,
                    in_shardings=(trained, _frozen_shardings(setup, frozen), rows_at, NamedSharding(setup.mesh, P())),
                    out_shardings=NamedSharding(setup.mesh, P()),
                )
            )
        return one_at_a_time(compiled[0](params, frozen, rows, carried))

    return step


def _frozen_shardings(setup: Setup, frozen: Any) -> Any:
    return None if frozen is None else mesh_lib.parameter_shardings(setup.mesh, frozen)


def _unless_finite(old: TrainState, new: TrainState, metrics: Ratios) -> tuple[TrainState, Ratios]:
    """The new state and its metrics; where loss or gradient is not finite, the old state one step on and no metrics."""
    finite = jnp.isfinite(metrics["loss"][0]) & jnp.isfinite(metrics["grad_norm"][0])
    kept = old.replace(step=new.step, skipped=old.skipped + 1)
    choose = functools.partial(jnp.where, finite)
    nothing = jax.tree.map(jnp.zeros_like, metrics)
    return jax.tree.map(choose, new, kept), jax.tree.map(choose, metrics, nothing)


def _followed(setup: Setup, reference: Any, policy: Any, step: Array) -> Any:
    """The state's reference after a step, as TR-DPO moves it."""
    if not setup.update_every:
        return reference
    policy = {name: policy[name] for name in reference}  # a value head on the trunk is none of the reference's
    moved = optax.incremental_update(policy, reference, setup.update_rate)
    return optax.periodic_update(moved, reference, step, setup.update_every)


def _loss_gradients(setup, params, *, rows, reference_params, total, carried):
    reference = score_reference(setup, reference_params, rows)

    def loss(params):
        scores = score(setup, whole_policy(setup, params, reference_params), rows, reference)
        return batch_loss(setup, scores, reference, rows, carried)[0] / total, scores

    gradients, scores = jax.grad(loss, has_aux=True)(params)
    return gradients, (scores, reference._replace(head=None))


def _forward(setup, params, reference_params, rows):
    reference = score_reference(setup, reference_params, rows)
    scores = score(setup, whole_policy(setup, params, reference_params), rows, reference)
    return scores, reference._replace(head=None)


def _carried_on(setup, scores, reference, rows, carried):
    """What the objective carries on from a global batch."""
    if carried is None:
        return None
    updated = setup.objective.update_carried(assemble(setup, scores, reference, rows).replace(carried=carried))
    return jax.tree.map(lambda new, old: new.astype(old.dtype), updated, carried)


def _metrics(setup, scores, reference, rows, carried):
    _, (responses, losses, counted) = batch_loss(setup, scores, reference, rows, carried)
    weight = rows.weight.reshape(-1)
    metrics = response_metrics(responses, losses, counted, weight)
    parts = setup.objective.parts(responses)
    return metrics | term_metrics(parts, counted, weight) | row_metrics(rows)
