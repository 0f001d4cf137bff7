"""Steps and the Grain pipeline: nothing lost, nothing twice, exact resume, the same on any number of hosts."""

import dataclasses
import json

import grain
import numpy as np
import pytest

from prefjax.rows.arrays import LAYOUTS, Branches, Rows, RowShape
from prefjax.rows.layout import build_rows
from prefjax.rows.mismatch import mismatched_baselines
from prefjax.rows.packing import TreeLengths, row_capacity, suggest_shape
from prefjax.rows.parts import write_trees
from prefjax.rows.pipeline import row_dataset
from prefjax.rows.steps import FixedPrompts, FullRows, InOrder, StepSampler, rows_for_prompts, simulate
from prefjax.rows.store import MemoryTrees
from tests.rows.random_trees import random_trees

BRANCHES = Branches(responses=3, baseline=True, auxiliary=True)
COUNT = 83
SOURCE = MemoryTrees(random_trees(COUNT, seed=1))


def shape_for(layout: str, rows: int = 3) -> RowShape:
    return suggest_shape(SOURCE.lengths, layout, BRANCHES, rows, prompt_rows=True, multiple=8).shape


PACKED = shape_for("shared_packed")
BATCHINGS = [
    FullRows(seed=0, epochs=3, window=20),
    FullRows(seed=0, epochs=2),
    FixedPrompts(9, seed=0, epochs=2),
    FullRows(seed=None, epochs=2),
    FixedPrompts(9, seed=None, epochs=2),
    InOrder(),
]


def shape_for_batching(batching, layout: str = "shared_packed") -> RowShape:
    shape = shape_for(layout)
    if not isinstance(batching, FixedPrompts):
        return shape
    return dataclasses.replace(shape, rows=rows_for_prompts(SOURCE.lengths, shape, batching))


def ids(rows: Rows) -> list[int]:
    return rows.example_id[rows.example_id >= 0].tolist()


def assert_equal_rows(first: Rows, second: Rows) -> None:
    for name, a, b in zip(Rows._fields, first, second, strict=True):
        for x, y in zip(a, b, strict=True) if name == "prompts" else [(a, b)]:
            np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batching", BATCHINGS, ids=repr)
def test_every_prompt_comes_once_per_epoch_in_steps_of_one_shape(batching, layout):
    shape = shape_for_batching(batching, layout)
    epochs = 1 if isinstance(batching, InOrder) else batching.epochs
    batches = list(row_dataset(SOURCE, shape, batching))
    drawn = [example for rows in batches for example in ids(rows)]
    assert sorted(drawn) == sorted(list(range(COUNT)) * epochs)
    arrays = [[leaf for leaf in (*rows, *rows.prompts) if isinstance(leaf, np.ndarray)] for rows in batches]
    assert len({tuple(leaf.shape for leaf in leaves) for leaves in arrays}) == 1
    simulated = simulate(StepSampler(SOURCE.lengths, shape, batching))
    assert (simulated.steps, simulated.prompts) == (len(batches), len(drawn))
    counts = [len(ids(rows)) for rows in batches]
    assert (simulated.fewest_prompts, simulated.most_prompts) == (min(counts), max(counts))
    fill = np.mean([(rows.segment_ids > 0).mean() for rows in batches])
    if layout == "merged":  # some trees have their first token in common, which lengths do not say
        assert 0.9 * simulated.fill < fill <= simulated.fill * (1 + 1e-9)
    else:
        assert simulated.fill == pytest.approx(fill)


def test_rows_are_full_but_for_the_last_step_and_none_waits_long():
    batching = FullRows(seed=3, epochs=8, window=40)
    sampler = StepSampler(SOURCE.lengths, PACKED, batching)
    steps = list(sampler.steps())
    assert all(len(step) == PACKED.rows for step in steps[:-1])
    fills = [sampler.real_tokens[row].sum() / PACKED.row_length for step in steps[:-1] for row in step]
    assert np.mean(fills) > 0.95
    assert all((sampler.sizes[row].sum(axis=0) <= row_capacity(PACKED)).all() for step in steps for row in step)
    # A record comes at most a few windows after its place in the shuffled stream.
    stream = sampler._draw(0, 8 * COUNT, 8 * COUNT)
    arrival = {(record, nth): i for i, (record, nth) in enumerate(numbered(stream))}
    order = numbered([record for step in steps for row in step for record in row])
    assert max(i - arrival[key] for i, key in enumerate(order)) < 3 * 40


