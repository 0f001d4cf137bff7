"""Optimisers and learning-rate schedules: optax chains from one frozen config."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prefjax.options import check_ranges, option

# name -> the options that only it, or it and some others, take
_OWN_OPTIONS = {
    "adamw": {"b1", "b2", "epsilon", "weight_decay", "mu_dtype"},
    "adafactor": set(),
    "rmsprop": {"momentum"},
    "sgd": {"momentum"},
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its learning-rate schedule.

    Optimiser state is float32 whatever the parameters are, but for what mu_dtype says.
    """

    name: str = option("adamw", "the optimiser", choices=_OWN_OPTIONS)
    learning_rate: float = option(1e-6, "at its peak, after the warm-up", at_least=0)
    schedule: str = option("constant", "after the warm-up", choices=("constant", "linear", "cosine"))
    warmup_steps: int = option(0, "steps of a linear warm-up from 0, of which half the run is the most", at_least=0)
    warmup_ratio: float = option(
        0.0, "the same as a share of the run's steps, rounded up; 0: `warmup_steps` says", at_least=0, at_most=0.5
    )
    final_scale: float = option(
        0.0, "share of the peak that linear and cosine decay to at the last step", at_least=0, at_most=1
    )
    clip_norm: float = option(1.0, "global norm that gradients are clipped to; 0: not clipped", at_least=0)
    b1: float = option(0.9, "decay of adamw's first moment", at_least=0, below=1)
    b2: float = option(0.999, "decay of adamw's second moment", at_least=0, below=1)
    epsilon: float = option(1e-8, "of adamw", above=0)
    weight_decay: float = option(0.0, "of adamw; norms and biases are left alone", at_least=0)
    mu_dtype: str = option(
        "float32",
        "of adamw's first moment, which bfloat16 halves; the second one stays: with b2 = 0.999 its changes are below "
        "what bfloat16 resolves, so it would stand still",
        choices=("float32", "bfloat16"),
    )
    momentum: float = option(0.0, "of sgd and rmsprop; 0: none", at_least=0, below=1)

    def __post_init__(self):
        check_ranges(self, "optimizer")
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError(
                f"optimizer.warmup_steps={self.warmup_steps} and optimizer.warmup_ratio={self.warmup_ratio} both say "
                "how long the warm-up is: set one of them to 0"
            )


def warmup_of(config: OptimizerConfig, steps: int) -> tuple[int, int]:
    """Steps of warm-up in a run of so many steps, and how many the options ask for: half of the run is the most."""
    share = math.ceil(round(config.warmup_ratio * steps, 6))  # 0.07 * 100 is a little above 7
    asked = config.warmup_steps or share
    return min(asked, steps // 2), asked


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: warm-up from 0, then the schedule down to `final_scale` at `steps`.

    Raises:
      ValueError: a `final_scale` that nothing reads.
    """
    warmup_steps, _ = warmup_of(config, steps)
    peak, decay_steps = config.learning_rate, steps - warmup_steps
    if config.schedule == "constant":
        if config.final_scale:
            raise ValueError("optimizer.final_scale has no effect on schedule='constant': set it to 0, or take another")
        after = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, peak * config.final_scale, decay_steps)
    else:
        after = optax.cosine_decay_schedule(peak, decay_steps, config.final_scale)
    if not warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then the optimiser under its schedule.

    Raises:
      ValueError: an option is set that this optimiser does not take.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in set.union(*_OWN_OPTIONS.values()) - _OWN_OPTIONS[config.name]:
        if getattr(config, name) != defaults[name]:
            raise ValueError(f"optimizer {config.name} takes no {name}: leave it at {defaults[name]}")
    rate = make_schedule(config, steps)
    rule = {
        "adamw": lambda: optax.adamw(
            rate,
            config.b1,
            config.b2,
            config.epsilon,
            mu_dtype=None if config.mu_dtype == "float32" else config.mu_dtype,
            weight_decay=config.weight_decay,
            mask=_is_matrix,
        ),
        "adafactor": lambda: optax.adafactor(rate),
        "rmsprop": lambda: optax.rmsprop(rate, momentum=config.momentum or None),
        "sgd": lambda: optax.sgd(rate, momentum=config.momentum or None),
    }[config.name]()
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return _at_least_float32(optax.chain(*clip, rule, _told(rate)))


class LearningRate(NamedTuple):
    """What `_told` keeps: the next step, and the learning rate of the last one."""

    count: jax.Array
    learning_rate: jax.Array


def _told(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Leaves updates alone, and keeps the learning rate where `learning_rate` finds it."""

    def update(updates, state, params=None):
        rate = jnp.asarray(schedule(state.count), jnp.float32)
        return updates, LearningRate(optax.safe_increment(state.count), rate)

    return optax.GradientTransformation(
        lambda params: LearningRate(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)), update
    )


def learning_rate(opt_state: Any) -> jax.Array | None:
    """The learning rate of the last step, where an optimiser's state says it: those of `make_optimizer`, and any under
    `optax.inject_hyperparams`. None where it does not, or says several."""
    found = optax.tree.get_all_with_path(opt_state, "learning_rate")
    return found[0][1] if len(found) == 1 else None


def _at_least_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """optax keeps moments in the parameters' dtype; this keeps state and arithmetic wide for bfloat16 parameters."""
    widen = lambda tree: jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)
    return optax.GradientTransformation(
        lambda params: inner.init(widen(params)),
        lambda updates, state, params: inner.update(widen(updates), state, widen(params)),
    )


def _is_matrix(params):
    """Weight decay leaves norms and biases alone: everything but kernels and tables."""
    matrices = ("kernel", "embedding", "head", "lora_a", "lora_b")
    return {name: _is_matrix(child) if isinstance(child, dict) else name in matrices for name, child in params.items()}
