"""Token trees laid out in rows: positions, segments, the mask's one integer per key, and what to score from where.

A row is a forest written depth first. Everything below follows from the lengths and parents of its nodes; no token is
copied in layouts `shared` and `shared_packed`. `pairs` and `packed_pairs` write one prompt + response chain per branch,
which is the same forest with more trunks; `merged` writes once whatever the chains of a row have in common from their
start. Pure NumPy. Shape letters as in `prefjax.rows.arrays`; M is nodes of a row.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from prefjax.requirements import PAIR_NUMBERS
from prefjax.rows.arrays import LAYOUTS, TOKEN_DTYPES, Branches, PromptRows, Rows, RowShape
from prefjax.rows.trees import TokenTree, is_scored, token_ids
from prefjax.rows.tries import merge


class ForestLayout(NamedTuple):
    """Where the M nodes of a forest, and their T' = sum(lengths) tokens, lie when written depth first. int32."""

    starts: np.ndarray  # [M] index of the node's first token
    ends: np.ndarray  # [M] one past its last token
    positions: np.ndarray  # [T'] tokens before this one on the path from the root: restarts after the parent's end
    segment_ids: np.ndarray  # [T'] 1 + node index
    visible_until: np.ndarray  # [T'] one past the last token of the node's last descendant


def lay_out_forest(lengths: Int[np.ndarray, "M"], parents: Int[np.ndarray, "M"]) -> ForestLayout:
    """Lays out a forest given in depth-first order.

    lengths  [M] tokens of every node, >= 1
    parents  [M] index of the node's parent, smaller than its own; -1 for a root

    Key j is visible to query i iff j <= i < visible_until[j], because a node's descendants are contiguous in
    depth-first order. Raises ValueError when a node is empty or the order is not depth first.
    """
    if np.any(lengths < 1):
        raise ValueError(f"node {int(np.argmax(lengths < 1))} of the forest is empty: every node needs >= 1 token")
    ends = np.cumsum(lengths, dtype=np.int32)
    starts = (ends - lengths).astype(np.int32)
    depths = np.zeros_like(starts)  # position of the node's first token
    last = ends.copy()  # end of the node's last descendant
    path: list[int] = []  # the nodes from the root to the previous node
    for node, parent in enumerate(parents.tolist()):
        while path and path[-1] != parent:
            path.pop()
        if parent >= 0:
            if not path:
                raise ValueError(
                    f"node {node}: its parent {parent} is not on the path to node {node - 1}, "
                    "so the nodes are not in depth-first order"
                )
            depths[node] = depths[parent] + lengths[parent]
        path.append(node)
    for node in range(len(parents) - 1, -1, -1):  # children come after their parent: one backward sweep is enough
        if parents[node] >= 0:
            last[parents[node]] = max(last[parents[node]], last[node])
    tokens = np.arange(ends[-1] if len(ends) else 0, dtype=np.int32)
    return ForestLayout(
        starts=starts,
        ends=ends,
        positions=tokens - np.repeat(starts - depths, lengths),
        segment_ids=np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths),
        visible_until=np.repeat(last, lengths),
    )


def branch_slots(tree: TokenTree, branches: Branches) -> list[tuple[int, np.ndarray]]:
    """(slot, token ids) of every branch of this tree that the run asks for, in slot order.

    Slots 0..K-1 are responses (a tree may have fewer: the remaining slots are invalid), then the baseline and the
    auxiliary branch. Branches the run does not ask for are left out. Raises ValueError when the tree has more than K
    responses, lacks a branch that the run asks for, or holds an empty one.
    """
    if not 1 <= len(tree.responses) <= branches.responses:
        raise ValueError(
            f"example {tree.example_id} has {len(tree.responses)} responses, but the row shape holds "
            f"1 to {branches.responses}: raise branches.responses or select responses first"
        )
    longest = max(map(len, tree.responses))
    if branches.longest and longest > branches.longest:
        raise ValueError(
            f"example {tree.example_id} has a response of {longest} tokens, but branches.longest is "
            f"{branches.longest}: raise it"
        )
    slots = list(enumerate(tree.responses))
    for name, wanted, slot in (
        ("baseline", branches.baseline, branches.baseline_slot),
        ("auxiliary", branches.auxiliary, branches.auxiliary_slot),
    ):
        if wanted:
            branch = getattr(tree, name)
            if branch is None:
                raise ValueError(f"example {tree.example_id} has no {name} branch, but branches.{name} is True")
            slots.append((slot, branch))
    return slots


