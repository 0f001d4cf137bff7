"""Random batches for every objective, and the whole zoo evaluated by one compiled program per K and precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from prefjax.losses import OBJECTIVES, Responses

PER_RESPONSE = ("logp", "reference_logp", "length", "target", "log_sum_p2", "kl", "features")
PER_PROMPT = tuple("value baseline_logp baseline_reference_logp auxiliary_logp margin target_probability".split())
PER_TOKEN = tuple(f"token_{name}" for name in "logp reference_logp kl weight segment draw".split())
FIELDS = PER_RESPONSE + PER_PROMPT + PER_TOKEN
SCORED = (
    "logp baseline_logp auxiliary_logp kl token_logp token_kl features".split()
)  # what the policy's parameters move
B, L = 6, 9
_outcomes = {}
# Values of options that are no numbers, or whose limits are special cases.
CHOICES = {
    "ipo": [dict(tau=0.5, normalize="length")],
    "gpo": [dict(link=link) for link in ("logistic", "hinge", "squared", "truncated_quadratic")],
    "reward_rpo": [dict(distance=distance) for distance in ("squared", "forward_kl")],
    "fdpo": [dict(alpha=0.0), dict(alpha=1.0)],
    "alphapo": [dict(alpha=0.0)],
    "sft": [dict(normalize="none")],
    "simnpo": [dict(delta=0.3)],
    "beta_dpo": [dict(per="pair"), dict(per="pair", momentum=0.0)],
    "bco": [dict(momentum=0.5)],
    "kto": [dict(momentum=0.5)],
    "bt": [dict(centering=0.1)],
    "bt_margin": [dict(centering=0.1)],
}
CASES = [
    (name, K)
    for name, requires in ((o.name, o.requires) for o in OBJECTIVES.values())
    for K in ({requires.min_responses: 0, 3: 0} if requires.group_size is None else (requires.group_size,))
]


def scored(name):
    """The field that says how good the responses are, whose gradient is checked against the paper's."""
    return "features" if OBJECTIVES[name].requires.reward_head else "logp"


def moved_fields(name):
    """The fields it reads that the trained parameters move."""
    requires = OBJECTIVES[name].requires
    return [field for field in SCORED if field == scored(name) or field in requires.inputs | requires.optional]


def variants(name):
    """Option sets worth checking: the defaults, all numbers halved, and every value of a choice."""
    options = OBJECTIVES[name].options
    halved = {option: default / 2 for option, default in options.items() if isinstance(default, float)}
    return [{}, halved, *CHOICES.get(name, [])]


def make_fields(K, seed=0, B=B, scale=30.0):
    """All floating-point fields of a plausible batch, as float64 NumPy arrays. All pairs but one are scored rightly."""
    rng = np.random.default_rng(seed)
    fields = {name: -rng.uniform(1, scale, (B, K)) for name in ("logp", "reference_logp")}
    fields |= {name: -rng.uniform(1, scale, B) for name in ("baseline_logp", "baseline_reference_logp")}
    fields["auxiliary_logp"] = -rng.uniform(1, scale, B)
    fields["length"] = rng.integers(1, 9, (B, K)).astype(float)
    fields["log_sum_p2"] = fields["logp"] - rng.uniform(-1, 1, (B, K)) * fields["length"]
    fields["kl"] = rng.uniform(0, 9, (B, K))
    fields |= {"value": rng.normal(size=B), "margin": rng.normal(size=B), "target_probability": rng.uniform(size=B)}
    fields["target"] = rng.uniform(0, 2, (B, K))
    tokens = (B, K, L)
    fields |= {name: -rng.uniform(0.1, scale / 9, tokens) for name in ("token_logp", "token_reference_logp")}
    fields["token_kl"] = rng.uniform(0, 1, tokens)
    fields["token_weight"] = rng.uniform(-0.5, 2, tokens)
    # Segments of one to three tokens, with some tokens outside all of them.
    numbers = np.cumsum(rng.random(tokens) < 0.6, axis=-1)
    fields["token_segment"] = np.where(rng.random(tokens) < 0.8, numbers, 0.0)
    fields["token_draw"] = rng.random(tokens)
    fields["features"] = rng.normal(size=(B, K, 4))
    if K == 2:
        fields["target"][:-1] = -np.sort(-fields["target"][:-1])
    return fields


def for_objective(name, fields):
    """The same fields with targets the objective can read, 1 and 0 where it reads labels, and features of its width."""
    if scored(name) == "features" and name != "gpm":
        fields = fields | {"features": fields["features"][..., :1]}
    if OBJECTIVES[name].requires.reads != "labels":
        return fields
    target = fields["target"]
    return fields | {"target": np.where(np.isfinite(target), target > 1, target)}


