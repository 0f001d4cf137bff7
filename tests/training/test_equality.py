"""Every fast path equals the plain one: per-token log-probs, loss, and the full parameter gradient, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.losses import objective
from prefjax.losses.responses import PROVIDED_BY
from prefjax.losses.wrappers import WRAPPERS
from prefjax.models import Head, Targets, apply, token_scores, vocabulary_head
from prefjax.rows.arrays import LAYOUTS
from prefjax.rows.trees import is_scored, token_ids
from prefjax.training.feed import to_devices
from prefjax.training.mesh import MeshConfig, make_mesh, parameter_shardings
from prefjax.training.metrics import Metrics
from prefjax.training.step import loss_and_gradients
from tests.rows.forests import related_trees
from tests.training.examples import (
    LONGEST,
    RANKED,
    REPRESENTATIVES,
    VOCABULARY,
    parameters,
    rows_for,
    setup_for,
    tiered,
    trees,
)

EXAMPLES = 20


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def head_logps(model, params, hidden, rows, chunk):
    head = Head(hidden, vocabulary_head(model, params))
    logps = token_scores(head, Targets(rows.target_ids, rows.predictors, rows.scored), chunk=chunk).logp
    return logps if rows.entries is None else jnp.take_along_axis(logps, rows.entries, axis=1)


def outcome(setup, rows, *, placed=False):
    """(gradients, finished metrics) of one compiled call."""
    params, reference = parameters(setup)
    reference = reference if setup.reference == "live" else None
    if placed:
        params = jax.device_put(params, parameter_shardings(setup.mesh, params))
        reference = jax.device_put(reference, parameter_shardings(setup.mesh, reference)) if reference else None
        rows = to_devices(setup.mesh, rows)
    gradients, metrics = jax.jit(lambda p, r, x: loss_and_gradients(setup, p, r, x))(params, reference, rows)
    return jax.device_get(gradients), dict(Metrics(metrics))


def examples_for(name):
    """Without ties where values are sorted: which of two equal ones is first is their place in the batch."""
    examples = trees(EXAMPLES)
    tied = lambda tree: np.array_equal(*tree.responses)
    return [tree for tree in examples if not tied(tree)] if "aot" in name else examples


_plain = {}


def plain(name):
    """The plain computation: every response in its own row with its prompt, dense attention, one device, one chunk."""
    if name not in _plain:
        setup = setup_for(name, head_chunk=10_000)
        setup = dataclasses.replace(setup, model=dataclasses.replace(setup.model, attention="dense"))
        _plain[name] = outcome(setup, rows_for(setup, "pairs", examples_for(name)))
        if name == "kto":
            # Clamped to 0, a z0 over part of the batch would look like one over all of it.
            assert _plain[name][1]["mismatched_log_ratio"] > 1
    return _plain[name]


def assert_same(got, expected, *, rtol=1e-9):
    gradients, metrics = got
    for (path, a), (_, b) in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree_util.tree_leaves_with_path(expected[0]), strict=True
    ):
        scale = max(np.abs(b).max(), 1e-6)
        assert np.abs(a - b).max() <= rtol * scale, jax.tree_util.keystr(path)
        assert np.abs(b).max() > 0, f"{jax.tree_util.keystr(path)}: an all-zero gradient proves nothing"
    for metric in ("loss", "prompts", "responses", "scored_tokens", "margin", "chosen_logp", "chosen_reward"):
        if metric.startswith("chosen") and metric not in expected[1]:
            continue
        assert metrics[metric] == pytest.approx(expected[1][metric], rel=rtol), metric
    terms = {metric: value for metric, value in expected[1].items() if metric.startswith("loss_")}
    assert {metric: metrics.get(metric) for metric in terms} == pytest.approx(terms, rel=rtol)


def test_the_representatives_read_every_field():
    """A new field of `Responses` needs a new representative, or the tests below prove nothing of it."""
    requires = [objective(name).requires for name in REPRESENTATIVES]
    read = set().union(*(own.inputs | own.optional for own in requires))
    assert read | {"carried"} == set(PROVIDED_BY)  # what is carried: tests/training/test_carried.py
    assert {True, False} == {objective(name).coupled for name in REPRESENTATIVES}
    assert all(f"{name}(" in RANKED for name in (*WRAPPERS, "max"))


def test_a_sum_has_the_gradients_and_metrics_of_its_terms():
    """Each term by itself through the whole step; a coupled one among them."""
    gradients, metrics = plain("0.8*dpo + 0.3*kto")
    dpo, kto = plain("dpo"), plain("kto")
    for key, (_, alone) in (("dpo", dpo), ("kto", kto)):
        shared = alone.keys() - {
            "loss",
            "grad_norm",
            "tokens",
            "fill",
            "scored_tokens",
        }  # kto's rows have its baselines
        assert metrics[f"loss_{key}"] == pytest.approx(alone["loss"], rel=1e-12)
        assert {name: metrics[name] for name in shared} == pytest.approx(
            {name: alone[name] for name in shared}, rel=1e-12
        )
    assert metrics["loss"] == pytest.approx(0.8 * dpo[1]["loss"] + 0.3 * kto[1]["loss"], rel=1e-12)
    expected = jax.tree.map(lambda a, b: 0.8 * a + 0.3 * b, dpo[0], kto[0])
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


# `shared` is `shared_packed` with one prompt a row: only what rides beside the responses could tell.
@pytest.mark.slow
@pytest.mark.parametrize(
    "layout,name",
    [("packed_pairs", name) for name in REPRESENTATIVES]
    + [("shared", name) for name in ("kto", "dro", "slic", "wpo", "gpm")],
)
def test_layouts_agree(name, layout):
    setup = setup_for(name, head_chunk=48)
    assert_same(outcome(setup, rows_for(setup, layout, examples_for(name))), plain(name))


@pytest.mark.parametrize("name", tiered(REPRESENTATIVES, "dpo", "kto"))
def test_packed_rows_tiles_and_accumulation_agree(name):
    """The default path: coupled objectives too, whose batch statistic stays global over the micro-batches."""
    setup = setup_for(name, head_chunk=48, accumulation=4)
    setup = dataclasses.replace(setup, model=dataclasses.replace(setup.model, attention="tiled", remat="full"))
    assert_same(outcome(setup, rows_for(setup, "shared_packed", examples_for(name))), plain(name))


# One program for all that can be in one batch.
TOGETHER = (
    "0.8*dpo + 0.3*kto + 0.5*wpo + 0.4*slic + 0.7*soft_ce + 0.6*margin_dpo + 0.5*sparsepo + 0.3*two_d_dpo + 0.2*sampo"
    " + 0.9*pmpo + 0.35*dpo_norm + 1.0*sft + 0.5*bco + 0.3*aot + 0.2*aot_unpaired"
)


@pytest.mark.slow
def test_merged_rows_agree():
    """With accumulation, coupled terms among them; every objective by itself: tests/training/test_merged.py."""
    examples = related_trees(18, seed=1, responses=2, vocabulary=VOCABULARY - 1, longest=LONGEST)
    examples.sort(key=lambda tree: tree.prompt.tolist())  # so that those of a row have something in common
    setup = setup_for(TOGETHER, head_chunk=48)
    expected = outcome(setup, rows_for(setup, "pairs", examples))
    setup = dataclasses.replace(setup, accumulation=2, model=dataclasses.replace(setup.model, attention="tiled"))
    rows = rows_for(setup, "merged", examples, rows=2)
    assert 1.25 * (rows.segment_ids > 0).sum() < (rows_for(setup, "shared_packed", examples).segment_ids > 0).sum()
    assert_same(outcome(setup, rows), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", tiered(REPRESENTATIVES, "kto"))
def test_eight_devices_agree(name):
    """data, fsdp and tensor axes together, with accumulation and the sharded tile loop."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    setup = setup_for(name, accumulation=2, mesh=mesh)
    setup = dataclasses.replace(setup, model=dataclasses.replace(setup.model, attention="tiled"))
    assert_same(outcome(setup, rows_for(setup, "shared_packed", examples_for(name)), placed=True), plain(name))


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["dense", "tiled"])
@pytest.mark.parametrize("accumulation", [1, 2, 8])
def test_factorisations_of_a_coupled_objective_agree(attention, accumulation):
    setup = setup_for("kto", accumulation=accumulation)
    setup = dataclasses.replace(setup, model=dataclasses.replace(setup.model, attention=attention))
    assert_same(outcome(setup, rows_for(setup, "shared_packed", trees(EXAMPLES))), plain("kto"))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 7, 64, 159])