class _Node(NamedTuple):
    tokens: np.ndarray
    parent: int  # index in the row's node list, -1 for a prompt
    slot: int  # g * N + n, -1 for a prompt


def _row_nodes(trees: Sequence[TokenTree], shape: RowShape) -> list[list[_Node]]:
    """Depth-first nodes of the row that holds these trees; of the N rows of one tree in layout `pairs`."""
    count = shape.branches.count
    if shape.layout == "pairs":
        rows: list[list[_Node]] = [[] for _ in range(count)]
        for tree in trees:
            for slot, branch in branch_slots(tree, shape.branches):
                rows[slot] = [_Node(tree.prompt, -1, -1), _Node(branch, 0, slot)]
        return rows
    nodes: list[_Node] = []
    for group, tree in enumerate(trees):
        trunk = -1
        for slot, branch in branch_slots(tree, shape.branches):
            if trunk < 0 or shape.layout == "packed_pairs":
                trunk = len(nodes)
                nodes.append(_Node(tree.prompt, -1, -1))
            nodes.append(_Node(branch, trunk, group * count + slot))
    return [nodes]


def _empty_rows(shape: RowShape) -> Rows:
    """Fully padded rows: every token sees itself only, nothing is scored, no slot is valid."""
    groups, row_count = shape.rows, shape.rows * (shape.branches.count if shape.layout == "pairs" else 1)
    entries = shape.entries if shape.layout == "merged" else shape.scored_length
    responses = (groups, shape.groups, shape.branches.responses)
    alone = np.arange(1, max(shape.row_length, shape.prompt_length) + 1, dtype=np.int32)

    def zeros(*dims: int, dtype: type = np.int32) -> np.ndarray:
        return np.zeros(dims, dtype)

    prompts = None
    if shape.prompt_length:
        prompts = PromptRows(
            tokens=zeros(groups, shape.prompt_length),
            positions=zeros(groups, shape.prompt_length),
            visible_until=np.tile(alone[: shape.prompt_length], (groups, 1)),
            prompt_ends=zeros(groups, shape.groups),
        )
    return Rows(
        tokens=zeros(row_count, shape.row_length),
        positions=zeros(row_count, shape.row_length),
        segment_ids=zeros(row_count, shape.row_length),
        visible_until=np.tile(alone[: shape.row_length], (row_count, 1)),
        target_ids=zeros(row_count, shape.scored_length),
        predictors=zeros(row_count, shape.scored_length),
        response_slots=zeros(row_count, entries),
        target_weights=zeros(row_count, entries, dtype=np.float32),
        prompt_ends=zeros(groups, shape.groups),
        response_ends=zeros(groups, shape.groups, shape.branches.count),
        target=zeros(*responses, dtype=np.float32),
        valid=zeros(*responses, dtype=np.bool_),
        weight=zeros(groups, shape.groups, dtype=np.float32),
        example_id=np.full((groups, shape.groups), -1, np.int32),
        prompts=prompts,
        response_tokens=zeros(*responses, shape.branches.longest) - 1 if shape.branches.longest else None,
        entries=zeros(row_count, entries) if shape.layout == "merged" else None,
        **{name: zeros(groups, shape.groups, dtype=np.float32) for name in shape.carries if name in PAIR_NUMBERS},
        **{name: zeros(row_count, entries, dtype=TOKEN_DTYPES[name]) for name in shape.carries if name in TOKEN_DTYPES},
    )


def _bound(used: int, bound: int, field: str, trees: Sequence[TokenTree]) -> None:
    if used > bound:
        raise ValueError(
            f"a row with examples {[tree.example_id for tree in trees]} needs {field} >= {used}, "
            f"but it is {bound}: raise {field} or pack fewer trees"
        )


def _write_tokens(rows: Rows | PromptRows, row: int, tokens: Sequence[np.ndarray], forest: ForestLayout) -> None:
    used = len(forest.positions)
    rows.tokens[row, :used] = token_ids(np.concatenate(tokens))
    rows.positions[row, :used] = forest.positions
    rows.visible_until[row, :used] = forest.visible_until


def _said(tree: TokenTree, name: str) -> Any:
    """What the data say of a tree under a name of `RowShape.carries`."""
    if (value := getattr(tree, name)) is None:
        raise ValueError(
            f"example {tree.example_id} has no {name}, but shape.carries asks for it: prepare the data for an "
            "objective that reads it"
        )
    return value


