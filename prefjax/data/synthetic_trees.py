"""Trees of the synthetic inn, scored by gold reward: dialogues in which guests stay, and answers in steps."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from prefjax.data.synthetic import FOLLOW_UPS, World, words_said

TREES = ("none", "dialogues", "solutions")
TURNS = 3  # answers of a dialogue


def dialogues(world: World, n: int, *, split: str = "train", turns: int = TURNS) -> Iterator[dict[str, Any]]:
    """n rows {prompt, branches}: at each of `turns` turns two answers of different gold reward, which are their scores.

    The guest goes on from the first of them, which is no better than the other, with one of FOLLOW_UPS. Answers end,
    although the dialogue goes on.
    """

    def branches(rng: np.random.Generator, prompt: str, left: int) -> list[dict[str, Any]]:
        texts, scores = world.distinct_responses(rng, prompt, 2)
        nodes = [{"text": text, "score": score, "ends": True} for text, score in zip(texts, scores, strict=True)]
        if left > 1:
            asked = f"\n{FOLLOW_UPS[rng.integers(len(FOLLOW_UPS))]}\n"
            after = branches(rng, prompt + texts[0] + asked, left - 1)
            nodes[0]["branches"] = [{"text": asked, "branches": after}]
        return nodes

    def one(rng: np.random.Generator, prompt: str) -> dict[str, Any]:
        return {"prompt": prompt, "branches": branches(rng, prompt, turns)}

    return world.records(f"dialogues{turns}", n, split, one)


def dialogue_demonstrations(
    world: World, n: int, *, split: str = "train", turns: int = TURNS
) -> Iterator[dict[str, Any]]:
    """n records {prompt, completion} for SFT: base draws at every turn of such dialogues, one after the other."""

    def one(rng: np.random.Generator, prompt: str) -> list[dict[str, Any]]:
        made = []
        for _ in range(turns):
            made.append({"prompt": prompt, "completion": world.sample_response(rng, prompt)})
            prompt += f"{made[-1]['completion']}\n{FOLLOW_UPS[rng.integers(len(FOLLOW_UPS))]}\n"
        return made

    whole = world.records(f"dialogue demonstrations{turns}", math.ceil(n / turns), split, one)
    return itertools.islice(itertools.chain.from_iterable(whole), n)


def solutions(world: World, n: int, *, split: str = "train") -> Iterator[dict[str, Any]]:
    """n rows {prompt, steps}: an answer word by word, a base draw, each of the three words that earn anything beside
    another base draw of a different reward; their rewards are their scores."""

    def one(rng: np.random.Generator, prompt: str) -> dict[str, Any]:
        slots = world.slots(prompt)
        *words, dish = words_said(world.sample_response(rng, prompt).removesuffix("."), slots)
        steps: list[Any] = []
        for slot, word in zip(slots, words, strict=False):
            other = word
            while slot.reward[other] == slot.reward[word]:
                other = slot.sample(rng)
            space = " " * bool(steps)
            step = lambda word, slot=slot, space=space: {"text": space + word, "score": slot.reward[word]}
            steps.append({**step(word), "alternatives": [step(other)]})
        return {"prompt": prompt, "steps": [*steps, f" {dish}."]}

    return world.records("solutions", n, split, one)
