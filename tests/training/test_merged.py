"""Layout `merged` against one row a response: every objective of the zoo, its loss and every leaf of its gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.losses import OBJECTIVES, objective
from prefjax.losses.responses import PROVIDED_BY
from prefjax.models import reward_head
from prefjax.requirements import PAIR_NUMBERS, TOKEN_LABELS, Requirements
from prefjax.rows.arrays import Branches, RowShape
from prefjax.rows.layout import build_rows
from prefjax.rows.trees import is_scored, token_ids
from prefjax.training.metrics import Metrics, response_metrics
from prefjax.training.scoring import assemble, response_features, score, score_reference
from tests.rows.forests import related_trees
from tests.training.examples import LONGEST, RANKED, VOCABULARY, parameters, setup_for
from tests.training.test_equality import TOGETHER

PROMPTS, ROWS, K = 12, 2, 3
# What the trained parameters decide of `Responses`; its other fields come from the data or the reference.
BY_PROMPT = ("value", "baseline_logp", "auxiliary_logp")
BY_RESPONSE = ("logp", "log_sum_p2", "kl", "features")
BY_TOKEN = ("token_logp", "token_kl")
NAMES = (*OBJECTIVES, TOGETHER, RANKED)
GPM = setup_for("gpm")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def chains(tree):
    return [[*tree.prompt.tolist(), *token_ids(branch).tolist()] for branch in tree.responses]


def longest_line(trees):
    """Trees that follow each other, each prompt going on from the prompt and a response before: the most there are."""
    lines = []
    for tree in sorted(trees, key=lambda tree: len(tree.prompt)):
        prompt = tree.prompt.tolist()
        above = [line for line in lines for chain in chains(line[-1]) if prompt[: len(chain)] == chain]
        lines.append([*max(above, key=len, default=[]), tree])
    return max(lines, key=len)


def last_scored(tree, branch):
    """Tokens of prompt and response until the last one that is scored; 0 where none is."""
    places = np.flatnonzero(is_scored(branch))
    return len(tree.prompt) + 1 + int(places[-1]) if len(places) else 0


def untied(tree):
    """Whether no two responses say the same: which of two equal log-probs is larger is a matter of rounding."""
    said = {tuple(c[: last_scored(tree, b)]) for b, c in zip(tree.responses, chains(tree), strict=True)}
    return len(said) == len(tree.responses) and () not in said


def forest(depth):
    """Trees of which `depth` follow each other; those that begin alike stand beside each other."""
    ids = {"vocabulary": VOCABULARY - 1, "longest": LONGEST}  # the last id is in none
    trees = [*filter(untied, related_trees(60, seed=3, depth=depth, responses=K, **ids))]
    line = longest_line(trees)
    assert len(line) == depth
    others = [tree for tree in trees if all(tree is not own for own in line)]
    return sorted([*line, *others[: PROMPTS - depth]], key=lambda tree: tree.prompt.tolist())


def rows_of(trees, layout):
    """All of them, in their order."""
    merged = layout == "merged"
    shape = RowShape(
        layout,
        rows=ROWS if merged else PROMPTS,
        row_length=192 if merged else 80,
        scored_length=144 if merged else 16,
        groups=PROMPTS // ROWS if merged else 1,
        branches=Branches(K, baseline=True, auxiliary=True, longest=LONGEST),
        prompt_length=256 if merged else 64,
        carries=(*PAIR_NUMBERS, *TOKEN_LABELS),
        entries=192,
    )
    return build_rows([trees[i : i + shape.groups] for i in range(0, PROMPTS, shape.groups)], shape)


@functools.cache
def model_of(layout):
    """Setup of an objective that reads everything, trained parameters with a reward head beside, and a reference."""
    everything = Requirements(inputs=frozenset(PROVIDED_BY) - {"features", "carried"})
    setup = setup_for("dro", head_chunk=48)
    attention = dataclasses.replace(setup.model, attention="tiled" if layout == "merged" else "dense")
    reads = dataclasses.replace(setup.objective, requires=everything)
    trained, reference = parameters(setup)
    head = reward_head.init(GPM.reward_head, GPM.model, jax.random.key(5))
    trained = trained | {"policy": trained["policy"] | jax.tree.map(lambda x: np.asarray(x) + 0.3, head)}
    return dataclasses.replace(setup, objective=reads, model=attention), trained, reference


@functools.partial(jax.jit, static_argnums=0)
def scored(layout, params, reference, rows, cotangents):
    """What objectives receive of these rows, and cotangents of its trained fields pulled back to every parameter."""
    setup, *_ = model_of(layout)
    frozen = score_reference(setup, reference, rows)

    def received(params):
        features = response_features(GPM, params["policy"], rows)
        found = assemble(setup, score(setup, params, rows, frozen)._replace(features=features), frozen, rows)
        return trained_fields(found), found

    _, back, found = jax.vjp(received, params, has_aux=True)
    # What stands in the place of a response that a record lacks is read by nobody.
    found = found.replace(features=jnp.where(found.valid[..., None], found.features, 0))
    there = jnp.where(found.valid[..., None], cotangents["features"], 0)
    return found, back(cotangents | {"features": there})[0]


def trained_fields(responses):
    return {name: getattr(responses, name) for name in (*BY_PROMPT, *BY_RESPONSE, *BY_TOKEN)}


def random_cotangents():
    """Of all fields together: what pulls back alike for these does so for any, as it is linear in them."""
    draw, wide = np.random.default_rng(1).normal, {"features": (PROMPTS, K, GPM.reward_head.width)}
    shapes = dict.fromkeys(BY_PROMPT, (PROMPTS,)) | dict.fromkeys(BY_RESPONSE, (PROMPTS, K))
    shapes |= dict.fromkeys(BY_TOKEN, (PROMPTS, K, LONGEST)) | wide
    return {name: draw(size=shape) for name, shape in shapes.items()}


def both(trees):
    """{layout: a function of cotangents} of these trees, whose merged rows hold a third fewer tokens or less."""
    rows = {layout: rows_of(trees, layout) for layout in ("pairs", "merged")}
    assert 1.5 * (rows["merged"].segment_ids > 0).sum() < (rows["pairs"].segment_ids > 0).sum()
    return {layout: functools.partial(scored, layout, *model_of(layout)[1:], rows[layout]) for layout in rows}


def close(found, expected):
    """Every leaf, to 1e-9 of its largest number."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        apart = np.abs(np.subtract(a, b, dtype=float)).max()
        assert apart <= 1e-9 * max(np.abs(b).max(), 1e-3), jax.tree_util.keystr(path)