def _token_labels(tree: TokenTree, name: str, slot: int, branch: np.ndarray, shape: RowShape) -> np.ndarray:
    """[L] what the data say of every token of this branch; 0 where it is no response."""
    labels = _said(tree, name)
    return labels[slot] if slot < shape.branches.responses else np.zeros(len(branch))


def _write_scored(rows: Rows, row: int, nodes: Sequence[_Node], forest: ForestLayout) -> np.ndarray:
    """Fills what to score in this row: the tokens of all branches. Returns [M] each branch's last prompt position."""
    slots = np.array([node.slot for node in nodes])
    prompt_ends = forest.ends[[node.parent for node in nodes]] - 1
    scored = slots >= 0
    lengths = (forest.ends - forest.starts)[scored]
    firsts = np.cumsum(lengths) - lengths  # where each branch begins among the scored tokens
    total = int(lengths.sum())
    where = np.arange(total) + np.repeat(forest.starts[scored] - firsts, lengths)
    rows.target_ids[row, :total] = rows.tokens[row, where]
    rows.predictors[row, :total] = where - 1
    rows.predictors[row, firsts] = prompt_ends[scored]  # the last prompt token predicts every branch's first token
    rows.response_slots[row, :total] = np.repeat(slots[scored], lengths)
    rows.target_weights[row, :total] = is_scored(np.concatenate([node.tokens for node in nodes if node.slot >= 0]))
    return prompt_ends


def build_rows(groups_per_row: Sequence[Sequence[TokenTree]], shape: RowShape) -> Rows:
    """Writes token trees into rows of one static shape.

    groups_per_row  at most B lists of at most G trees; missing rows and groups are padding (valid False, example_id -1)
    shape           layout and bounds; R = B, or B * N in layout `pairs`, where row b * N + n holds branch n of group b

    Every branch token (EOS included) is an input and is scored with weight 1, or 0 where the tree holds it as not
    scored. `prompt_ends` points at the group's first copy of its prompt. Prompt rows are built when
    shape.prompt_length > 0. reference_logp is None; see `attach_reference`. Raises ValueError naming examples and the
    field to raise when something does not fit.
    """
    if shape.layout not in LAYOUTS:
        raise ValueError(f"layout is {shape.layout!r}, expected one of {LAYOUTS}")
    if shape.layout in ("pairs", "shared") and shape.groups != 1:
        raise ValueError(f"layout {shape.layout!r} holds one prompt per row: groups must be 1, not {shape.groups}")
    if len(groups_per_row) > shape.rows:
        raise ValueError(f"{len(groups_per_row)} rows given, but shape.rows is {shape.rows}")
    rows = _empty_rows(shape)
    write = _write_merged if shape.layout == "merged" else _write_nodes
    for b, trees in enumerate(groups_per_row):
        _bound(len(trees), shape.groups, "groups", trees)
        for g, tree in enumerate(trees):
            _write_group(rows, b, g, tree, shape)
        if trees:
            write(rows, b, trees, shape)
        if rows.prompts is not None and trees:
            lengths = np.array([len(tree.prompt) for tree in trees])
            _bound(int(lengths.sum()), shape.prompt_length, "prompt_length", trees)
            forest = lay_out_forest(lengths, np.full(len(trees), -1))
            _write_tokens(rows.prompts, b, [tree.prompt for tree in trees], forest)
            rows.prompts.prompt_ends[b, : len(trees)] = forest.ends - 1
    return rows


def _write_group(rows: Rows, b: int, g: int, tree: TokenTree, shape: RowShape) -> None:
    """What a tree says of its prompt and of whole responses."""
    responses = len(tree.responses)
    rows.target[b, g, :responses] = tree.targets
    rows.valid[b, g, :responses] = True
    rows.weight[b, g] = tree.weight
    rows.example_id[b, g] = tree.example_id
    for name in PAIR_NUMBERS:
        if name in shape.carries:
            getattr(rows, name)[b, g] = _said(tree, name)


