"""Draws docs/mask.png, the picture in the README, with the code that trains: python docs/draw_mask.py"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.colors import ListedColormap

from prefjax.analysis import style
from prefjax.models import visible
from prefjax.rows.layout import lay_out_forest

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


def main() -> None:
    names, lengths, parents = zip(*NODES, strict=True)
    forest = lay_out_forest(np.array(lengths), np.array(parents))
    mask = np.asarray(visible(jnp.array(forest.visible_until)[None]))[0]
    is_prompt = np.repeat(np.array(parents) < 0, lengths)
    shade = np.where(mask, np.where(is_prompt[None], 1, 2), 0)
    figure, (axes,) = style.panels(6.4, 6.0)
    axes.imshow(shade, cmap=ListedColormap(["#f4f4f4", COLOURS["prompt"], COLOURS["response"]]))
    size = len(mask)
    axes.set_xticks(np.arange(size), forest.visible_until, fontsize=8)
    axes.set_yticks(np.arange(size), forest.positions, fontsize=8)
    axes.set_xticks(np.arange(-0.5, size), minor=True)
    axes.set_yticks(np.arange(-0.5, size), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    for start, end, name, parent in zip(forest.starts, forest.ends, names, parents, strict=True):
        colour = COLOURS["prompt" if parent < 0 else "response"]
        axes.text((start + end - 1) / 2, -1.0, name, ha="center", va="bottom", color=colour, fontsize=9, rotation=30)
        axes.text(size - 0.3, (start + end - 1) / 2, name, ha="left", va="center", color=colour, fontsize=9)
    axes.set_xlabel("key j, labelled with visible_until[j]", fontsize=9)
    axes.set_ylabel("query i, labelled with its position", fontsize=9)
    axes.spines[:].set_visible(False)
    words = "The mask of a row that holds two prompts, one with two responses and one with three"
    style.save(figure, Path(__file__).with_name("mask.png"), words)


if __name__ == "__main__":
    main()