def test_head_chunks_agree(chunk):
    setup = setup_for("dpo", head_chunk=chunk)
    assert_same(outcome(setup, rows_for(setup, "shared_packed", trees(EXAMPLES))), plain("dpo"))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["pairs", "packed_pairs", "shared"])
@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (4, 1, 2)])
def test_mesh_shapes_and_layouts_agree(layout, sizes):
    setup = setup_for("kto", mesh=make_mesh(MeshConfig(*sizes)))
    assert_same(outcome(setup, rows_for(setup, layout, trees(EXAMPLES)), placed=True), plain("kto"))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["pairs", "shared_packed"])
def test_value_head_on_the_trunk(layout):
    setup = setup_for("dro", value_network="trunk")
    expected = outcome(setup, rows_for(setup, "packed_pairs", trees(EXAMPLES)))
    assert_same(outcome(setup, rows_for(setup, layout, trees(EXAMPLES))), expected)


@pytest.mark.slow
def test_own_value_network_never_sees_responses():
    """V(x) from prompt rows equals V(x) read at the prompt's end in rows that go on with responses."""
    setup = setup_for("dro")
    rows = rows_for(setup, "shared_packed", trees(EXAMPLES))
    _, metrics = outcome(setup, rows)
    changed = rows._replace(tokens=np.where(rows.segment_ids > 0, 3, rows.tokens))
    _, other = outcome(setup, changed)
    assert metrics["value"] == other["value"]
    assert metrics["chosen_logp"] != other["chosen_logp"]