def numbered(records: list[int]) -> list[tuple[int, int]]:
    """(record, how often it came before)."""
    seen: dict[int, int] = {}
    return [(record, seen.__setitem__(record, seen.get(record, -1) + 1) or seen[record]) for record in records]


def test_the_emptiest_row_of_a_window_waits_for_the_next_one():
    """Even where a step is a single row: otherwise every window would end in a row of leftovers."""
    shape = dataclasses.replace(PACKED, rows=1)
    sampler = StepSampler(SOURCE.lengths, shape, FullRows(seed=3, epochs=8, window=40))
    window = sampler.next_window(0, [])
    emitted = [record for step in window.steps for row in step for record in row]
    assert window.carried and sorted(emitted + window.carried) == sorted(
        sampler._draw(0, window.position, window.position)
    )
    emptiest = sampler.real_tokens[window.carried].sum()
    assert emptiest <= min(sampler.real_tokens[row].sum() for step in window.steps for row in step)


def test_full_rows_leave_a_window_in_random_order():
    """First-fit-decreasing opens rows with the longest trees first; a run must not see them first."""
    sampler = StepSampler(SOURCE.lengths, PACKED, FullRows(seed=0, epochs=1))
    longest = [max(sampler.sizes[row, 0]) for step in sampler.steps() for row in step]
    assert longest != sorted(longest, reverse=True)
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.7


def test_every_epoch_and_every_seed_has_its_own_order():
    def order(batching: FixedPrompts) -> list[list[int]]:
        drawn = [r for step in StepSampler(SOURCE.lengths, shape, batching).steps() for row in step for r in row]
        return [drawn[i : i + COUNT] for i in range(0, len(drawn), COUNT)]

    shape = shape_for("shared", rows=1)
    epochs = order(FixedPrompts(1, seed=0, epochs=3))
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0] and list(range(COUNT)) not in epochs
    assert epochs == order(FixedPrompts(1, seed=0, epochs=3))
    assert order(FixedPrompts(1, seed=1, epochs=1))[0] not in epochs


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("batching", BATCHINGS, ids=repr)
def test_resume_is_exact_at_every_step(batching, prefetch):
    dataset = row_dataset(SOURCE, shape_for_batching(batching), batching, prefetch=prefetch)
    whole, states = [], []
    iterator = iter(dataset)
    states.append(iterator.get_state())
    for rows in iterator:
        whole.append(rows)
        states.append(iterator.get_state())
    assert len(whole) >= 4 and next(iterator, None) is next(iterator, None) is None
    for done, state in enumerate(states):
        resumed = iter(dataset)
        resumed.set_state(json.loads(json.dumps(state)))
        rest = list(resumed)
        assert len(rest) == len(whole) - done
        for rows, expected in zip(rest[:3], whole[done:], strict=False):
            assert_equal_rows(rows, expected)
        assert [ids(rows) for rows in rest] == [ids(rows) for rows in whole[done:]]


def test_an_endless_run_resumes_and_keeps_a_small_state():
    dataset = row_dataset(SOURCE, PACKED, FullRows(seed=0, window=20))
    iterator = iter(dataset)
    batches = [next(iterator) for _ in range(60)]  # several epochs
    state = json.dumps(iterator.get_state())
    assert len(state) < 2000
    batches += [next(iterator) for _ in range(5)]
    iterator.set_state(json.loads(state))
    for expected in batches[60:]:
        assert_equal_rows(next(iterator), expected)


def test_grain_checkpoint_saves_and_restores_the_iterator(tmp_path):
    dataset = row_dataset(SOURCE, PACKED, FullRows(seed=0))
    iterator = iter(dataset)
    for _ in range(7):
        next(iterator)
    grain.checkpoint.CheckpointHandler().save(tmp_path, iterator)
    expected = next(iterator)
    restored = grain.checkpoint.CheckpointHandler().restore(tmp_path, iter(dataset))
    assert_equal_rows(next(restored), expected)


