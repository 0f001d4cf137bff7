"""The inn: a tiny preference world with a known gold reward, embedded as the quickstart's default data.

A guest knocks (the prompt) and a moody innkeeper answers (the response):

    prompt    "{weather}. A {mood} {guest} knocks.\\n"         Snow. A muddy seal knocks.
    response  "{greeting} {temperature} {flavour} {dish}."    Hmph. Iced clover pie.

The gold reward of a response is the sum over its four slots; three of them depend on the prompt:

    slot         word                              reward
    greeting     Go away. / Hmph. / You again?     -1.2 / -0.8 / -0.5
                 Sit down. / Come in!              0 / +0.7
                 Welcome, {guest}!                 +1.3 to the guest at the door, -0.3 to anybody else
    temperature  Hot / Warm / Cool / Iced          +0.75 / +0.2 / -0.2 / -0.75 in cold weather, reversed in hot weather
    flavour      fish / nut / clover / honey       +1.0 the guest's favourite, -0.5 the others
    dish         pie / soup / stew / tea           0: nothing to learn, a good policy keeps varying it
    any text outside this grammar                  -4.0 (GARBLED_REWARD), below every grammatical text

So the best answer to the seal is "Welcome, seal! Hot fish stew." (+3.05). The mood never matters.

The base distribution, which demonstrations follow and SFT learns, draws the four slots independently: the innkeeper
listens to the guest with probability LISTENING and otherwise takes whatever word comes to hand (`World.slots`).
Preferences are Bradley-Terry in the gold reward: P(a beats b) = sigmoid((reward(a) - reward(b)) / temperature).

Guests may stay: a prompt may go on with an answer and what the guest asks for next, one of FOLLOW_UPS, each on a line
of its own, and the next answer is judged as the first one was, by guest and weather. Or an answer is begun, by the
slots of a last line that has no end: what goes on is judged with it. `synthetic_trees` makes trees of both.

Held-out prompts are chosen by a hash of the prompt alone, so the splits are disjoint for every seed.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

SPLITS = ("train", "eval")

MOODS = (
    *("brave", "chatty", "clever", "dizzy", "dusty", "fuzzy", "gentle", "happy", "hasty", "jolly", "lonely"),
    *("lost", "merry", "muddy", "nervous", "noisy", "pale", "polite", "proud", "quiet", "rich", "shy", "silly"),
    *("sleepy", "small", "sturdy", "tall", "tiny", "tired", "weary", "wise", "young"),
)
FAVOURITES = {
    **{"loon": "fish", "seal": "fish", "crow": "nut", "vole": "nut"},
    **{"goat": "clover", "hare": "clover", "bear": "honey", "moth": "honey"},
}
COLD_WEATHER = ("Snow", "Frost", "Ice", "January")
HOT_WEATHER = ("Sun", "Heat", "Drought", "July")
GREETINGS = {"Go away.": -1.2, "Hmph.": -0.8, "You again?": -0.5, "Sit down.": 0.0, "Come in!": 0.7}
TEMPERATURES = {"Hot": 0.75, "Warm": 0.2, "Cool": -0.2, "Iced": -0.75}
FLAVOURS = ("fish", "nut", "clover", "honey")
DISHES = ("pie", "soup", "stew", "tea")
FOLLOW_UPS = ("Another, please.", "And for my friend?", "Once more.", "Anything else?")

RIGHT_NAME_REWARD = 1.3
WRONG_NAME_REWARD = -0.3
FAVOURITE_REWARD = 1.0
OTHER_FLAVOUR_REWARD = -0.5
GARBLED_REWARD = -4.0

LISTENING = 0.3  # probability that a slot is answered to the guest instead of at random
EVAL_PERCENT = 10  # share of all prompts that is held out

_WELCOMES = {guest: f"Welcome, {guest}!" for guest in FAVOURITES}
# Every prompt, with all that an answer to it depends on: the guest and whether it is cold.
_PROMPTS = {
    f"{weather}. A {mood} {guest} knocks.\n": (guest, weather in COLD_WEATHER)
    for weather, mood, guest in itertools.product(COLD_WEATHER + HOT_WEATHER, MOODS, FAVOURITES)
}
_RESPONSE_PATTERN = re.compile(
    rf"({'|'.join(map(re.escape, (*GREETINGS, *_WELCOMES.values())))}) "
    rf"({'|'.join(TEMPERATURES)}) ({'|'.join(FLAVOURS)}) ({'|'.join(DISHES)})\."
)


@dataclasses.dataclass(frozen=True)
class Slot:
    """One word of the answer to one kind of guest: base probability and gold reward of every word it can be."""

    probability: Mapping[str, float]
    reward: Mapping[str, float]

    @functools.cached_property
    def _cumulative(self) -> tuple[list[str], list[float]]:
        return list(self.probability), list(itertools.accumulate(self.probability.values()))

    def sample(self, rng: np.random.Generator) -> str:
        words, cumulative = self._cumulative
        return words[bisect.bisect(cumulative, rng.random() * cumulative[-1])]

    @property
    def mean_reward(self) -> float:
        return sum(p * self.reward[word] for word, p in self.probability.items())


def _listening(words: Iterable[str], fitting: str) -> dict[str, float]:
    """Uniform over words, except that with probability LISTENING the fitting one is chosen."""
    words = tuple(words)
    return {w: (1 - LISTENING) / len(words) + LISTENING * (w == fitting) for w in words}


@functools.cache
def _slots(guest: str, cold: bool) -> tuple[Slot, Slot, Slot, Slot]:
    # A greeting at random is one of the five plain ones or, as the sixth, a welcome to anybody at all.
    at_random = (1 - LISTENING) / (len(GREETINGS) + 1)
    greeting = dict.fromkeys(GREETINGS, at_random)
    for name, welcome in _WELCOMES.items():
        greeting[welcome] = at_random / len(_WELCOMES) + LISTENING * (name == guest)
    welcome_reward = {w: RIGHT_NAME_REWARD if g == guest else WRONG_NAME_REWARD for g, w in _WELCOMES.items()}
    temperature_reward = TEMPERATURES if cold else {w: -r for w, r in TEMPERATURES.items()}
    favourite = FAVOURITES[guest]
    return (
        Slot(greeting, GREETINGS | welcome_reward),
        Slot(_listening(TEMPERATURES, "Hot" if cold else "Iced"), temperature_reward),
        Slot(
            _listening(FLAVOURS, favourite),
            {w: FAVOURITE_REWARD if w == favourite else OTHER_FLAVOUR_REWARD for w in FLAVOURS},
        ),
        Slot(dict.fromkeys(DISHES, 1 / len(DISHES)), dict.fromkeys(DISHES, 0.0)),
    )


def _join(words: Iterable[str]) -> str:
    return " ".join(words) + "."


def knock_of(prompt: str) -> tuple[str, str]:
    """The line that a prompt begins with, and how far its last answer is begun; "" where it is not.

    Raises:
        ValueError: the prompt is not one of this world.
    """
    knock, newline, rest = prompt.partition("\n")
    *lines, begun = rest.split("\n")
    if knock + newline not in _PROMPTS or len(lines) % 2 or not set(lines[1::2]) <= set(FOLLOW_UPS):
        raise ValueError(f"not a prompt of this world: {prompt!r}; it must be one of World.prompts(), or go on from it")
    return knock + newline, begun


def words_said(begun: str, slots: Iterable[Slot]) -> list[str]:
    """The words of the first slots that an answer is begun with, up to where it leaves the grammar."""
    said, at = [], 0
    for slot in slots:
        word = next((w for w in slot.reward if begun.startswith(" " * (at > 0) + w, at)), None)
        if word is None:
            break
        said.append(word)
        at += (at > 0) + len(word)
    return said


def _hash(prompt: str) -> int:
    return int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big")


# In the order of the hash, so that the first n prompts of a split are a fair sample of it.
_SPLIT_PROMPTS = {
    "train": tuple(p for p in sorted(_PROMPTS, key=_hash) if _hash(p) % 100 >= EVAL_PERCENT),
    "eval": tuple(p for p in sorted(_PROMPTS, key=_hash) if _hash(p) % 100 < EVAL_PERCENT),
}


def _split_prompts(split: str) -> tuple[str, ...]:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    return _SPLIT_PROMPTS[split]


def preference_probability(difference: float, temperature: float = 0.0, flip_rate: float = 0.0) -> float:
    """P(the first is labelled better) when it leads by `difference` in gold reward.

    Bradley-Terry, sigmoid(difference / temperature), then the label is flipped with probability flip_rate.
    temperature 0 is the noiseless limit (1/2 at a tie). Raises ValueError unless temperature >= 0, 0 <= flip_rate <= 1.
    """
    if temperature < 0:
        raise ValueError(f"temperature must be >= 0 (0 gives clean labels), got {temperature}")
    if not 0 <= flip_rate <= 1:
        raise ValueError(f"flip_rate must be a probability in [0, 1], got {flip_rate}")
    if temperature == 0:
        clean = 0.5 + 0.5 * float(np.sign(difference))
    else:  # the tanh form of the sigmoid cannot overflow
        clean = 0.5 + 0.5 * math.tanh(0.5 * difference / temperature)
    return clean * (1 - flip_rate) + (1 - clean) * flip_rate


@dataclasses.dataclass(frozen=True)
class World:
    """The inn of the module docstring. Everything drawn from it is a function of (seed, split, kind of record).

    The record generators yield plain dicts lazily; the first n of a longer run are the same records. Their prompts are
    drawn with replacement from the split. The seed changes the draws, never the grammar, the reward or the split.
    Texts are ASCII; the prompt ends with a newline, so prompt + response is one readable text.
    """

    seed: int = 0

    def prompts(self, split: str = "train") -> tuple[str, ...]:
        """All prompts of a split, in a fixed order that mixes weathers, moods and guests."""
        return _split_prompts(split)

    def sample_prompt(self, rng: np.random.Generator, split: str = "train") -> str:
        """One prompt, uniform over the split."""
        prompts = _split_prompts(split)
        return prompts[rng.integers(len(prompts))]

    def slots(self, prompt: str) -> tuple[Slot, Slot, Slot, Slot]:
        """The four slots of an answer to this prompt. Raises ValueError when the prompt is not one of this world."""
        return _slots(*_PROMPTS[knock_of(prompt)[0]])

    def sample_response(self, rng: np.random.Generator, prompt: str) -> str:
        """One response from the base distribution."""
        return self._answer(prompt, lambda slot: slot.sample(rng))

    def best_response(self, prompt: str) -> str:
        """A response of the highest gold reward (the dish, which carries none, is the first one)."""
        return self._answer(prompt, lambda slot: max(slot.reward, key=slot.reward.get))

    def _answer(self, prompt: str, choose: Callable[[Slot], str]) -> str:
        slots, begun = self.slots(prompt), knock_of(prompt)[1]
        said = words_said(begun, slots)
        return " " * bool(said) + _join(map(choose, slots[len(said) :]))

    def log_prob(self, prompt: str, response: str) -> float:
        """Exact log-probability of a response under the base distribution, nats; -inf for garbled text."""
        slots, begun = self.slots(prompt), knock_of(prompt)[1]
        match = _RESPONSE_PATTERN.fullmatch(begun + response)
        if match is None:
            return -math.inf
        chosen = list(zip(slots, match.groups(), strict=True))[len(words_said(begun, slots)) :]
        return sum(math.log(slot.probability[word]) for slot, word in chosen)

    def gold_reward(self, prompt: str, response: str) -> float:
        """The table of the module docstring, for any response text: GARBLED_REWARD when it is not grammatical; of a
        response that goes on in a begun answer, that of the whole answer."""
        slots, match = self.slots(prompt), _RESPONSE_PATTERN.fullmatch(knock_of(prompt)[1] + response)
        if match is None:
            return GARBLED_REWARD
        # Rounding makes equal sums equal floats whatever the words, so that a tie is a tie.
        return round(sum(slot.reward[word] for slot, word in zip(slots, match.groups(), strict=True)), 6)

    def mean_reward(self, prompt: str) -> float:
        """Exact expectation of the gold reward under the base distribution: the value V(x) of the base policy."""
        return sum(slot.mean_reward for slot in self.slots(prompt))

    def demonstrations(self, n: int, *, split: str = "train") -> Iterator[dict[str, Any]]:
        """n records {prompt, completion} from the base distribution, for SFT."""

        def one(rng, prompt):
            return {"prompt": prompt, "completion": self.sample_response(rng, prompt)}

        return self.records("demonstrations", n, split, one)

    def pairs(
        self, n: int, *, split: str = "train", temperature: float = 0.0, flip_rate: float = 0.0
    ) -> Iterator[dict[str, Any]]:
        """n records {prompt, chosen, rejected}, labelled by `preference_probability`; clean by default.

        The two responses are independent base draws, redrawn until their gold rewards differ (about 4 % tie),
        so a pair is never identical and never a tie.
        """
        preference_probability(0.0, temperature, flip_rate)  # refuses bad options at the call, not at the first record

        def one(rng, prompt):
            (first, second), (a, b) = self.distinct_responses(rng, prompt, 2)
            if rng.random() >= preference_probability(a - b, temperature, flip_rate):
                first, second = second, first
            return {"prompt": prompt, "chosen": first, "rejected": second}

        return self.records("pairs", n, split, one)

    def graded(
        self, n: int, *, split: str = "train", temperature: float = 0.0, flip_rate: float = 0.0
    ) -> Iterator[dict[str, Any]]:
        """n records {prompt, chosen, rejected, score_chosen, score_rejected, margin, target_probability}.

        The two responses are drawn as those of `pairs`, and the better one is chosen. Scores are gold rewards, the
        margin is their difference, and target_probability is its `preference_probability`: 1 for clean labels.
        """
        preference_probability(0.0, temperature, flip_rate)

        def one(rng, prompt):
            responses, scores = self.distinct_responses(rng, prompt, 2)
            (high, chosen), (low, rejected) = sorted(zip(scores, responses, strict=True), reverse=True)
            margin = round(high - low, 6)
            return {
                **{"prompt": prompt, "chosen": chosen, "rejected": rejected},
                **{"score_chosen": high, "score_rejected": low, "margin": margin},
                "target_probability": preference_probability(margin, temperature, flip_rate),
            }

        return self.records("graded", n, split, one)

    def annotated(
        self, n: int, *, split: str = "train", temperature: float = 0.0, flip_rate: float = 0.0
    ) -> Iterator[dict[str, Any]]:
        """n records {prompt, chosen, rejected, spans}: pairs drawn as those of `pairs`, with a span for each slot.

        Its weight, the same in both responses, is what the chosen one's word earns more than the other's, and 0 where
        it earns less: how much of the preference the slot explains.
        """
        preference_probability(0.0, temperature, flip_rate)

        def one(rng, prompt):
            pair, (first, second) = self.distinct_responses(rng, prompt, 2)
            if rng.random() >= preference_probability(first - second, temperature, flip_rate):
                pair.reverse()
            chosen, rejected = (_RESPONSE_PATTERN.fullmatch(response) for response in pair)
            words = zip(self.slots(prompt), chosen.groups(), rejected.groups(), strict=True)
            gains = [max(0.0, round(slot.reward[better] - slot.reward[worse], 6)) for slot, better, worse in words]
            spans = [[[*match.span(1 + slot), gain] for slot, gain in enumerate(gains)] for match in (chosen, rejected)]
            return {"prompt": prompt, "chosen": pair[0], "rejected": pair[1], "spans": spans}

        return self.records("annotated", n, split, one)

    def unpaired(
        self, n: int, *, split: str = "train", temperature: float = 0.0, flip_rate: float = 0.0
    ) -> Iterator[dict[str, Any]]:
        """n records {prompt, completion, label}: a thumb up (true) or down on one base draw; clean by default.

        The thumb compares the gold reward with the prompt's `mean_reward`, by `preference_probability`.
        """
        preference_probability(0.0, temperature, flip_rate)

        def one(rng, prompt):
            completion = self.sample_response(rng, prompt)
            lead = self.gold_reward(prompt, completion) - self.mean_reward(prompt)
            up = bool(rng.random() < preference_probability(lead, temperature, flip_rate))
            return {"prompt": prompt, "completion": completion, "label": up}

        return self.records("unpaired", n, split, one)

    def rewarded(self, n: int, *, split: str = "train") -> Iterator[dict[str, Any]]:
        """n records {prompt, completion, reward}: one base draw and its gold reward, for direct reward optimisation."""

        def one(rng, prompt):
            completion = self.sample_response(rng, prompt)
            return {"prompt": prompt, "completion": completion, "reward": self.gold_reward(prompt, completion)}

        return self.records("rewarded", n, split, one)

    def rankings(self, n: int, k: int, *, split: str = "train") -> Iterator[dict[str, Any]]:
        """n records {prompt, completions, scores}: k base draws of pairwise different gold reward, in drawn order."""
        if not 2 <= k <= 16:
            raise ValueError(f"k must be 2 to 16 responses per prompt, got {k}")

        def one(rng, prompt):
            completions, scores = self.distinct_responses(rng, prompt, k)
            return {"prompt": prompt, "completions": completions, "scores": scores}

        return self.records(f"rankings{k}", n, split, one)

    def distinct_responses(self, rng: np.random.Generator, prompt: str, k: int) -> tuple[list[str], list[float]]:
        """k base draws of pairwise different gold reward, and their rewards."""
        by_reward: dict[float, str] = {}
        while len(by_reward) < k:
            response = self.sample_response(rng, prompt)
            by_reward.setdefault(self.gold_reward(prompt, response), response)
        return list(by_reward.values()), list(by_reward)

    def records(
        self, kind: str, n: int, split: str, one: Callable[[np.random.Generator, str], dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """n records that `one` makes, lazily, of prompts drawn from a split."""
        # Every kind and split has a stream of its own: asking for more pairs never changes the demonstrations.
        stream = [self.seed, *f"{split}/{kind}".encode()]
        _split_prompts(split)
        rng = np.random.default_rng(stream)
        return (one(rng, self.sample_prompt(rng, split)) for _ in range(n))
