"""Reference log-probs from a cache: the live ones, shared, resumable, refused by name, checked at the start."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from prefjax.data.encoding import EncodingPolicy
from prefjax.losses import OBJECTIVES
from prefjax.models import init
from prefjax.policies.precompute import score_stage
from prefjax.rows.arrays import Branches
from prefjax.rows.store import MemoryTrees
from prefjax.training import reference
from prefjax.training.batches import training_shape
from prefjax.training.checkpoint import parameter_hash
from prefjax.training.config import ReferenceConfig
from prefjax.training.loop import LoopConfig
from prefjax.training.mesh import MeshConfig, make_mesh
from prefjax.training.reference import ReferenceMismatchError, open_scores, reference_table
from prefjax.training.score_cache import ScoreCache, sequence_keys
from prefjax.training.scoring import Setup
from prefjax.training.stage import run_stage
from prefjax.training.tables import over_trees
from tests.compilation import in_a_process_that_compiles_as_users_do
from tests.training.examples import MODEL, trees
from tests.training.test_run import DPO, final_state, lines

FACTS = {"tokenizer": "t", "template": "c", "truncation": {"max_length": 8}, "data": {"source": "a.jsonl"}}
SHORT = dataclasses.replace(DPO, train=LoopConfig(steps=4, log_every=1))
COUNT = 90
SMALL = dataclasses.replace(MODEL, dtype="float32", param_dtype="float32")


def cached(config, cache, **changes):
    return dataclasses.replace(config, reference=ReferenceConfig(kind="precomputed", cache=str(cache)), **changes)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Data and cache of a stage that was scored ahead."""
    folder = tmp_path_factory.mktemp("scored")
    tables = score_stage(cached(SHORT, folder / "cache"), folder / "data", folder / "cache", "")
    return folder, tables


class Small:
    """COUNT random trees, a tiny model, and its cache."""

    def __init__(self, folder, **branches):
        self.source = MemoryTrees(trees(COUNT))
        self.mesh = make_mesh(MeshConfig(8, 1, 1))
        self.setup = Setup(SMALL, OBJECTIVES["dpo"], reference="precomputed", mesh=self.mesh)
        rows = dataclasses.replace(DPO.rows, row_length=64, tokens_per_step=8 * 64)
        shape = training_shape(dataclasses.replace(DPO, rows=rows), self.source)
        self.shape = dataclasses.replace(shape, branches=Branches(2, **branches))
        self.params = init(SMALL, jax.random.key(0))
        self.folder = folder

    @property
    def cache(self):
        return open_scores(self.folder, self.setup, parameter_hash(self.params))

    def table(self, source=None, facts=FACTS, **options):
        return reference_table(self.setup, self.params, source or self.source, self.shape, self.cache, facts, **options)


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "_PART_STEPS", 1)
    return Small(tmp_path)


@pytest.fixture
def no_scoring(monkeypatch):
    """Fails where anything is scored besides what a start checks."""
    plain = reference._score
    few = lambda setup, scorer, trees, shape, bar=None: plain(setup, scorer, trees, shape) if bar is None else 1 / 0
    monkeypatch.setattr(reference, "_score", few)


# Runs


@pytest.mark.slow
@in_a_process_that_compiles_as_users_do
def test_training_on_cached_scores_is_bit_for_bit_that_of_a_live_reference(tmp_path, scored):
    """In a layout in which a row holds one prompt, so that packing cannot change how sums are rounded."""
    folder, _ = scored
    config = dataclasses.replace(SHORT, rows=dataclasses.replace(DPO.rows, layout="shared"))
    runs = {"live": config, "cached": cached(config, tmp_path / "cache")}
    results = {name: run_stage(own, tmp_path / name, folder / "data") for name, own in runs.items()}
    jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path / "live"), final_state(tmp_path / "cached"))
    assert results["live"].eval_metrics == results["cached"].eval_metrics


@pytest.mark.slow
def test_a_run_of_another_objective_finds_the_scores(tmp_path, scored, no_scoring):
    folder, _ = scored
    config = cached(SHORT, folder / "cache", objective="ipo", loss={"tau": 0.5}, train=LoopConfig(steps=1, log_every=1))
    run_stage(config, tmp_path, folder / "data")
    assert lines(tmp_path)[0]["loss"] == pytest.approx(1.0, abs=1e-3)  # 1 / (4 tau^2): the policy is the reference


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": 1}, r"model.parameters \(.* there, .* here\)"),
        (
            {"model": dataclasses.replace(DPO.model, rope_theta=5e3)},
            r"model.rope_theta \(10000.0 there, 5000.0 here\)",
        ),
        ({"model": dataclasses.replace(DPO.model, dtype="bfloat16")}, r"model.dtype \('float32' there, 'bfloat16'"),
        (
            {
                "data": dataclasses.replace(
                    DPO.data, encoding=EncodingPolicy(max_response_length=20, truncation="trim_responses")
                )
            },
            r"truncation.max_response_length \(None there, 20 here\); truncation.truncation \('drop' there",
        ),
    ],
    ids=["parameters", "architecture", "dtype", "truncation"],
)
def test_what_changed_is_refused_by_name(changes, message, tmp_path, scored):
    folder, _ = scored
    with pytest.raises(ValueError, match=f"holds reference log-probs, but not those of this run.*{message}"):
        run_stage(cached(SHORT, folder / "cache", **changes), tmp_path, tmp_path / "data")


