"""The compiled step: what it never holds, that it compiles once, where its state lies, and its start value."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prefjax.losses import OBJECTIVES, Responses, objective
from prefjax.models import ModelConfig, init
from prefjax.training import loop
from prefjax.training.feed import to_devices
from prefjax.training.mesh import MeshConfig, make_mesh, optimizer_shardings, parameter_shardings
from prefjax.training.metrics import Metrics, response_metrics
from prefjax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule, warmup_of
from prefjax.training.scoring import Reference, Scores, assemble
from prefjax.training.step import init_state, jit_train_step, make_eval_step, make_train_step
from tests.training.examples import LONGEST, MODEL, REPRESENTATIVES, branches_for, rows_for, setup_for, tiered, trees

FLOAT32 = dataclasses.replace(MODEL, dtype="float32", param_dtype="float32")
# No two sizes are equal, so that a shape in the lowered text says which array it is.
ROWS, LENGTH, HEADS, VOCABULARY = 8, 640, 4, 31
# Those whose loss at policy == reference is known.
STARTING = [name for name in REPRESENTATIVES if objective(name).start is not None]


def ready(name, optimizer=None, **changes):
    """(setup, train step, state) on all devices."""
    changes.setdefault("mesh", make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    setup = setup_for(name, model=changes.pop("model", FLOAT32), **changes)
    optimizer = optimizer or make_optimizer(OptimizerConfig(learning_rate=1e-3), 10)
    return setup, make_train_step(setup), init_state(setup, init(setup.model, jax.random.key(0)), optimizer)


def lowered(setup, state, rows):
    """The text of the step that training compiles."""
    return jit_train_step(setup, state).lower(state.changing(), state.frozen, rows).as_text()


def shapes(text):
    """All array shapes in lowered StableHLO, as tuples."""
    return {tuple(map(int, found.split("x")[:-1])) for found in re.findall(r"tensor<((?:\d+x)+)[a-z]", text + "x")} | {
        tuple(map(int, found.rstrip("x").split("x"))) for found in re.findall(r"tensor<((?:\d+x)+)[a-z]", text)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", tiered(["dpo", "kto", "dro"], "dpo"))
@pytest.mark.parametrize("accumulation", [1, 2])
def test_no_array_of_logits_and_none_of_attention_weights(name, accumulation):
    """[R, T, V] and [R, heads, T, T] never exist, for policy, reference, value network or their gradients."""
    setup, step, state = ready(name, accumulation=accumulation, head_chunk=48)
    rows = rows_for(setup, "shared_packed", trees(20), length=LENGTH)
    found = shapes(lowered(setup, state, rows))
    assert (ROWS // accumulation, LENGTH, MODEL.width) in found, "the shapes were not read from the text"
    chunk_logits = ROWS // accumulation * 48 * VOCABULARY
    for shape in found:
        if VOCABULARY in shape[1:]:
            assert math.prod(shape) <= chunk_logits, f"{shape}: logits of more than a chunk"
        assert sum(size >= LENGTH for size in shape) < 2, f"{shape}: quadratic in the row"


def test_the_guard_above_sees_dense_attention():
    """The same check must fail on the oracle, or it proves nothing."""
    dense = dataclasses.replace(FLOAT32, attention="dense")
    setup, step, state = ready("dpo", model=dense, mesh=make_mesh(MeshConfig(), jax.devices()[:1]))
    rows = rows_for(setup, "shared_packed", trees(20), length=LENGTH)
    found = shapes(lowered(setup, state, rows))
    assert any(sum(size >= LENGTH for size in shape) >= 2 for shape in found)


def test_one_compilation_for_all_steps():
    setup, step, state = ready("dpo")
    for seed in range(4):
        state, _ = step(state, to_devices(setup.mesh, rows_for(setup, "shared_packed", trees(20, seed=seed))))
    assert step.program._cache_size() == 1
    assert int(state.step) == 4


def test_moments_lie_where_their_parameters_lie():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    for name in ("adamw", "adafactor", "rmsprop", "sgd"):
        optimizer = make_optimizer(OptimizerConfig(name=name), 10)
        model = ModelConfig(64, 2, 16, 4, 2, 8, 24)
        params = {"policy": init(model, jax.random.key(0))}
        state = init_state(setup_for("dpo", model=model, mesh=mesh), params["policy"], optimizer)
        wanted = optimizer_shardings(mesh, optimizer, params)
        for leaf, sharding in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(wanted), strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        kernel = state.params["policy"]["layers"]["mlp"]["up"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (2, 8, 12)
        embedding = state.params["policy"]["embedding"]
        assert embedding.sharding.shard_shape(embedding.shape) == (32, 8)


def test_an_axis_that_does_not_divide_is_replicated():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    shardings = parameter_shardings(mesh, {"embedding": jax.ShapeDtypeStruct((31, 16), jnp.float32)})
    assert shardings["embedding"].shard_shape((31, 16)) == (31, 4)


@pytest.mark.parametrize(
    "sizes,message",
    [((3, 1, 1), "needs 3 devices and 8 are there"), ((-1, -1, 1), "one axis"), ((0, 1, 1), "mesh.data=0")],
)
def test_bad_meshes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(MeshConfig(*sizes))


@pytest.mark.parametrize("name", tiered(STARTING, "dpo", "kto"))
@pytest.mark.parametrize("dtype", tiered(["float32", "bfloat16"], "float32"))
def test_the_start_value_is_the_closed_form(name, dtype):
    """Policy == reference by the same path: the log-probs are bit-equal, in bfloat16 too, and the loss is at_init."""
    model = dataclasses.replace(FLOAT32, dtype=dtype)
    setup, _, state = ready(name, model=model)
    rows = to_devices(setup.mesh, rows_for(setup, "shared_packed", trees(20)))
    values = dict(make_eval_step(setup)(state.params, state.frozen, rows))
    if not setup.objective.requires.reward_head:
        assert values["start_gap"] == 0
    loop.check_start(values, name, tolerance=1e-5)
    if name in ("dpo", "dpo_norm", "soft_ce"):
        assert values["expected_loss"] == pytest.approx(
            float(rows.weight[rows.weight > 0].mean()) * math.log(2), rel=1e-5
        )
    with pytest.raises(loop.StartCheckError, match="policy == reference|rewards of 0"):
        loop.check_start(values | {"loss": values["loss"] + 0.1}, name, tolerance=1e-3)


def test_accumulation_must_divide_the_rows():
    setup, step, state = ready("dpo", accumulation=3)
    with pytest.raises(ValueError, match="multiple of 12"):
        lowered(setup, state, rows_for(setup, "shared_packed", trees(20)))


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(reference="none"), "objective dpo with reference='none': set it to live or precomputed"),
        (dict(value_network="own"), "objective dpo with value_network='own': set it to none"),
        (dict(reference="sometimes"), "choose one of"),
        (dict(objective=OBJECTIVES["simpo"]), "objective simpo with reference='live': set it to none"),
        (dict(objective=OBJECTIVES["pmpo"], reference="none"), "objective pmpo with reference='none'"),
        (dict(objective=OBJECTIVES["pmpo"], reference="precomputed"), "'precomputed' must be live"),
        (dict(objective=OBJECTIVES["tdpo1"], reference="precomputed"), "tdpo1 needs the KL .*'precomputed' must be"),
        (
            dict(objective=OBJECTIVES["ld_dpo"], reference="precomputed"),
            "ld_dpo needs the reference's log-prob of every single token, .*'precomputed' must be live",
        ),
    ],
)
def test_contradictions_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(setup_for("dpo"), **changes)


@pytest.mark.parametrize("layout", ["pairs", "shared_packed"])
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_every_field_of_the_responses_comes_from_where_it_should(name, layout):
    """The equality tests compare two ways to the same fields; this one says that they are the right ones."""
    setup, examples = setup_for(name), trees(20)
    rows, branches = rows_for(setup, layout, examples), branches_for(name)
    shape = (*rows.valid.shape[:2], branches.count)
    number = lambda start: start + jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape)
    statistics = {
        field: number(start)
        for start, field in ((3e4, "log_sum_p2"), (4e4, "kl"))
        if field in setup.objective.requires.inputs
    }
    scores = Scores(number(0), value=number(2e4)[..., 0] if setup.value_network == "own" else None, **statistics)
    single = (*shape[:2], 2, branches.longest)
    tokens = {
        field: start + jnp.arange(math.prod(single), dtype=jnp.float32).reshape(single)
        for start, field in ((5e4, "token_logp"), (6e4, "token_kl"), (7e4, "token_reference_logp"))
        if field in setup.objective.requires.inputs
    }
    of_reference = tokens.pop("token_reference_logp", None)
    scores = scores._replace(**tokens)
    width = setup.reward_head.width
    said = 8e4 + jnp.arange(math.prod(shape[:2]) * 2 * width, dtype=jnp.float32).reshape(*shape[:2], 2, width)
    if setup.objective.requires.reward_head:
        scores = Scores(features=said)
    reference = Reference(number(1e4) if setup.reference == "live" else None, of_reference)
    r = assemble(setup, scores, reference, jax.tree.map(jnp.asarray, rows))
    setup.objective.check_inputs(r)
    own = "features" if setup.objective.requires.reward_head else "logp"
    for field in setup.objective.requires.inputs | setup.objective.requires.optional | {own, "valid"}:
        got = getattr(r, field)
        assert got.shape == rows.example_id.reshape(-1).shape + got.shape[1:], field
        for prompt, example in enumerate(rows.example_id.reshape(-1)):
            if example < 0:
                continue
            tree, base = examples[example], prompt * branches.count
            responses = base + np.arange(2)
            places = (2 * prompt + np.arange(2)[:, None]) * branches.longest + np.arange(branches.longest)
            counted = [response >= 0 for response in tree.responses]
            pad = lambda x: np.pad(x, (0, LONGEST - len(x)))
            padded = lambda marks, counted=counted, pad=pad: [
                pad(x[own]) for x, own in zip(marks or (), counted, strict=bool(marks))
            ]
            expected = {
                "logp": responses,
                "reference_logp": 1e4 + responses,
                "value": 2e4 + base,
                "log_sum_p2": 3e4 + responses,
                "kl": 4e4 + responses,
                "baseline_logp": base + branches.baseline_slot,
                "baseline_reference_logp": 1e4 + base + branches.baseline_slot,
                "auxiliary_logp": base + branches.auxiliary_slot,
                "length": [own.sum() for own in counted],
                "target": tree.targets,
                "valid": [True, True],
                "margin": np.float32(tree.margin),
                "target_probability": np.float32(tree.target_probability),
                "features": said.reshape(-1, 2, width)[prompt],
                "token_logp": 5e4 + places,
                "token_kl": 6e4 + places,
                "token_reference_logp": 7e4 + places,
                "token_weight": padded(tree.token_weight),
                "token_segment": padded(tree.token_segment),
            }
            if field == "token_draw":
                seen = got[prompt].ravel().tolist()
                assert len(set(seen)) == len(seen) and 0 <= min(seen) < 0.3 and 0.7 < max(seen) < 1
                continue
            np.testing.assert_array_equal(got[prompt], expected[field], err_msg=field)


@pytest.mark.parametrize("name,field", [("margin_dpo", "margin"), ("soft_ce", "target_probability")])
def test_rows_without_what_the_objective_reads_are_refused_by_name(name, field):
    setup, step, state = ready(name)
    rows = rows_for(setup, "shared_packed", trees(20))._replace(**{field: None})
    with pytest.raises(ValueError, match=f"{name} needs {field}: .* in the preference records"):
        lowered(setup, state, rows)
    unread = rows_for(setup_for("dpo"), "shared_packed", trees(20))
    assert unread.margin is None and unread.target_probability is None


def test_a_draw_depends_on_seed_example_response_and_place_alone():
    """Equal in any layout, packing and row length; another seed draws anew, and no two tokens share a draw."""

    def draws(layout, longest=LONGEST, **changes):
        setup = setup_for("sampo", **changes)
        rows = jax.tree.map(jnp.asarray, rows_for(setup, layout, trees(20), longest=longest))
        single = jnp.zeros((*rows.valid.shape, longest))
        scores = Scores(jnp.zeros((*rows.valid.shape[:2], rows.response_ends.shape[-1])), None, token_logp=single)
        found = assemble(setup, scores, Reference(None), rows).token_draw
        pairs = zip(rows.example_id.ravel().tolist(), np.asarray(found), strict=True)
        return {example: row for example, row in pairs if example >= 0}

    one, other = draws("shared_packed"), draws("shared_packed", seed=1)
    for example, row in draws("pairs", longest=LONGEST + 3).items():
        np.testing.assert_array_equal(row[:, :LONGEST], one[example])
        assert not (one[example] == other[example]).any()
    assert len(np.unique(np.stack(list(one.values())))) == 20 * 2 * LONGEST


def test_metrics_by_hand():
    r = Responses(
        logp=jnp.array([[-1.0, -2.0], [-3.0, -3.0], [-5.0, -1.0], [9.0, 9.0]]),
        reference_logp=jnp.array([[-2.0, -2.0], [-4.0, -4.0], [-4.0, -1.0], [0.0, 0.0]]),
        target=jnp.array([[1.0, 0.0]] * 4),
        valid=jnp.array([[True, True]] * 3 + [[False, False]]),
    )
    counted = jnp.array([True, True, True, False])
    weight = jnp.array([1.0, 1.0, 2.0, 1.0])
    values = dict(Metrics(response_metrics(r, jnp.array([0.1, 0.2, 0.6, 99.0]), counted, weight)))
    expected = {
        "loss": (0.1 + 0.2 + 2 * 0.6) / 3,
        "reward_accuracy": (1 + 0.5 + 0) / 3,  # a tie is one half
        "reward_ties": 1 / 3,
        "margin": (1 + 0 - 1) / 3,
        "chosen_logp": -3.0,
        "rejected_logp": -2.0,
        "chosen_logp_change": (1 + 1 - 1) / 3,
        "rejected_logp_change": 1 / 3,
        "kl_estimate": -(1 + 0 + 1 + 1 - 1 + 0) / 6,
        "prompts": 3,
        "responses": 6,
        "pairs": 3,
    }
    assert values == pytest.approx(expected, rel=1e-6)


def test_combining_batches_weighs_by_count_and_adds_totals():
    parts = [
        {"loss": (2.0, 4), "prompts": (4, 1)},
        {"loss": (3.0, 1), "prompts": (1, 1)},
        {"loss": (0.0, 0), "prompts": (0, 1)},
    ]
    assert dict(Metrics.combine(map(Metrics, parts))) == {"loss": 1.0, "prompts": 5.0}
    assert dict(Metrics({"margin": (0.0, 0)})) == {}, "no sample is not zero"


def test_metrics_are_read_as_numbers_and_travel_as_arrays():
    made = jax.jit(lambda x: Metrics({"loss": (x.sum(), jnp.int32(4)), "margin": (x.sum(), jnp.int32(0))}))
    metrics = made(jnp.arange(4.0))
    assert dict(metrics) == {"loss": 1.5} and "margin" not in metrics and repr(metrics) == "loss 1.5"


@pytest.mark.slow
def test_any_optax_transformation_trains_and_its_learning_rate_is_told_where_it_says_one():
    for tx, rate in (
        (optax.chain(optax.clip(1.0), optax.sgd(0.1)), None),
        (optax.inject_hyperparams(optax.adamw)(learning_rate=3e-4), 3e-4),
        (make_optimizer(OptimizerConfig(learning_rate=2e-4), 10), 2e-4),
    ):
        setup, step, state = ready("dpo", tx)
        state, metrics = step(state, to_devices(setup.mesh, rows_for(setup, "shared_packed", trees(20))))
        assert metrics.get("learning_rate") == (rate and pytest.approx(rate)) and metrics["grad_norm"] > 0


def test_what_is_given_stays_usable_and_the_reference_stays_what_it_was():
    setup = setup_for("dpo", model=FLOAT32)
    policy = init(FLOAT32, jax.random.key(0))
    before = jax.tree.map(np.array, policy)
    state, step = init_state(setup, policy, optax.sgd(1.0)), make_train_step(setup)
    rows = rows_for(setup, "shared_packed", trees(20))
    for _ in range(2):
        state, metrics = step(state, rows)
    for tree in (policy, state.frozen):
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, tree), before)
    assert np.abs(np.asarray(state.params["policy"]["embedding"]) - before["embedding"]).max() > 0


def test_an_update_that_is_not_finite_leaves_the_state_alone_where_it_may_be_skipped():
    """Two steps with one of NaN between them are the two steps, and the metrics are theirs."""
    setup = setup_for("dpo", model=FLOAT32, skip_non_finite=True)
    policy, step, tx = init(FLOAT32, jax.random.key(0)), make_train_step(setup), optax.adamw(1e-2)
    rows = rows_for(setup, "shared_packed", trees(20))
    broken = rows._replace(weight=np.full_like(rows.weight, np.nan))

    def after(*batches):
        state, metrics = init_state(setup, policy, tx), []
        for batch in batches:
            state, said = step(state, batch)
            metrics.append(said)
        return state, Metrics.combine(metrics)

    (skipping, values), (plain, expected) = after(rows, broken, rows), after(rows, rows)
    jax.tree.map(np.testing.assert_array_equal, skipping.params, plain.params)
    jax.tree.map(np.testing.assert_array_equal, skipping.opt_state, plain.opt_state)
    assert (int(skipping.step), int(skipping.skipped), int(plain.skipped)) == (3, 1, 0)
    assert dict(values) == dict(expected)


def test_schedules_and_optimizer_options():
    config = OptimizerConfig(learning_rate=2.0, schedule="linear", warmup_steps=4, final_scale=0.5)
    schedule = make_schedule(config, 12)
    assert [float(schedule(step)) for step in (0, 2, 4, 8, 12)] == pytest.approx([0, 1, 2, 1.5, 1])
    refused = [
        (dict(schedule="step"), "optimizer.schedule='step': choose one of constant"),
        (dict(warmup_steps=1, warmup_ratio=0.1), "warmup_steps=1 and .*warmup_ratio=0.1 both say"),
        (dict(warmup_ratio=0.6), "optimizer.warmup_ratio=0.6: set it to at least 0 and at most 0.5"),
        (dict(final_scale=0.1), "final_scale has no effect"),
        (dict(name="lion"), "optimizer.name='lion': choose one of adamw"),
        (dict(name="sgd", weight_decay=0.1), "sgd takes no weight_decay"),
        (dict(name="adamw", momentum=0.9), "adamw takes no momentum"),
    ]
    for change, message in refused:
        with pytest.raises(ValueError, match=message):
            make_optimizer(OptimizerConfig(**change), 10)


@pytest.mark.parametrize(
    "option, steps, expected",
    [
        (dict(warmup_ratio=0.07), 100, (7, 7)),  # in floating point the product is above 7
        (dict(warmup_ratio=0.08), 120, (10, 10)),
        (dict(warmup_ratio=0.1), 1, (0, 1)),
        (dict(warmup_steps=20), 41, (20, 20)),
        (dict(warmup_steps=20), 7, (3, 20)),
        (dict(), 10, (0, 0)),
    ],
)
def test_a_warm_up_takes_at_most_half_of_the_run(option, steps, expected):
    config = OptimizerConfig(learning_rate=2.0, schedule="constant", **option)
    assert warmup_of(config, steps) == expected
    schedule = make_schedule(config, steps)
    rates = [float(schedule(step)) for step in range(steps)]
    assert rates[expected[0] :] == [2.0] * (steps - expected[0]) and (rates[0] == 0) == bool(expected[0])


def test_weight_decay_leaves_norms_alone():
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), 10)
    params = {"mlp": {"kernel": jnp.ones((2, 2))}, "norm": {"scale": jnp.ones(2)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert (updates["mlp"]["kernel"] < 0).all() and (updates["norm"]["scale"] == 0).all()
