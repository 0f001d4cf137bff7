"""The store: round trip, identity of the content, and what an interrupted or damaged dataset looks like."""

import collections
import dataclasses
import json
import pickle
import resource

import numpy as np
import pytest

from prefjax.rows.mismatch import mismatched_baselines, mismatched_partners
from prefjax.rows.parts import write_trees
from prefjax.rows.store import MemoryTrees, TreeSource, open_trees
from prefjax.rows.trees import TokenTree
from tests.rows.random_trees import equal_trees, random_trees


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    trees = random_trees(20, seed=1) + random_trees(20, seed=2, extras=False)
    return write_trees(tmp_path_factory.mktemp("store") / "deep" / "set", trees, manifest={"made_from": "random"})


def test_round_trip(prepared):
    trees = random_trees(20, seed=1) + random_trees(20, seed=2, extras=False)
    assert isinstance(prepared, TreeSource) and len(prepared) == 40
    for index in (39, 0, 21, 7, *range(40)):
        expected = dataclasses.replace(trees[index], example_id=index)
        assert equal_trees(prepared[index], expected)
        assert prepared[index].prompt.dtype == prepared[index].responses[0].dtype == np.int32


def test_memory_and_disk_are_the_same_source(prepared):
    memory = MemoryTrees(prepared[i] for i in range(len(prepared)))
    assert isinstance(memory, TreeSource) and memory.content_hash == prepared.content_hash
    np.testing.assert_array_equal(memory.prompt_hashes, prepared.prompt_hashes)
    for field in dataclasses.fields(memory.lengths):
        np.testing.assert_array_equal(getattr(memory.lengths, field.name), getattr(prepared.lengths, field.name))
    for index in range(len(prepared)):
        assert equal_trees(memory[index], prepared[index])


def test_a_loop_over_the_trees_ends(prepared):
    assert [tree.example_id for tree in prepared] == list(range(40))
    with pytest.raises(IndexError, match="tree 40 .* holds 40"):
        prepared[40]


def test_a_copy_opens_the_files_again(prepared):
    copy = pickle.loads(pickle.dumps(prepared))
    assert equal_trees(copy[5], prepared[5]) and copy.content_hash == prepared.content_hash


def test_manifest_is_readable_and_holds_facts_counted_while_writing(tmp_path):
    counts = {"kept": 0}

    def counted():
        for tree in random_trees(3):
            counts["kept"] += 1
            yield tree

    write_trees(tmp_path / "set", counted(), manifest=counts)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["kept"] == manifest["examples"] == 3
    with pytest.raises(ValueError, match="content_hash"):
        write_trees(tmp_path / "other", random_trees(1), manifest={"content_hash": "mine"})
    with pytest.raises(FileExistsError, match="remove it"):
        write_trees(tmp_path / "set", random_trees(1), manifest={})


def changed(trees: list[TokenTree], **fields) -> list[TokenTree]:
    return [*trees[:-1], dataclasses.replace(trees[-1], **fields)]


def test_content_hash_changes_with_any_token_number_boundary_or_order():
    trees = random_trees(4)
    last = trees[-1]
    one_token = last.prompt.copy()
    one_token[-1] += 1
    moved = (np.concatenate([last.prompt[-1:], last.responses[0]]), *last.responses[1:])
    variants = [
        trees,
        changed(trees, prompt=one_token),
        changed(trees, prompt=np.append(last.prompt, 1)),
        changed(trees, prompt=last.prompt[:-1], responses=moved),
        changed(trees, targets=last.targets + 1),
        changed(trees, weight=3.0),
        changed(trees, baseline=None),
        changed(trees, margin=None),
        changed(trees, margin=0.0),
        changed(trees, margin=None, target_probability=last.margin),
        changed(trees, baseline=last.auxiliary, auxiliary=last.baseline),
        trees[::-1],
        trees[:-1],
    ]
    assert len(last.prompt) > 1
    assert len({MemoryTrees(variant).content_hash for variant in variants}) == len(variants)
    renumbered = [dataclasses.replace(tree, example_id=99) for tree in trees]
    assert MemoryTrees(renumbered).content_hash == MemoryTrees(trees).content_hash


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError("disk full")])
def test_an_interrupted_write_leaves_nothing_behind(tmp_path, stop):
    def interrupted():
        yield from random_trees(5)
        raise stop

    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        write_trees(tmp_path / "set", interrupted(), manifest={})
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="no manifest.json"):
        open_trees(tmp_path / "set")