def _write_nodes(rows: Rows, b: int, trees: Sequence[TokenTree], shape: RowShape) -> None:
    """The tokens of a row of groups, and what to score of them, where every tree is written by itself."""
    copies = len(rows.tokens) // shape.rows
    for n, nodes in enumerate(_row_nodes(trees, shape)):
        if not nodes:
            continue
        row = b * copies + n
        lengths = np.array([len(node.tokens) for node in nodes])
        _bound(int(lengths.sum()), shape.row_length, "row_length", trees)
        _bound(sum(len(node.tokens) for node in nodes if node.slot >= 0), shape.scored_length, "scored_length", trees)
        forest = lay_out_forest(lengths, np.array([node.parent for node in nodes]))
        _write_tokens(rows, row, [node.tokens for node in nodes], forest)
        rows.segment_ids[row, : len(forest.segment_ids)] = forest.segment_ids
        prompt_ends = _write_scored(rows, row, nodes, forest)
        start = 0  # of the branch among the row's scored tokens
        for node, prompt_end, end in zip(nodes, prompt_ends, forest.ends, strict=True):
            if node.slot < 0:
                continue
            group, branch = divmod(node.slot, shape.branches.count)
            rows.response_ends[b, group, branch] = end - 1
            if branch == 0:  # response 0 always exists and hangs below the group's first copy
                rows.prompt_ends[b, group] = prompt_end
            if rows.response_tokens is not None and branch < shape.branches.responses:
                own = start + np.flatnonzero(is_scored(node.tokens))
                rows.response_tokens[b, group, branch, : len(own)] = n * shape.scored_length + own
            after = start + len(node.tokens)
            for name in TOKEN_DTYPES:
                if name in shape.carries:
                    labels = _token_labels(trees[group], name, branch, node.tokens, shape)
                    getattr(rows, name)[row, start:after] = labels
            start = after


def _write_merged(rows: Rows, b: int, trees: Sequence[TokenTree], shape: RowShape) -> None:
    """The same where all prompts and branches of the row are one trie. Entries are the scored tokens of every branch;
    a token that several have, or that others have in their prompts, stands and is scored once."""
    chains = [(g, *branch) for g, tree in enumerate(trees) for branch in branch_slots(tree, shape.branches)]
    prompts = [len(trees[g].prompt) for g, _, _ in chains]
    trie = merge([np.concatenate([trees[g].prompt, token_ids(branch)]) for g, _, branch in chains], prompts)
    _bound(len(trie.tokens), shape.row_length, "row_length", trees)
    forest = lay_out_forest(trie.lengths, trie.parents)
    _write_tokens(rows, b, [trie.tokens], forest)
    rows.segment_ids[b, : len(forest.segment_ids)] = forest.segment_ids
    scored = [is_scored(branch) for _, _, branch in chains]
    own = [path[prompt:][kept] for path, prompt, kept in zip(trie.paths, prompts, scored, strict=True)]
    places, entries = np.unique(np.concatenate(own), return_inverse=True)
    _bound(len(places), shape.scored_length, "scored_length", trees)
    _bound(len(entries), shape.entries, "entries", trees)
    rows.target_ids[b, : len(places)] = trie.tokens[places]
    rows.predictors[b, : len(places)] = trie.before[places]
    rows.entries[b, : len(entries)] = entries
    rows.target_weights[b, : len(entries)] = 1
    start = 0
    for (g, slot, branch), path, prompt, kept in zip(chains, trie.paths, prompts, scored, strict=True):
        mine = np.arange(start, start := start + int(kept.sum()))
        rows.response_slots[b, mine] = g * shape.branches.count + slot
        rows.prompt_ends[b, g], rows.response_ends[b, g, slot] = path[prompt - 1], path[-1]
        if rows.response_tokens is not None and slot < shape.branches.responses:
            rows.response_tokens[b, g, slot, : len(mine)] = mine
        for name in TOKEN_DTYPES:
            if name in shape.carries:
                getattr(rows, name)[b, mine] = _token_labels(trees[g], name, slot, branch, shape)[kept]


def attach_reference(rows: Rows, table: Float32[np.ndarray, "n N"]) -> Rows:
    """Fills `reference_logp` [B, G, N] from a precomputed table.

    table  [n, N] float32, nats: log-prob of branch n of example_id i under the reference; 0 for an absent branch, and
           NaN for one that has not been scored.

    The baseline needs no key of its own: its partner is a fixed function of example_id (`mismatched_baselines`).
    Raises ValueError when an example of the batch lies outside the table or has an entry that is not finite.
    """
    real = rows.example_id >= 0
    if rows.example_id.max(initial=-1) >= len(table):
        raise ValueError(
            f"example {rows.example_id.max()} is not in the reference table, which has {len(table)} rows: "
            "it was computed from other data"
        )
    logp = np.where(real[..., None], table[np.maximum(rows.example_id, 0)], np.float32(0))
    missing = ~np.isfinite(logp).all(axis=-1)
    if missing.any():
        raise ValueError(
            f"the reference table has no finite log-prob for example {rows.example_id[missing][0]}: "
            "score the whole dataset again"
        )
    return rows._replace(reference_logp=logp)
