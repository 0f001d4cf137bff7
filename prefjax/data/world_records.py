"""Which records of the synthetic world an objective is given."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from prefjax.data.synthetic import World
from prefjax.data.synthetic_trees import TREES, dialogue_demonstrations, dialogues, solutions
from prefjax.options import check_ranges, option
from prefjax.requirements import Requirements

_RANKED = 4  # responses of a ranking


@dataclasses.dataclass(frozen=True)
class WorldOptions:
    """The synthetic world's draws. Held-out labels are clean, whatever makes training labels noisy."""

    train_examples: int = option(8192, "training records", at_least=1)
    eval_examples: int = option(512, "held-out records", at_least=1)
    temperature: float = option(0.0, "of the Bradley-Terry draw of training labels; 0: the better one wins", at_least=0)
    flip_rate: float = option(0.0, "share of training labels that are flipped", at_least=0, at_most=1)
    seed: int = option(0, "of the draws", at_least=0, at_most=2**31 - 1)
    trees: str = option(
        "none",
        'examples that are trees, scored by gold reward (docs/trees.md): "dialogues" of three answers, "solutions" of '
        "four steps",
        choices=TREES,
    )

    def __post_init__(self):
        check_ranges(self, "data.world")


def world_records(options: WorldOptions, requires: Requirements, split: str) -> tuple[str, Iterator[dict[str, Any]]]:
    """Rows of a split and what they are called. Raises ValueError where trees are to have noise, which none has."""
    if options.trees != "none" and (options.temperature or options.flip_rate):
        raise ValueError(f"data.world.trees={options.trees!r} scores by gold reward: drop temperature and flip_rate")
    world = World(options.seed)
    count = options.train_examples if split == "train" else options.eval_examples
    noise = dict(temperature=options.temperature, flip_rate=options.flip_rate) if split == "train" else {}
    if requires.imitates and options.trees == "dialogues":
        kind, records = "dialogue-demonstrations", dialogue_demonstrations(world, count, split=split)
    elif options.trees != "none" and not requires.imitates:
        kind = options.trees
        records = (dialogues if kind == "dialogues" else solutions)(world, count, split=split)
    elif requires.imitates:
        kind, records = "demonstrations", world.demonstrations(count, split=split)
    elif requires.group_size is None and requires.reads == "rewards":
        # Held-out rewards come two to a prompt, so that reward accuracy can be read.
        kind = "rewarded" if split == "train" else "rankings"
        records = world.rewarded(count) if split == "train" else world.rankings(count, 2, split=split)
    elif requires.group_size is None and requires.reads == "scores":
        kind, records = f"rankings{_RANKED}", world.rankings(count, _RANKED, split=split)
    elif requires.token_labels:
        kind, records = "annotated", world.annotated(count, split=split, **noise)
    elif requires.pair_numbers or requires.reads in ("scores", "probabilities"):
        # What grades a pair is no noise of its label, so held-out pairs have it too.
        grades = dict(temperature=options.temperature, flip_rate=options.flip_rate)
        kind, records = "graded", world.graded(count, split=split, **grades)
    elif requires.group_size is None and split == "train":
        kind, records = "unpaired", world.unpaired(count, split=split, **noise)
    else:
        kind, records = "pairs", world.pairs(count, split=split, **noise)
    return kind, records