@pytest.mark.parametrize(
    "other",
    [
        row_dataset(SOURCE, PACKED, FullRows(seed=1)),
        row_dataset(SOURCE, PACKED, FullRows(seed=0, window=20)),
        row_dataset(SOURCE, dataclasses.replace(PACKED, rows=4), FullRows(seed=0)),
        row_dataset(MemoryTrees(random_trees(COUNT, seed=2)[::-1]), shape_for("shared"), FullRows(seed=0)),
    ],
)
def test_a_state_of_another_run_is_refused(other):
    state = iter(row_dataset(SOURCE, PACKED, FullRows(seed=0))).get_state()
    with pytest.raises(ValueError, match="the data, the row shape"):
        iterator = iter(other)
        iterator.set_state(state)
        next(iterator)


@pytest.mark.parametrize("batching", BATCHINGS, ids=repr)
def test_two_hosts_share_the_rows_of_one(batching):
    """Same number of steps, disjoint, union = all, and together what one host with all the rows produces; 3 rows are
    dealt out as 4."""
    shape = shape_for_batching(batching)
    hosts = [list(row_dataset(SOURCE, shape, batching, host_index=h, host_count=2)) for h in range(2)]
    alone = list(row_dataset(SOURCE, shape, batching, row_multiple=2))
    assert len(hosts[0]) == len(hosts[1]) == len(alone)
    for first, second, both in zip(*hosts, alone, strict=True):
        join = lambda pairs: [None if a is None else np.concatenate([a, b]) for a, b in pairs]
        prompts = type(both.prompts)(*join(zip(first.prompts, second.prompts, strict=True)))
        no_prompts = [rows._replace(prompts=None) for rows in (first, second)]
        assert_equal_rows(Rows(*join(zip(*no_prompts, strict=True)))._replace(prompts=prompts), both)


@pytest.mark.parametrize("layout", ["pairs", "shared_packed"])
def test_a_shift_within_the_step_is_the_same_in_every_layout_and_on_two_hosts(layout):
    """Each prompt of a step is read with the tokens of another record of it; rows hold whichever comes."""
    trees = mismatched_baselines(MemoryTrees(random_trees(30, seed=2, extras=False)), 0, of_step=True)
    batching, branches = FixedPrompts(7, seed=0, epochs=1), Branches(responses=3, baseline=True)
    shape = suggest_shape(trees.lengths, layout, branches, 3, multiple=8).shape
    shape = dataclasses.replace(shape, rows=rows_for_prompts(trees.lengths, shape, batching))
    hosts = [row_dataset(trees, shape, batching, host_index=h, host_count=2) for h in range(2)]
    seen = 0
    for step in zip(*hosts, strict=True):
        members = [example for rows in step for example in ids(rows)]
        expected = trees.of_step(members)
        for rows in step:
            again = build_rows(
                [[expected[int(i)] for i in row[row >= 0]] for row in rows.example_id], shape_of(rows, shape)
            )
            for field in ("tokens", "response_slots", "visible_until"):
                np.testing.assert_array_equal(getattr(rows, field), getattr(again, field), err_msg=field)
            seen += len(ids(rows))
    assert seen == 30


def shape_of(rows: Rows, shape: RowShape) -> RowShape:
    """The shape of one host's rows."""
    return dataclasses.replace(shape, rows=len(rows.example_id))


@pytest.mark.parametrize("batching", [FullRows(seed=0, epochs=2), FixedPrompts(9, seed=0, epochs=2)], ids=repr)
def test_a_state_moves_to_another_number_of_hosts_and_devices(batching):
    shape = shape_for_batching(batching)
    two = iter(row_dataset(SOURCE, shape, batching, host_index=1, host_count=2, row_multiple=8))
    one = iter(row_dataset(SOURCE, shape, batching))
    next(two), next(one)
    one.set_state(two.get_state())
    first = iter(row_dataset(SOURCE, shape, batching, host_index=0, host_count=2, row_multiple=8))
    first.set_state(two.get_state())
    assert ids(next(one)) == ids(next(first)) + ids(next(two))