def seen(own, received):
    """The responses as an objective of the zoo takes them: pairs are the first two."""
    if own.requires.group_size:
        first = lambda name, x: x if x is None or name in ONE_EACH else x[:, :2]
        fields = {f.name: first(f.name, getattr(received, f.name)) for f in dataclasses.fields(received)}
        received = received.replace(**fields)
    if own.requires.reads in ("labels", "probabilities"):
        received = received.replace(target=(received.target == received.target.max(1, keepdims=True)).astype(float))
    if own.requires.reward_head and own.name != "gpm":
        received = received.replace(features=received.features[..., :1])
    return received.replace(carried=own.initial_carried() or None)


ONE_EACH = (*BY_PROMPT, "baseline_reference_logp", "margin", "target_probability", "carried")


@jax.jit
def losses(received, weight):
    """{name: (loss, gradients with respect to the trained fields)} of all objectives."""

    def loss(trained, own):
        r = seen(own, received.replace(**trained))
        counted = own.valid_prompts(r)
        return jnp.where(counted, weight * own.loss(r), 0).sum() / jnp.maximum(counted.sum(), 1)

    return {name: jax.value_and_grad(loss)(trained_fields(received), objective(name)) for name in NAMES}


@jax.jit
def metrics(received, weight):
    """Those that every objective has."""
    counted = objective("dpo").valid_prompts(seen(objective("dpo"), received))
    return response_metrics(received, received.value, counted, weight)


@pytest.mark.parametrize("depth", range(1, 7))
def test_what_objectives_receive_and_hand_back_is_as_on_plain_sequences(depth):
    trees, cotangents = forest(depth), random_cotangents()
    plain, merged = (run(cotangents) for run in both(trees).values())
    close(merged, plain)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(plain[1]))
    weight = np.array([tree.weight for tree in trees])
    expected, found = (dict(Metrics(metrics(received, weight))) for received, _ in (plain, merged))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_every_objective_has_the_loss_and_gradients_of_plain_sequences():
    trees = forest(6)
    plain, merged = both(trees).values()
    weight = np.array([tree.weight for tree in trees])
    expected, found = (losses(run(random_cotangents())[0], weight) for run in (plain, merged))
    weights = np.random.default_rng(2).normal(size=len(NAMES))
    pulled = [jax.tree.map(np.zeros_like, random_cotangents()) for _ in range(2)]
    for name, weight in zip(NAMES, weights, strict=True):
        close(found[name], expected[name])
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[name][1]))
        assert largest > 0, name
        for k, (_, cotangents) in enumerate((expected[name], found[name])):
            pulled[k] = jax.tree.map(lambda x, y, by=weight / largest: x + by * np.asarray(y), pulled[k], cotangents)
    # Linear again: parameters' gradients of a random sum of all, each as large as the others, are those of each.
    close(merged(pulled[1])[1], plain(pulled[0])[1])


def test_a_changed_token_changes_exactly_the_responses_that_contain_it():
    trees, rng, several, cotangents = forest(4), np.random.default_rng(0), 0, random_cotangents()
    run = functools.partial(scored, "merged", *model_of("merged")[1:])
    logp = lambda trees: np.asarray(run(rows_of(trees, "merged"), cotangents)[0].logp)
    before = logp(trees)
    for _ in range(12):
        line = chains(trees[rng.integers(PROMPTS)])[0]
        prefix = line[: rng.integers(1, len(line) + 1)]
        holds = np.zeros(before.shape, bool)
        for own, tree in zip(holds, trees, strict=True):
            for k, (branch, chain) in enumerate(zip(tree.responses, chains(tree), strict=True)):
                own[k] = last_scored(tree, branch) >= len(prefix) and chain[: len(prefix)] == prefix
        apart = np.abs(logp([replaced(tree, prefix) for tree in trees]) - before)
        assert ((apart > 1e-9) == holds).all() and apart[~holds].max() <= 1e-11
        several += holds.sum() > 1
    assert several > 5


def replaced(tree, prefix):
    """The tree with the last token of a beginning replaced wherever a chain has it, by an id that is in none."""
    at, new = len(prefix) - 1, VOCABULARY - 1

    def change(ids, chain, start):
        ids, place = ids.copy(), at - start
        if 0 <= place < len(ids) and chain[: at + 1] == prefix:
            ids[place] = new if ids[place] >= 0 else ~new
        return ids

    prompt, start = tree.prompt.tolist(), len(tree.prompt)
    branch = lambda ids: change(ids, [*prompt, *token_ids(ids).tolist()], start)
    return dataclasses.replace(
        tree,
        prompt=change(tree.prompt, prompt, 0),
        responses=tuple(map(branch, tree.responses)),
        baseline=branch(tree.baseline),
        auxiliary=branch(tree.auxiliary),
    )
