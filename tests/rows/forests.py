"""Random preference forests, and what must be true of a row that holds them merged.

python -m tests.rows.forests 10000
"""

import sys

import numpy as np

from prefjax.rows.arrays import Branches, Rows, RowShape
from prefjax.rows.layout import branch_slots, build_rows
from prefjax.rows.trees import TokenTree, is_scored, token_ids

BRANCHES = Branches(3, baseline=True, longest=12)


def related_trees(
    count: int, *, seed: int, depth: int = 6, responses: int = 3, vocabulary: int = 6, longest: int = 12
) -> list[TokenTree]:
    """Trees whose prompts are repeated, continue other trees' responses or begin like them, up to `depth` turns deep;
    responses begin alike, are equal, go on where another ends, or hold tokens that are not scored."""
    rng = np.random.default_rng(seed)
    ids = lambda: rng.integers(1, vocabulary, rng.integers(1, 5)).astype(np.int32)
    made: list[TokenTree] = []
    contexts = [(ids(), 1)]  # what a prompt may be, and its depth
    for i in range(count):
        prompt, turns = contexts[rng.integers(len(contexts))] if rng.random() < 0.8 else (ids(), 1)
        branches = [ids()]
        while len(branches) < responses:
            other = branches[rng.integers(len(branches))]
            branches.append([ids(), other, np.concatenate([other, ids()]), other[:1]][rng.integers(4)][:longest])
        branches = [np.where(rng.random(len(b)) < 0.85, b, ~b).astype(np.int32) for b in branches]
        kept = 1 + int(rng.integers(responses))
        if responses == 2:
            kept = 2
        made.append(
            TokenTree(
                prompt=prompt,
                responses=tuple(branches[:kept]),
                targets=np.arange(kept, 0, -1, dtype=np.float32) - (kept == 2),
                baseline=ids(),
                auxiliary=ids(),
                weight=1 + 0.5 * (i % 3),
                margin=float(rng.normal()),
                target_probability=float(rng.uniform()),
                token_weight=tuple(rng.uniform(-0.5, 2, len(b)).astype(np.float32) for b in branches[:kept]),
                token_segment=tuple((np.cumsum(rng.random(len(b)) < 0.5)).astype(np.int32) for b in branches[:kept]),
                example_id=i,
            )
        )
        if turns < depth:
            contexts += [(np.concatenate([prompt, token_ids(b), ids()[:2]]), turns + 1) for b in branches[:kept]]
            contexts.append((np.concatenate([prompt, ids()]), turns))
    return made


def merged_row(trees: list[TokenTree], branches: Branches = BRANCHES) -> Rows:
    """All trees in one row, whatever it needs."""
    total = sum(len(tree.prompt) + len(branch) for tree in trees for branch in tree.branches)
    return build_rows([trees], RowShape("merged", 1, total, total, len(trees), branches, entries=total))


def merged_mask(length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(visible_until, positions), each [length], of a row with as many deep trees as it holds, and padding."""
    rows = merged_row(related_trees(length // 10, seed=seed))
    used = int((rows.segment_ids[0] > 0).sum())
    alone = np.arange(used, length, dtype=np.int32)
    until, positions = rows.visible_until[0, :used], rows.positions[0, :used]
    return np.concatenate([until, alone + 1]), np.concatenate([positions, 0 * alone])


def by_entry(rows: Rows) -> Rows:
    """Targets and predictors of every entry, as the layouts that merge nothing have them."""
    if rows.entries is None:
        return rows
    of = lambda x: np.take_along_axis(x, rows.entries, axis=1)
    return rows._replace(target_ids=of(rows.target_ids), predictors=of(rows.predictors), entries=None)


def check_row(trees: list[TokenTree], rows: Rows, branches: Branches = BRANCHES) -> None:
    """Asserts that every chain is spelled by what each of its tokens sees, every scored entry stands in its response
    and is predicted from its own prefix, and no token stands twice below one parent."""
    used = int((rows.segment_ids[0] > 0).sum())
    tokens, positions, until = (x[0][:used] for x in (rows.tokens, rows.positions, rows.visible_until))
    index = np.arange(used)
    assert until.max() <= used  # padding sees itself alone
    sees = (index <= index[:, None]) & (index[:, None] < until)  # [query, key]
    weights, entries = rows.target_weights[0] > 0, rows.entries[0]
    found, parents = 0, {}
    for g, tree in enumerate(trees):
        for slot, branch in branch_slots(tree, branches):
            chain = np.concatenate([tree.prompt, token_ids(branch)])
            path = np.flatnonzero(sees[rows.response_ends[0, g, slot]])
            assert sees[path].sum(axis=1).tolist() == list(range(1, len(path) + 1))
            assert sees[path[:, None], path].sum() == len(path) * (len(path) + 1) // 2
            assert tokens[path].tolist() == chain.tolist() and positions[path].tolist() == list(range(len(chain)))
            parents |= {int(own): int(above) for above, own in zip([-1, *path[:-1]], path, strict=True)}
            assert rows.prompt_ends[0, g] == path[len(tree.prompt) - 1]
            own = weights & (rows.response_slots[0] == g * branches.count + slot)
            places = path[len(tree.prompt) :][is_scored(branch)]
            heads = entries[own]
            assert rows.target_ids[0, heads].tolist() == tokens[places].tolist()
            assert rows.predictors[0, heads].tolist() == [parents[int(place)] for place in places]
            found += len(places)
            if slot < branches.responses and branches.longest:
                listed = rows.response_tokens[0, g, slot]
                assert entries[listed[listed >= 0]].tolist() == heads.tolist()
    assert found == weights.sum() and len(parents) == used
    assert len({(above, tokens[own]) for own, above in parents.items()}) == used
    scored = rows.scored[0]
    pairs = set(zip(rows.predictors[0, scored].tolist(), rows.target_ids[0, scored].tolist(), strict=True))
    assert len(pairs) == scored.sum() and set(entries[weights]) == set(range(int(scored.sum())))


def main(forests: int) -> None:
    """Checks that many forests and says what sharing came to."""
    separate = merged = 0
    for seed in range(forests):
        trees = related_trees(1 + seed % 12, seed=seed)
        rows = merged_row(trees)
        check_row(trees, rows)
        separate += sum(len(tree.prompt) + len(branch) for tree in trees for _, branch in branch_slots(tree, BRANCHES))
        merged += int((rows.segment_ids > 0).sum())
    print(f"{forests:,} forests are as they must be: {separate:,} tokens of prompts and branches stand as {merged:,}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