@pytest.mark.parametrize("attention", ["dense", "tiled"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_token_log_probs_are_those_of_the_plain_sequence(layout, attention):
    """Every scored token of every layout against a forward pass over its prompt and response alone."""
    setup, examples = setup_for("kto"), trees(EXAMPLES)
    model = dataclasses.replace(setup.model, attention=attention)
    params = parameters(setup)[0]["policy"]
    rows = rows_for(setup, layout, examples)

    @jax.jit
    def plain_logps(params, tokens):
        length = tokens.shape[1]
        hidden = apply(setup.model, params, tokens, jnp.arange(length)[None], jnp.full((1, length), length))
        logits = hidden[:, :-1] @ vocabulary_head(setup.model, params).T
        return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], 2)[0, :, 0]

    @jax.jit
    def row_logps(params, rows):
        hidden = apply(model, params, rows.tokens, rows.positions, rows.visible_until)
        return head_logps(model, params, hidden, rows, chunk=64)

    expected = {}
    for tree in examples:
        for slot, branch in enumerate([*tree.responses, tree.baseline]):
            used = len(tree.prompt) + len(branch)
            sequence = np.zeros((1, 32), np.int32)
            sequence[0, :used] = np.concatenate([tree.prompt, token_ids(branch)])
            logps = np.asarray(plain_logps(params, sequence))[len(tree.prompt) - 1 : used - 1]
            expected[tree.example_id, slot] = logps[is_scored(branch)]
    got = np.asarray(row_logps(params, rows))
    copies, seen = len(rows.tokens) // len(rows.valid), 0
    for row, (logps, slots, weights) in enumerate(zip(got, rows.response_slots, rows.target_weights, strict=True)):
        for slot in np.unique(slots[weights > 0]):
            example = rows.example_id[row // copies, slot // 3]
            np.testing.assert_allclose(logps[(slots == slot) & (weights > 0)], expected[example, slot % 3], rtol=1e-10)
            seen += 1
    assert seen == len(expected) == 3 * EXAMPLES


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,counted", [("kto", 18), ("dro", 18), ("dro_p", 18), (RANKED, 15), ("pl_ranking", 15), ("bt_ranking", 15)]
)
def test_prompts_with_fewer_responses_agree(name, counted):
    """K = 3 slots, of which a prompt may use one or two: invalid slots add nothing, in any layout.

    Where responses are compared, a prompt with one does not count.
    """
    examples = [
        dataclasses.replace(tree, responses=tree.responses[: 1 + i % 3], targets=tree.targets[: 1 + i % 3])
        for i, tree in enumerate(trees(9, responses=3))
    ]
    setup = setup_for(name)
    expected = outcome(setup, rows_for(setup, "pairs", examples))
    got = outcome(setup, rows_for(setup, "shared_packed", examples, length=320))
    assert got[1]["responses"] == expected[1]["responses"] == counted
    assert_same(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("responses", [1, 3, 5])
def test_any_number_of_responses(responses):
    setup = setup_for("sft")
    examples = trees(9, responses=responses)
    expected = outcome(setup, rows_for(setup, "pairs", examples, length=64))
    got = outcome(setup, rows_for(setup, "shared_packed", examples, length=320))
    assert got[1]["responses"] == 9 * responses
    for a, b in zip(jax.tree.leaves(got[0]), jax.tree.leaves(expected[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


# Float32, bit for bit: what one response or one neighbour does must not reach another.


def token_log_probs(rows, params=None):
    with jax.enable_x64(False):
        setup = setup_for("dpo")
        model = dataclasses.replace(setup.model, dtype="float32", param_dtype="float32", attention="tiled")
        params, _ = parameters(dataclasses.replace(setup, model=model))
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)

        def forward(params, rows):
            hidden = apply(model, params, rows.tokens, rows.positions, rows.visible_until)
            return head_logps(model, params, hidden, rows, chunk=16)

        return np.asarray(jax.jit(forward)(params["policy"], rows))


def test_changing_a_chosen_token_leaves_the_rejected_bit_equal():
    setup, examples = setup_for("dpo"), trees(12)
    rows = rows_for(setup, "shared_packed", examples)
    changed = examples.copy()
    for i, tree in enumerate(examples):
        chosen = tree.responses[0].copy()
        chosen[0] = (chosen[0] + 1) % 31
        changed[i] = dataclasses.replace(tree, responses=(chosen, tree.responses[1]))
    before, after = token_log_probs(rows), token_log_probs(rows_for(setup, "shared_packed", changed))
    rejected = (rows.target_weights > 0) & (rows.response_slots % 2 == 1)
    assert rejected.sum() > 40
    np.testing.assert_array_equal(before[rejected], after[rejected])
    chosen = (rows.target_weights > 0) & (rows.response_slots % 2 == 0)
    assert (before[chosen] != after[chosen]).mean() > 0.9


def test_a_packing_neighbour_changes_nothing():
    setup, examples = setup_for("dpo"), trees(12)
    # Same lengths, other tokens, so that the examined tree stays where it is and the tile loop does the same work.
    rng = np.random.default_rng(7)
    scramble = lambda x: rng.integers(3, 31, len(x)).astype(np.int32)
    others = [
        dataclasses.replace(t, prompt=scramble(t.prompt), responses=tuple(scramble(r) for r in t.responses))
        for t in examples
    ]
    mixed = [examples[i] if i % 3 == 1 else others[i] for i in range(12)]
    rows, neighbours = rows_for(setup, "shared_packed", examples), rows_for(setup, "shared_packed", mixed)
    same = (rows.target_weights > 0) & (rows.response_slots // 2 == 1)
    before, after = token_log_probs(rows), token_log_probs(neighbours)
    np.testing.assert_array_equal(before[same], after[same])
    assert (before[~same & (rows.target_weights > 0)] != after[~same & (rows.target_weights > 0)]).mean() > 0.9


def test_identical_responses_have_identical_log_probs():
    setup, examples = setup_for("dpo"), trees(12)
    same = [dataclasses.replace(t, responses=(t.responses[0], t.responses[0].copy())) for t in examples]
    for layout in LAYOUTS:
        rows = rows_for(setup, layout, same)
        logps = token_log_probs(rows) * rows.target_weights
        flat = logps.reshape(-1, 2 * logps.shape[1]) if layout == "pairs" else logps
        slots = rows.response_slots.reshape(flat.shape)
        weights = rows.target_weights.reshape(flat.shape)
        for row in range(len(flat)):
            for group in range(rows.valid.shape[1]):
                chosen, rejected = (flat[row][(slots[row] == 2 * group + k) & (weights[row] > 0)] for k in (0, 1))
                np.testing.assert_allclose(chosen, rejected, rtol=2e-6)