# The table


def test_the_table_is_that_of_one_pass(small):
    table = small.table()
    assert table.shape == (COUNT, 2) and np.isfinite(table).all() and (table < 0).all()
    score = reference.make_scorer(small.setup, small.params)
    plain = over_trees(score, small.mesh, small.source, small.shape)
    np.testing.assert_allclose(table, plain, rtol=1e-5, atol=1e-5)


def test_a_killed_pass_goes_on_to_the_identical_table(small, tmp_path, monkeypatch):
    whole = Small(tmp_path / "whole").table()
    plain, calls = ScoreCache.add, []

    def killed(cache, *args, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(plain(cache, *args, **options))

    monkeypatch.setattr(ScoreCache, "add", killed)
    small.folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        small.table()
    assert 0 < len(small.cache) < len(np.unique(sequence_keys(small.source, small.shape.branches)[0]))
    monkeypatch.setattr(ScoreCache, "add", plain)
    plain_scorer, scored_rows = reference.make_scorer, []

    def counting(*args):
        scorer = plain_scorer(*args)
        return lambda rows: (scored_rows.append(rows), scorer(rows))[1]

    monkeypatch.setattr(reference, "make_scorer", counting)
    np.testing.assert_array_equal(small.table(), whole)
    parts = len(list((tmp_path / "whole").glob("*/part-*")))
    assert len(scored_rows) <= parts - 2 + 1, "what was written is scored again only where it is checked"


def test_flips_subsets_and_single_responses_share_scores(small, monkeypatch):
    table = small.table()
    monkeypatch.setattr(reference, "_score", lambda *a: 1 / 0)
    monkeypatch.setattr(reference, "_check_again", lambda *a: None)
    flipped = [dataclasses.replace(t, responses=t.responses[::-1], targets=t.targets[::-1]) for t in trees(COUNT)]
    np.testing.assert_array_equal(small.table(MemoryTrees(flipped)), table[:, ::-1])
    np.testing.assert_array_equal(small.table(MemoryTrees(trees(COUNT)[5:25])), table[5:25])
    one = [dataclasses.replace(t, responses=t.responses[1:], targets=t.targets[1:]) for t in trees(COUNT)]
    small.setup = dataclasses.replace(small.setup, objective=OBJECTIVES["apo_zero"])
    small.shape = dataclasses.replace(small.shape, branches=Branches(1))
    np.testing.assert_array_equal(small.table(MemoryTrees(one)), table[:, 1:])


def test_further_data_is_scored_where_it_is_missing(small):
    small.table(MemoryTrees(trees(COUNT)[:30]))
    before = len(small.cache)
    table = small.table(facts=FACTS | {"data": {"source": "a.jsonl + b.jsonl"}})
    assert len(small.cache) > before and np.isfinite(table).all()


def test_a_baseline_is_one_more_sequence(tmp_path):
    small = Small(tmp_path)
    table, before = small.table(), len(small.cache)
    more = Small(tmp_path)
    more.setup = dataclasses.replace(more.setup, objective=OBJECTIVES["kto"])
    more.shape = dataclasses.replace(more.shape, branches=Branches(2, baseline=True))
    more.shape = dataclasses.replace(more.shape, branches=Branches(2, baseline=True))
    wider = more.table()
    assert wider.shape == (COUNT, 3)
    np.testing.assert_array_equal(wider[:, :2], table)
    assert len(more.cache) > before


@pytest.mark.slow
def test_a_wrong_entry_is_found_when_scored_again(small):
    """Every score shifted by half a nat, as another program would have written them; then one part only."""
    table = small.table()
    keys, _ = sequence_keys(small.source, small.shape.branches)
    for path in small.cache.folder.glob("part-*.npz"):
        path.unlink()
    small.cache.add(keys.ravel(), table.ravel() + np.float32(0.5))
    message = r"example \d+, branch [01] of \d+ tokens: .* is -\d+\.\d{4}, but the reference now gives -\d+\.\d{4}"
    with pytest.raises(ReferenceMismatchError, match=message + ".*8 of 8.*other hardware"):
        small.table()
    for path in small.cache.folder.glob("part-*.npz"):
        path.unlink()
    checked = np.sort(np.random.default_rng(0).choice(COUNT, 8, replace=False))
    small.cache.add(keys.ravel(), (table + 0.5 * (np.arange(COUNT) == checked[3])[:, None]).ravel().astype(np.float32))
    with pytest.raises(ReferenceMismatchError, match=f"example {checked[3]}, .*1 of 8.*one part"):
        small.table()


def test_the_tolerance_lets_rounding_pass(small):
    table = small.table()
    keys, present = sequence_keys(small.source, small.shape.branches)
    for path in small.cache.folder.glob("part-*.npz"):
        path.unlink()
    small.cache.add(keys[present], table[present] * np.float32(1 + 1e-5))
    small.table()


# The files


def test_no_score_is_nan_and_nan_is_no_score(tmp_path):
    cache = ScoreCache(tmp_path, {"parameters": "p"})
    assert np.isnan(cache.lookup(np.array([[3, 5]], np.uint64))).all()
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        cache.add(np.array([3, 5], np.uint64), np.array([-1.0, np.nan], np.float32))
    cache.add(np.array([5, 3], np.uint64), np.array([-1.0, -2.0], np.float32))
    cache.add(np.array([7], np.uint64), np.array([-3.0], np.float32))
    for again in (cache, ScoreCache(tmp_path, {"parameters": "p"})):
        found = again.lookup(np.array([3, 4, 5, 7, 2**63], np.uint64))
        np.testing.assert_array_equal(found, np.float32([-2, np.nan, -1, -3, np.nan]))
    assert not len(ScoreCache(tmp_path, {"parameters": "q"})), "another model's"


def test_a_damaged_file_is_named_and_a_partial_one_is_not_read(tmp_path):
    cache = ScoreCache(tmp_path, {"parameters": "p"})
    cache.add(np.array([5], np.uint64), np.array([-1.0], np.float32))
    (path,) = cache.folder.glob("part-*.npz")
    (cache.folder / ".part-0.npz.1234.partial").write_bytes(b"half")
    assert len(ScoreCache(tmp_path, {"parameters": "p"})) == 1
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        ScoreCache(tmp_path, {"parameters": "p"})


def test_a_key_is_of_prompt_and_response(small):
    """Where the prompt ends counts, and so does every token; what hangs beside a response does not."""
    keys, present = sequence_keys(small.source, small.shape.branches)
    assert present.all()
    same = {}
    for row, tree in enumerate(trees(COUNT)):
        for slot, response in enumerate(tree.responses):
            same.setdefault((tuple(tree.prompt), tuple(response)), set()).add(keys[row, slot])
    assert all(len(found) == 1 for found in same.values()) and len(same) == len(np.unique(keys))
    tree = trees(1)[0]
    moved = dataclasses.replace(
        tree, prompt=np.append(tree.prompt, tree.responses[0][0]), responses=(tree.responses[0][1:], tree.responses[1])
    )
    other, _ = sequence_keys(MemoryTrees([moved]), Branches(2))
    assert not {*other.ravel().tolist()} & {*keys[0].tolist()}


@pytest.mark.parametrize(
    "facts, named",
    [
        ({"tokenizer": "u"}, "tokenizer"),
        ({"template": "d"}, "template"),
        ({"truncation": {"max_length": 9}}, r"truncation.max_length \(8 there, 9 here\)"),
        ({"template": "d", "data": {"source": "b.jsonl"}}, "template"),
    ],
)
def test_the_nearest_set_says_what_changed(facts, named, tmp_path):
    cache = ScoreCache(tmp_path, {"parameters": "p"})
    cache.check_unchanged(FACTS, 1, 2)  # nothing was scored yet
    cache.begin_set(FACTS | {"template": "far", "tokenizer": "far"})
    cache.begin_set(FACTS)
    cache.check_unchanged(FACTS, 1, 2)  # a pass that was killed
    cache.check_unchanged(FACTS | {"data": {"source": "b.jsonl"}}, 1, 2)  # other records
    with pytest.raises(ValueError, match=rf"1 of 2 responses have none. Changed since they were scored: {named}") as e:
        cache.check_unchanged(FACTS | facts, 1, 2)
    assert "far" not in str(e.value)
    with pytest.raises(ValueError, match=r"model.parameters \('p' there, 'q' here\). Undo"):
        ScoreCache(tmp_path, {"parameters": "q"}).check_unchanged(FACTS, 1, 2)
    assert json.loads((cache.folder / "model.json").read_text()) == {"parameters": "p"}
