"""Draws docs/mask.png and docs/deep_mask.png with the code that trains: python -m docs.draw_mask"""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle

from prefjax.analysis import style
from prefjax.models import visible
from prefjax.rows.arrays import Branches, Rows, RowShape
from prefjax.rows.layout import build_rows, lay_out_forest
from prefjax.rows.trees import TokenTree

NODES = [
    ("prompt 1", 5, -1),
    ("chosen", 4, 0),
    ("rejected", 3, 0),
    ("prompt 2", 4, -1),
    ("a", 3, 3),
    ("b", 2, 3),
    ("c", 4, 3),
]
COLOURS = {"prompt": style.BLUE, "response": style.RED}
HIDDEN = "#f4f4f4"
# A dialogue with judged answers at three turns, a word or a mark a token: what is asked, and the answers, best first.
TURNS = [
    ("Is the inn open ?", ["It is .", "Who knows ?"]),
    ("And the kitchen ?", ["Until nine .", "Until eight .", "Ask the cook ."]),
    ("A table ?", ["By the fire .", "No ."]),
]
# What a token is in the records that hold it.
USES = ("context alone", "scored, and then context", "scored alone")
USE_COLOURS = (style.BLUE, style.PURPLE, style.RED)


def main() -> None:
    draw_row(Path(__file__).with_name("mask.png"))
    draw_dialogue(Path(__file__).with_name("deep_mask.png"))


def draw_row(path: Path) -> None:
    """The picture in the README."""
    names, lengths, parents = zip(*NODES, strict=True)
    forest = lay_out_forest(np.array(lengths), np.array(parents))
    mask = np.asarray(visible(jnp.array(forest.visible_until)[None]))[0]
    is_prompt = np.repeat(np.array(parents) < 0, lengths)
    figure, (axes,) = style.panels(6.4, 6.0)
    shade = np.where(mask, np.where(is_prompt[None], 1, 2), 0)
    _show(axes, shade, list(COLOURS.values()), forest.visible_until, forest.positions)
    axes.set_ylabel("query i, labelled with its position", fontsize=9)
    size = len(mask)
    for start, end, name, parent in zip(forest.starts, forest.ends, names, parents, strict=True):
        colour = COLOURS["prompt" if parent < 0 else "response"]
        axes.text((start + end - 1) / 2, -1.0, name, ha="center", va="bottom", color=colour, fontsize=9, rotation=30)
        axes.text(size - 0.3, (start + end - 1) / 2, name, ha="left", va="center", color=colour, fontsize=9)
    words = "The mask of a row that holds two prompts, one with two responses and one with three"
    style.save(figure, path, words)


def draw_dialogue(path: Path) -> None:
    """The picture in docs/trees.md: the records of a dialogue in one row of layout `merged`, as a tree and its mask."""
    vocabulary, trees = dialogue()
    shape = RowShape("merged", 1, 99, 99, len(trees), Branches(3), entries=99)
    rows = build_rows([trees], shape)
    size = int((rows.segment_ids[0] > 0).sum())
    until, position = rows.visible_until[0, :size], rows.positions[0, :size]
    mask = np.asarray(visible(jnp.array(until)[None]))[0]
    use = uses(rows, mask)
    words = [vocabulary[token] for token in rows.tokens[0, :size]]
    figure, (above, below) = style.panels(8.8, 10.6, 2, height_ratios=(1, 3))
    line = np.cumsum(np.append(False, np.diff(position) != 1))  # a token that does not follow the one before it
    for at, word in enumerate(words):
        colour = USE_COLOURS[use[at]]
        above.add_patch(Rectangle((position[at] - 0.46, line[at] - 0.4), 0.92, 0.8, color=colour, alpha=0.16))
        above.text(position[at], line[at], word, ha="center", va="center", fontsize=7, color=colour)
        before = np.flatnonzero(mask[at])[-2] if position[at] else at
        if line[before] != line[at]:
            x = position[at] - 0.5
            above.plot([x, x, x + 0.04], [line[before] + 0.4, line[at], line[at]], color=style.GRAY, linewidth=1)
    above.set(xlim=(-0.6, position.max() + 0.6), ylim=(line.max() + 0.6, -0.6), yticks=[], xlabel="position")
    above.spines[:].set_visible(False)
    above.legend(
        [Rectangle((0, 0), 1, 1, color=colour, alpha=0.5) for colour in USE_COLOURS], USES, ncols=3, **style.LEGEND
    )
    style.title(above, f"{len(trees)} records of a dialogue, {size} tokens")
    _show(below, np.where(mask, 1 + use[None], 0), list(USE_COLOURS), until, words)
    below.set_ylabel("query i")
    style.title(below, "The mask of their row")
    said = "Three judged turns of a dialogue as one tree of tokens, and the mask of the row that holds it"
    style.save(figure, path, said)


def dialogue() -> tuple[list[str], list[TokenTree]]:
    """Words by their ids, and a record of every turn of TURNS, whose prompt is all that led to it."""
    vocabulary = sorted({word for asked, answers in TURNS for text in (asked, *answers) for word in text.split()})
    ids = lambda text: np.array([vocabulary.index(word) for word in text.split()], np.int32)
    trees, prompt = [], np.zeros(0, np.int32)
    for number, (asked, answers) in enumerate(TURNS):
        prompt = np.concatenate([prompt, ids(asked)])
        ranks = -np.arange(len(answers), dtype=np.float32)
        trees.append(TokenTree(prompt, tuple(map(ids, answers)), ranks, example_id=number))
        prompt = np.concatenate([prompt, ids(answers[0])])
    return vocabulary, trees


def uses(rows: Rows, mask: np.ndarray) -> np.ndarray:
    """Of every token the index in USES, by what the ends of its prompts and responses see."""
    context, scored = np.zeros((2, len(mask)), bool)
    for group, slot in np.argwhere(rows.valid[0]):
        path = np.flatnonzero(mask[rows.response_ends[0, group, slot]])
        asked = path <= rows.prompt_ends[0, group]
        context[path[asked]], scored[path[~asked]] = True, True
    return np.where(scored, np.where(context, 1, 2), 0)


def _show(axes: Axes, shade: np.ndarray, colours: list[str], until: np.ndarray, queries: Sequence) -> None:
    """A mask [query, key]: 0 hidden, else 1 + the index of a colour. Keys and queries have labels."""
    size = len(shade)
    axes.imshow(shade, cmap=ListedColormap([HIDDEN, *colours]), vmin=0, vmax=len(colours))
    axes.set_xticks(np.arange(size), until, fontsize=8)
    axes.set_yticks(np.arange(size), queries, fontsize=8)
    axes.set_xticks(np.arange(-0.5, size), minor=True)
    axes.set_yticks(np.arange(-0.5, size), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("key j, labelled with visible_until[j]", fontsize=9)
    axes.spines[:].set_visible(False)


if __name__ == "__main__":
    main()