def at_reference(fields):
    same = {"logp": fields["reference_logp"], "baseline_logp": fields["baseline_reference_logp"]}
    same |= {"token_logp": fields["token_reference_logp"]}
    return fields | same | {name: np.zeros_like(fields[name]) for name in ("kl", "token_kl", "features")}


def to_responses(fields, valid=None, dtype=jnp.float32, *, name=None):
    """The fields as an objective of the zoo receives them in the first step, where it has a name."""
    arrays = {name: jnp.asarray(x, dtype) for name, x in fields.items()}
    return Responses(**arrays, valid=None if valid is None else jnp.asarray(valid), carried=carried(name))


def carried(name, **options):
    """What an objective of the zoo carries into the first step."""
    return (name and OBJECTIVES[name].with_options(options).initial_carried()) or None


def value_and_gradients(name, fields, valid, wrt, **options):
    """Per-prompt losses, and the gradient of their sum with respect to some fields; traceable."""

    def total(chosen):
        r = Responses(**(fields | chosen), valid=valid, carried=carried(name, **options))
        losses = OBJECTIVES[name].loss(r, **options)
        return losses.sum(), losses

    (_, losses), gradients = jax.value_and_grad(total, has_aux=True)({field: fields[field] for field in wrt})
    return losses, gradients


@functools.cache
def names(K):
    takes = lambda requires: requires.group_size == K or (requires.group_size is None and K >= requires.min_responses)
    return [name for name, objective in OBJECTIVES.items() if takes(objective.requires)]


@functools.cache
def _program(K):
    """{name: fields} and valid -> {name: (losses, gradients of all fields)} with default options."""

    def zoo(batches, valid):
        return {name: value_and_gradients(name, batches[name], valid, FIELDS) for name in names(K)}

    return jax.jit(zoo)


def _batches(K, fields):
    """{name: float32 fields} for all objectives for K."""
    return {name: {f: np.float32(x) for f, x in for_objective(name, fields).items()} for name in names(K)}


def outcomes(K, fields, valid=None):
    """All objectives for K on one batch: {name: (losses, gradients of all fields)}, in float32; once for each batch,
    which the tests of every objective ask for in turn."""
    valid = np.ones(fields["logp"].shape, bool) if valid is None else valid
    batch = (K, valid.tobytes(), *((name, x.tobytes()) for name, x in fields.items()))
    if batch not in _outcomes:
        _outcomes[batch] = jax.tree.map(np.asarray, _program(K)(_batches(K, fields), valid))
    return _outcomes[batch]


@functools.cache
def mapped_losses(K, seeds):
    """{name: losses [seeds, B]} by one vmap over batches, in float32."""
    batches = [_batches(K, make_fields(K, seed)) for seed in seeds]
    loss = lambda name, fields: OBJECTIVES[name].loss(Responses(**fields, carried=carried(name)))
    zoo = lambda batches: {name: loss(name, fields) for name, fields in batches.items()}
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(zoo))(jax.tree.map(lambda *x: np.stack(x), *batches)))


@functools.cache
def exact_outcomes(K, seed=1):
    """In float64, all slots valid, all variants of all objectives for K: {name: [(losses, gradients of SCORED)]}."""
    with jax.enable_x64(True):

        def zoo(batches):
            valid = jnp.ones((B, K), bool)
            return {
                name: [value_and_gradients(name, batches[name], valid, SCORED, **o) for o in variants(name)]
                for name in names(K)
            }

        return jax.tree.map(np.asarray, jax.jit(zoo)({n: for_objective(n, make_fields(K, seed)) for n in names(K)}))


@functools.cache
def starts(K, seed=2):
    """Where policy == reference: (valid, {name: [(loss, closed form)]}) over the variants of all that have one."""
    valid = np.random.default_rng(seed).random((B, K)) < 0.7
    valid[0], valid[1] = True, False

    def zoo(batches):
        pairs = {}
        for name in names(K):
            objective = OBJECTIVES[name]
            if objective.start is None:
                continue
            r = Responses(**batches[name], valid=jnp.asarray(valid))
            seen = [(r.replace(carried=carried(name, **o)), o) for o in variants(name)]
            pairs[name] = [(objective.loss(own, **o), objective.at_init(own, **o)) for own, o in seen]
        return pairs

    return valid, jax.tree.map(np.asarray, jax.jit(zoo)(_batches(K, at_reference(make_fields(K)))))