def test_the_target_folder_appears_only_when_complete(tmp_path):
    def watching():
        for tree in random_trees(5):
            assert not (tmp_path / "set").exists()
            yield tree

    assert len(write_trees(tmp_path / "set", watching(), manifest={})) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_full_disk_is_told_with_the_folder(tmp_path):
    """For real: no file may grow beyond so many bytes."""
    trees, (soft, hard) = random_trees(400, seed=3), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=f"^{tmp_path}/.*: prepared data cannot be written .*too large.*make room"):
            write_trees(tmp_path / "set", trees, manifest={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_damage_is_noticed(tmp_path):
    trees = random_trees(3)
    write_trees(tmp_path / "set", trees, manifest={})
    write_trees(tmp_path / "twin", changed(trees, prompt=trees[-1].prompt + 1), manifest={})
    records = next((tmp_path / "set").rglob("*.array_record*"))
    records.write_bytes(next((tmp_path / "twin").rglob("*.array_record*")).read_bytes())
    damaged = open_trees(tmp_path / "set")
    assert equal_trees(damaged[0], trees[0])
    with pytest.raises(ValueError, match="tree 2 .* is not what was written"):
        _ = damaged[2]
    (tmp_path / "set" / "index.npz").write_bytes((tmp_path / "twin" / "index.npz").read_bytes())
    with pytest.raises(ValueError, match="index.npz is not what"):
        open_trees(tmp_path / "set")


def test_what_is_damaged_is_named_or_changes_nothing(tmp_path):
    """Cut, emptied, and with single bits flipped, in every file."""
    trees = random_trees(3)
    write_trees(tmp_path / "set", trees, manifest={})
    outcomes = collections.Counter()
    for path in sorted(path for path in (tmp_path / "set").rglob("*") if path.is_file()):
        whole = path.read_bytes()
        flipped = [
            whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]
            for at in range(0, len(whole), len(whole) // 40 + 1)
        ]
        for data in (b"", whole[: len(whole) // 2], whole[:-1], *flipped):
            path.write_bytes(data)
            try:
                opened = open_trees(tmp_path / "set")
                assert all(equal_trees(*pair) for pair in zip(opened, trees, strict=True)), path
                outcomes["the same"] += 1
            except (ValueError, OSError) as error:
                assert str(tmp_path / "set") in str(error)
                outcomes["refused"] += 1
        path.write_bytes(whole)
    assert min(outcomes.values()) > 20


def test_trees_that_no_layout_can_hold_are_refused(tmp_path):
    tree = random_trees(1)[0]
    with pytest.raises(ValueError, match="tree 0 has an empty prompt"):
        MemoryTrees([dataclasses.replace(tree, prompt=tree.prompt[:0])])
    with pytest.raises(ValueError, match="targets"):
        MemoryTrees([dataclasses.replace(tree, targets=np.zeros(7, np.float32))])
    with pytest.raises(ValueError, match="no trees"):
        write_trees(tmp_path / "set", [], manifest={})


def test_mismatched_partners_have_another_prompt_and_serve_once():
    for seed in range(20):
        prompts = np.random.default_rng(seed).integers(0, 8, 40).astype(np.uint64)
        partners = mismatched_partners(prompts, seed)
        assert (prompts[partners] != prompts).all() and sorted(partners) == list(range(40))
    two = np.array([3, 3, 5, 5], np.uint64)
    assert (two[mismatched_partners(two, 0)] != two).all()
    with pytest.raises(ValueError, match="3 of 5 records share one prompt"):
        mismatched_partners(np.array([1, 1, 1, 2, 3], np.uint64), 0)


def test_mismatched_baselines_are_responses_of_the_partner(prepared):
    source = MemoryTrees(random_trees(30, extras=False))
    first, again, other = (mismatched_baselines(source, seed) for seed in (0, 0, 1))
    assert isinstance(first, TreeSource)
    responses = {response.tobytes(): tree.example_id for tree in source for response in tree.responses}
    for index in range(30):
        baseline = first[index].baseline
        assert responses[baseline.tobytes()] != index or len(baseline) < 3  # short ones may repeat by chance
        assert len(baseline) == first.lengths.baseline[index]
        assert equal_trees(first[index], again[index])
        assert equal_trees(dataclasses.replace(first[index], baseline=None), source[index])
    assert first.content_hash == again.content_hash != other.content_hash != source.content_hash
    with pytest.raises(ValueError, match="already hold baselines"):
        mismatched_baselines(prepared, 0)


def test_a_step_may_shift_its_own_responses():
    """As KTO's paper: a response of another record of the step, each serves once, and another step has others."""
    source = MemoryTrees(random_trees(30, extras=False))
    fixed, shifted = mismatched_baselines(source, 0), mismatched_baselines(source, 0, of_step=True)
    assert isinstance(shifted, TreeSource) and shifted.content_hash != fixed.content_hash

    def partners(step):
        trees = shifted.of_step(step)
        found = {}
        for index in step:
            baseline = trees[index].baseline.tobytes()
            others = [i for i in step if any(baseline == response.tobytes() for response in source[i].responses)]
            assert equal_trees(dataclasses.replace(trees[index], baseline=None), source[index])
            assert len(trees[index].baseline) <= shifted.lengths.baseline[index]
            found[index] = set(others) - {index}
        return found

    step = [28, 3, 11, 9, 20]
    found = partners(step)
    assert all(found.values()) and set.union(*found.values()) == set(step), "every record serves"
    assert partners(step[::-1]) == found, "in whatever order, so in any layout and on any host"
    assert partners([3, 9, 14])[3] != found[3] or partners([3, 20, 14])[3] != found[3]
    for alone in ([7], [7, 7]):
        assert equal_trees(shifted.of_step(alone)[7], fixed[7]), "of one prompt alone: that drawn once"


def test_no_prompt_of_a_step_meets_a_response_to_itself():
    trees = random_trees(6, extras=False)
    twice = [dataclasses.replace(tree, prompt=trees[i // 2].prompt) for i, tree in enumerate(trees)]
    source = MemoryTrees(twice)
    shifted = mismatched_baselines(source, 0, of_step=True).of_step(range(6))
    for index in range(6):
        same = [response.tobytes() for i in (index, index ^ 1) for response in source[i].responses if len(response) > 2]
        assert shifted[index].baseline.tobytes() not in same
