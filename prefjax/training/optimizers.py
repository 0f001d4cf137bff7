"""Optimisers and learning-rate schedules: optax chains from one frozen config."""

import dataclasses

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """name: adamw | adafactor | rmsprop | sgd.  schedule: constant | linear | cosine, after a linear warm-up.

    `final_scale` is the share of the peak learning rate that linear and cosine decay to at the last step.
    b1, b2, epsilon, weight_decay and mu_dtype belong to adamw; momentum to sgd and rmsprop. Optimiser state is float32
    whatever the parameters are; mu_dtype="bfloat16" halves the first moment. The second one stays: with b2 = 0.999 its
    changes are below what bfloat16 resolves, so it would stand still.
    """

    name: str = "adamw"
    learning_rate: float = 1e-6
    schedule: str = "constant"
    warmup_steps: int = 0
    final_scale: float = 0.0
    clip_norm: float = 1.0  # global gradient norm; 0 turns clipping off
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    mu_dtype: str = "float32"
    momentum: float = 0.0

    def __post_init__(self):
        if self.mu_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"optimizer.mu_dtype={self.mu_dtype!r}: choose float32 or bfloat16")


_OWN_OPTIONS = {
    "adamw": {"b1", "b2", "epsilon", "weight_decay", "mu_dtype"},
    "adafactor": set(),
    "rmsprop": {"momentum"},
    "sgd": {"momentum"},
}


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: warm-up from 0, then the schedule down to `final_scale` at `steps`.

    Raises:
      ValueError: unknown schedule, warm-up as long as the run, or a `final_scale` that nothing reads.
    """
    peak, decay_steps = config.learning_rate, steps - config.warmup_steps
    if decay_steps <= 0:
        raise ValueError(f"warmup_steps={config.warmup_steps} leaves no step of {steps}: lower it or train longer")
    if config.schedule == "constant":
        if config.final_scale:
            raise ValueError("final_scale has no effect on schedule='constant': set it to 0 or pick linear or cosine")
        after = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, peak * config.final_scale, decay_steps)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, decay_steps, config.final_scale)
    else:
        raise ValueError(f"schedule={config.schedule!r}: choose constant, linear or cosine")
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then the optimiser under its schedule.

    Raises:
      ValueError: unknown name, or an option set that this optimiser does not take.
    """
    if config.name not in _OWN_OPTIONS:
        raise ValueError(f"optimizer name={config.name!r}: choose one of {tuple(_OWN_OPTIONS)}")
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for option in set.union(*_OWN_OPTIONS.values()) - _OWN_OPTIONS[config.name]:
        if getattr(config, option) != defaults[option]:
            raise ValueError(f"optimizer {config.name} takes no {option}: leave it at {defaults[option]}")
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
    return _at_least_float32(optax.chain(*clip, rule))


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
