"""The head: log-probs and vocabulary statistics of scored tokens, in chunks, and with a vocabulary cut over devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.models import Head, Targets, response_sums, token_scores
from prefjax.training.mesh import MeshConfig, make_mesh

R, T, S, D, V = 4, 9, 11, 8, 24


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def case(float64):
    """(policy, reference, targets): random, with empty slots in the middle and one empty row."""
    rng = np.random.default_rng(0)
    head = lambda: Head(rng.normal(size=(R, T, D)), rng.normal(size=(V, D)))
    scored = rng.random((R, S)) < 0.6
    scored[2] = False
    targets = Targets(rng.integers(0, V, (R, S)), rng.integers(0, T, (R, S)), scored)
    return jax.tree.map(jnp.asarray, (head(), head(), targets))


def plain(policy, reference, targets, softcap=None):
    """The definitions, over a [R, S, V] array; returns (logp, log_sum_p2, kl)."""

    def log_softmax(head):
        states = jnp.take_along_axis(head.hidden, targets.predictors[:, :, None], axis=1)
        z = jnp.einsum("rsd,vd->rsv", states, head.weights)
        return jax.nn.log_softmax(softcap * jnp.tanh(z / softcap) if softcap else z)

    logp, frozen = log_softmax(policy), log_softmax(jax.lax.stop_gradient(reference))
    target = jnp.take_along_axis(logp, targets.ids[:, :, None], axis=2)[:, :, 0]
    agree = jnp.log((jnp.exp(logp) ** 2).sum(-1))
    kl = (jnp.exp(frozen) * (frozen - logp)).sum(-1)
    return tuple(jnp.where(targets.scored, x, 0) for x in (target, agree, kl))


def weighted(outputs):
    """One number whose gradient reaches every output differently."""
    return sum((x * jnp.cos(jnp.arange(x.size) + n).reshape(x.shape)).sum() for n, x in enumerate(outputs))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 5, 16, 1000])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_scores_and_gradients_are_those_of_the_whole_softmax(case, softcap, chunk):
    policy, reference, targets = case
    expected, wanted = jax.value_and_grad(lambda p, r: weighted(plain(p, r, targets, softcap)), (0, 1))(
        policy, reference
    )
    score = lambda p, r: token_scores(p, targets, chunk=chunk, softcap=softcap, log_sum_p2=True, reference=r)
    for a, b in zip(score(policy, reference), plain(policy, reference, targets, softcap), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    got, gradients = jax.jit(jax.value_and_grad(lambda p, r: weighted(score(p, r)), (0, 1)))(policy, reference)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients[1])), "the reference is frozen"


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 1, 8), (4, 1, 1)], ids=str)
def test_a_cut_vocabulary_agrees_and_never_gathers_logits(case, mesh):
    """Also at tensor = 8, and without a tensor axis; the program moves no array as large as a chunk's logits."""
    policy, reference, targets = case
    sizes = dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))
    devices = make_mesh(MeshConfig(**sizes), jax.devices()[: np.prod(mesh)])

    def loss(p, r, targets, mesh=None):
        return weighted(token_scores(p, targets, chunk=6, log_sum_p2=True, reference=r, mesh=mesh))

    expected = jax.value_and_grad(loss)(policy, reference, targets)
    compiled = jax.jit(lambda *args: jax.value_and_grad(loss)(*args, mesh=devices)).lower(*case).compile()
    got = compiled(*case)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    moved = re.findall(r"= f64\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)", compiled.as_text())
    logits = f"6,{V}"
    assert logits not in moved, "the logits of a chunk were gathered"


@pytest.mark.slow
def test_a_vocabulary_that_the_tensor_axis_does_not_divide_still_agrees(case):
    policy, reference, targets = case
    odd = lambda head: Head(head.hidden, head.weights[:23])
    targets = targets._replace(ids=jnp.minimum(targets.ids, 22))
    devices = make_mesh(MeshConfig(fsdp=2, tensor=4))
    score = lambda mesh: token_scores(odd(policy), targets, chunk=6, reference=odd(reference), mesh=mesh)
    for a, b in zip(jax.tree.leaves(score(devices)), jax.tree.leaves(score(None)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_statistics_are_computed_only_when_asked(case):
    policy, reference, targets = case
    scores = token_scores(policy, targets)
    assert scores.log_sum_p2 is None and scores.kl is None
    same = token_scores(policy, targets, reference=policy)
    np.testing.assert_allclose(same.kl, 0, atol=1e-12)
    assert (token_scores(policy, targets, reference=reference).kl[targets.scored] > 0).all()


def test_what_an_empty_slot_holds_does_not_matter(case):
    policy, _, targets = case
    ids, predictors = (jnp.where(targets.scored, x, 0) for x in targets[:2])
    other = Targets(ids, predictors, targets.scored)
    expected, got = (token_scores(policy, x, chunk=7).logp for x in (targets, other))
    np.testing.assert_array_equal(got, expected)


def test_gradients_of_the_weights_add_up_in_their_own_precision():
    """bfloat16 states with float32 weights: 64 chunks whose gradients would stall a bfloat16 sum."""
    with jax.enable_x64(False):
        states = jnp.ones((1, 512, D), jnp.bfloat16)
        weights = jnp.zeros((V, D), jnp.float32)
        ids = jnp.zeros((1, 512), jnp.int32)
        targets = Targets(ids, ids, jnp.ones((1, 512), bool))
        loss = lambda w: token_scores(Head(states, w), targets, chunk=1).logp.sum()
        gradient = jax.grad(loss)(weights)
    np.testing.assert_allclose(gradient[0], 512 * (1 - 1 / V), rtol=2e-3)


def test_response_sums_add_up_slots_and_the_rows_of_a_group():
    values = jnp.arange(1.0, 13.0).reshape(4, 3)
    slots = jnp.array([[0, 0, 1], [1, 1, 0], [0, 1, 1], [0, 0, 0]])
    packed = response_sums(values, slots, groups=1, branches=2, group_rows=4)
    np.testing.assert_allclose(packed[:, 0], [[3, 3], [6, 9], [7, 17], [33, 0]])
    pairs = response_sums(values, slots, groups=1, branches=2, group_rows=2)
    np.testing.assert_allclose(pairs[:, 0], [[9, 12], [40, 17]])