def test_more_steps_may_need_more_rows_for_the_same_prompts():
    """A state of a run of fixed prompts is good for a longer one, whose fullest step comes later."""
    batching = FixedPrompts(9, seed=0)
    shape = dataclasses.replace(PACKED, rows=rows_for_prompts(SOURCE.lengths, PACKED, batching, steps=2))
    short, longer = (
        iter(row_dataset(SOURCE, dataclasses.replace(shape, rows=rows), batching)) for rows in (shape.rows, 9)
    )
    next(short), next(longer)
    longer.set_state(short.get_state())
    assert ids(next(longer)) == ids(next(short))


def test_fixed_prompts_are_the_same_per_step_in_every_layout():
    batching = FixedPrompts(9, seed=5, epochs=2)
    steps = {
        layout: [sorted(ids(rows)) for rows in row_dataset(SOURCE, shape_for_batching(batching, layout), batching)]
        for layout in LAYOUTS
    }
    assert len(steps["pairs"]) == -(-2 * COUNT // 9)
    assert all(len(step) == 9 for step in steps["pairs"][:-1])
    assert all(steps[layout] == steps["pairs"] for layout in LAYOUTS)
    # Rows keep the order of the stream by their first prompt, as far as packing allows.
    alone, packed = (
        StepSampler(SOURCE.lengths, shape, batching)
        for shape in (shape_for("shared", rows=9), dataclasses.replace(PACKED, rows=9, row_length=100))
    )
    for stream, step in zip(alone.steps(), packed.steps(), strict=True):
        places = [stream.index([row[0]]) for row in step]
        assert places == sorted(places) and len(step) < len(stream)
    # The bound is tight: one row less does not hold the fullest step, and the error says what to do.
    shape = shape_for_batching(batching)
    with pytest.raises(ValueError, match="needs .* rows for its 9 prompts.*rows_for_prompts"):
        list(StepSampler(SOURCE.lengths, dataclasses.replace(shape, rows=shape.rows - 1), batching).steps())


def test_with_one_prompt_per_row_both_batching_rules_are_one():
    shape = shape_for("shared", rows=9)
    fixed = [ids(rows) for rows in row_dataset(SOURCE, shape, FixedPrompts(9, seed=5, epochs=2))]
    assert [ids(rows) for rows in row_dataset(SOURCE, shape, FullRows(seed=5, epochs=2))] == fixed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_seed_steps_hold_the_next_records_in_every_epoch(layout):
    """Order is kept from step to step; within one, rows hold what fits."""
    for batching in (FullRows(seed=None, epochs=2), FixedPrompts(9, seed=None, epochs=2)):
        shape = shape_for_batching(batching, layout)
        at = 0
        for step in StepSampler(SOURCE.lengths, shape, batching).steps():
            records = [record for row in step for record in row]
            assert sorted(records) == sorted(place % COUNT for place in range(at, at + len(records)))
            at += len(records)
        assert at == 2 * COUNT
    packed = simulate(StepSampler(SOURCE.lengths, PACKED, FullRows(seed=None, epochs=20)))
    assert packed.fill > 0.8, "rows are filled, though not as full as where records may wait"


def test_shuffled_steps_are_those_of_the_runs_before_there_was_an_order():
    for epochs in (None, 2):  # a length that may change
        sampler = StepSampler(SOURCE.lengths, PACKED, FullRows(seed=0, epochs=epochs))
        assert sampler.fingerprint == "2bf6e9ad2d969926", "a checkpoint's position would not be taken any more"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_evaluation_steps_hold_the_next_records_in_order(layout):
    steps = [sorted(ids(rows)) for rows in row_dataset(SOURCE, shape_for(layout), InOrder())]
    assert [example for step in steps for example in step] == list(range(COUNT))
    last = list(row_dataset(SOURCE, shape_for(layout, rows=7), InOrder()))[-1]
    assert not last.valid[last.example_id < 0].any()


def test_batches_come_from_disk_with_the_reference_attached(tmp_path):
    prepared = write_trees(tmp_path / "set", random_trees(COUNT, seed=1), manifest={})
    table = np.random.default_rng(0).normal(size=(COUNT, BRANCHES.count)).astype(np.float32)
    batching = FullRows(seed=0, epochs=1)
    from_disk = list(row_dataset(prepared, PACKED, batching, reference=table))
    for rows, expected in zip(from_disk, row_dataset(SOURCE, PACKED, batching), strict=True):
        real = rows.example_id >= 0
        np.testing.assert_array_equal(rows.reference_logp[real], table[rows.example_id[real]])
        assert_equal_rows(rows._replace(reference_logp=None), expected)
    with pytest.raises(ValueError, match="one row per tree and one column per branch"):
        row_dataset(prepared, PACKED, batching, reference=table[:, 1:])


def test_batching_that_cannot_be_carried_out_are_refused():
    with pytest.raises(ValueError, match="endless"):
        simulate(StepSampler(SOURCE.lengths, PACKED, FullRows(seed=0)))
    assert simulate(StepSampler(SOURCE.lengths, PACKED, FullRows(seed=0)), steps=4).steps == 4
    for batching, reason in (
        (FixedPrompts(1000, seed=0), "prompts=1000 per step do not fit"),
        (FullRows(seed=0, window=0), "window=0"),
        (FullRows(seed=0, epochs=0), "epochs=0"),
        (FullRows(seed=0, epochs=1, before=(2,)), r"epochs=1 after \(2,\): a run only becomes longer"),
    ):
        with pytest.raises(ValueError, match=reason):
            row_dataset(SOURCE, PACKED, batching)
    with pytest.raises(ValueError, match="host_index=2"):
        row_dataset(SOURCE, PACKED, InOrder(), host_index=2, host_count=2)
    with pytest.raises(ValueError, match="example .* needs row_length"):
        row_dataset(SOURCE, dataclasses.replace(PACKED, row_length=30), InOrder())
    with pytest.raises(ValueError, match="no trees"):
        StepSampler(TreeLengths.of([]), PACKED, InOrder())


@pytest.mark.parametrize(
    "batching", [FullRows(seed=0, epochs=1, window=20), FixedPrompts(9, seed=0, epochs=1)], ids=repr
)
def test_a_run_that_is_made_longer_ends_its_epochs_as_it_would_have(batching):
    """Wherever it was stopped, and to more epochs or without an end: nothing is lost, nothing comes twice."""
    shape = shape_for_batching(batching)
    longer = dataclasses.replace(batching, epochs=2, before=(1,))
    shape = dataclasses.replace(shape, rows=shape_for_batching(longer).rows)
    first = [ids(rows) for rows in row_dataset(SOURCE, shape, batching)]
    whole = [ids(rows) for rows in row_dataset(SOURCE, shape, longer)]
    assert whole[: len(first)] == first and sorted(sum(whole[len(first) :], [])) == list(range(COUNT))
    assert simulate(StepSampler(SOURCE.lengths, shape, longer)).steps == len(whole)
    stopped = iter(row_dataset(SOURCE, shape, batching, prefetch=0))
    for step in range(len(first)):
        for other in (longer, dataclasses.replace(longer, epochs=None)):
            going_on = iter(row_dataset(SOURCE, shape, other, prefetch=0))
            going_on.set_state(json.loads(json.dumps(stopped.get_state())))
            assert [ids(next(going_on)) for _ in range(len(first) - step)] == first[step:]
        next(stopped)
    going_on = iter(row_dataset(SOURCE, shape, longer, prefetch=0))
    going_on.set_state(stopped.get_state())
    assert [ids(rows) for rows in going_on] == whole[len(first) :]


def test_one_tree_and_one_row_are_enough():
    source = MemoryTrees(random_trees(1))
    shape = suggest_shape(source.lengths, "shared_packed", BRANCHES, 1, multiple=8).shape
    (only,) = row_dataset(source, shape, FullRows(seed=0, epochs=1))
    assert_equal_rows(only, build_rows([[source[0]]], shape)) if shape.prompt_length else None
    assert ids(only) == [0]
    repeated = [ids(rows) for rows in row_dataset(source, shape, FullRows(seed=0, epochs=5))]
    assert sum(map(len, repeated)) == 5
