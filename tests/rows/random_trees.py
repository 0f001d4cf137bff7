"""Small random token trees for the tests of layout, packing, store and pipeline."""

import numpy as np

from prefjax.rows.trees import TokenTree


def random_trees(
    count: int, *, seed: int = 0, most_responses: int = 3, extras: bool = True, longest: int = 9
) -> list[TokenTree]:
    """Trees with 1..most_responses responses of 1..longest tokens; if asked, a baseline, an auxiliary branch, a margin.

    Every other tree has a target_probability.
    """
    rng = np.random.default_rng(seed)

    def ids() -> np.ndarray:
        return rng.integers(1, 1000, rng.integers(1, longest + 1), dtype=np.int32)

    trees = []
    for index in range(count):
        responses = tuple(ids() for _ in range(rng.integers(1, most_responses + 1)))
        trees.append(
            TokenTree(
                prompt=ids(),
                responses=responses,
                targets=rng.normal(size=len(responses)).astype(np.float32),
                baseline=ids() if extras else None,
                auxiliary=ids() if extras else None,
                weight=float(np.float32(rng.uniform(0.5, 2.0))),
                margin=index / 4 - 1 if extras else None,
                target_probability=index % 5 / 4 if index % 2 else None,
                example_id=index,
            )
        )
    return trees


def equal_trees(first: TokenTree, second: TokenTree) -> bool:
    """Same content and example_id."""
    same_branches = len(first.branches) == len(second.branches) and all(
        np.array_equal(a, b) for a, b in zip(first.branches, second.branches, strict=True)
    )
    return (
        same_branches
        and np.array_equal(first.prompt, second.prompt)
        and np.array_equal(first.targets, second.targets)
        and len(first.responses) == len(second.responses)
        and (first.baseline is None, first.auxiliary is None) == (second.baseline is None, second.auxiliary is None)
        and (first.weight, first.example_id) == (second.weight, second.example_id)
        and (first.margin, first.target_probability) == (second.margin, second.target_probability)
    )
