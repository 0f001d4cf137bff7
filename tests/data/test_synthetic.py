"""The synthetic world: what its texts are worth, and that its labels follow the law it states."""

import collections
import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from prefjax.data import synthetic, synthetic_trees
from prefjax.data.formats import parse
from prefjax.data.records import Record
from prefjax.data.synthetic import GARBLED_REWARD, World, preference_probability
from prefjax.data.world_records import WorldOptions, world_records
from prefjax.requirements import Requirements

WORLD = World()
SNOWY_SEAL = "Snow. A muddy seal knocks.\n"
SUNNY_SEAL = "July. A muddy seal knocks.\n"


@pytest.mark.parametrize(
    ("prompt", "response", "reward"),
    [
        (SNOWY_SEAL, "Welcome, seal! Hot fish stew.", 3.05),
        (SNOWY_SEAL, "Welcome, seal! Hot fish tea.", 3.05),  # the dish carries no reward
        (SUNNY_SEAL, "Welcome, seal! Hot fish stew.", 1.55),
        (SUNNY_SEAL, "Welcome, seal! Iced fish stew.", 3.05),
        (SNOWY_SEAL, "Welcome, moth! Warm honey pie.", -0.6),
        ("Frost. A wise moth knocks.\n", "Welcome, moth! Warm honey pie.", 2.5),
        (SNOWY_SEAL, "Come in! Cool nut soup.", 0.0),
        (SNOWY_SEAL, "Go away. Iced clover pie.", -2.45),  # the worst that grammar allows
        (SNOWY_SEAL, "", GARBLED_REWARD),
        (SNOWY_SEAL, "Welcome, seal! Hot fish stew", GARBLED_REWARD),
        (SNOWY_SEAL, "Welcome, seal! Hot fish stew.\n", GARBLED_REWARD),
        (SNOWY_SEAL, "Welcome, seal! Welcome, seal! Hot fish stew.", GARBLED_REWARD),
        (SNOWY_SEAL, "Hmph. Hot fish stew. Hmph. Hot fish stew.", GARBLED_REWARD),
        (SNOWY_SEAL, "Ungültig \x00", GARBLED_REWARD),
    ],
)
def test_gold_reward_of_texts_written_by_hand(prompt, response, reward):
    assert WORLD.gold_reward(prompt, response) == pytest.approx(reward)


def test_a_foreign_prompt_is_refused():
    with pytest.raises(ValueError, match="not a prompt of this world"):
        WORLD.gold_reward("SnowJuly. A muddy seal knocks.\n", "Hmph. Hot fish stew.")


def test_base_probabilities_sum_to_one_and_give_the_mean_reward():
    for prompt in (SNOWY_SEAL, "Drought. A tiny crow knocks.\n"):
        words = [slot.reward for slot in WORLD.slots(prompt)]
        assert all(slot.reward.keys() == slot.probability.keys() for slot in WORLD.slots(prompt))
        responses = [" ".join(w) + "." for w in itertools.product(*words)]
        probabilities = np.exp([WORLD.log_prob(prompt, response) for response in responses])
        rewards = np.array([WORLD.gold_reward(prompt, response) for response in responses])
        assert probabilities.sum() == pytest.approx(1)
        assert probabilities @ rewards == pytest.approx(WORLD.mean_reward(prompt))
        assert rewards.max() == WORLD.gold_reward(prompt, WORLD.best_response(prompt)) == 3.05
        assert rewards.min() > GARBLED_REWARD
    assert WORLD.log_prob(SNOWY_SEAL, "Hot fish.") == -math.inf


def test_samples_follow_the_base_distribution():
    rng, n = np.random.default_rng(0), 4000
    counts = collections.Counter(WORLD.sample_response(rng, SNOWY_SEAL).split(" ")[-2] for _ in range(n))
    for flavour, probability in WORLD.slots(SNOWY_SEAL)[2].probability.items():
        error = math.sqrt(probability * (1 - probability) / n)
        assert counts[flavour] / n == pytest.approx(probability, abs=4 * error), flavour


def test_every_base_sample_is_grammatical_and_short():
    for split in synthetic.SPLITS:
        for record in WORLD.demonstrations(1000, split=split):
            assert WORLD.gold_reward(record["prompt"], record["completion"]) > GARBLED_REWARD
            assert math.isfinite(WORLD.log_prob(record["prompt"], record["completion"]))
            assert 15 <= len(record["prompt"].encode()) <= 40
            assert 10 <= len(record["completion"].encode()) <= 40


def test_the_base_policy_leaves_room():
    """Entropy to shape, reward spread between and within prompts, and a best response that almost always wins."""
    records = list(WORLD.demonstrations(2000))
    rewards = np.array([WORLD.gold_reward(r["prompt"], r["completion"]) for r in records])
    entropy = -np.mean([WORLD.log_prob(r["prompt"], r["completion"]) for r in records])
    assert entropy > 5
    assert rewards.std() > 1
    assert np.mean(rewards < 3.05) > 0.9
    # The prompt matters: the same response is worth something else at another door.
    elsewhere = [WORLD.gold_reward("Heat. A shy bear knocks.\n", r["completion"]) for r in records]
    assert np.corrcoef(rewards, elsewhere)[0, 1] < 0.8


def test_splits_are_disjoint_by_prompt_for_every_seed():
    train, held_out = (set(WORLD.prompts(split)) for split in synthetic.SPLITS)
    assert not train & held_out
    assert len(train) > 1500 and 100 < len(held_out) < 300
    for seed in (0, 1):
        assert {r["prompt"] for r in World(seed).pairs(500)} <= train
        assert {r["prompt"] for r in World(seed).pairs(500, split="eval")} <= held_out
    # Every word of the held-out prompts was seen in training, in other combinations.
    assert {word for p in held_out for word in p.split()} <= {word for p in train for word in p.split()}
    with pytest.raises(ValueError, match="split must be one of"):
        WORLD.pairs(1, split="test")


def _generators(world):
    return {
        "demonstrations": lambda n: world.demonstrations(n),
        "pairs": lambda n: world.pairs(n, temperature=0.5, flip_rate=0.1),
        "graded": lambda n: world.graded(n, temperature=0.5, flip_rate=0.1),
        "unpaired": lambda n: world.unpaired(n, temperature=0.5, flip_rate=0.1),
        "rewarded": lambda n: world.rewarded(n),
        "rankings": lambda n: world.rankings(n, 4),
    }


@pytest.mark.parametrize("kind", _generators(WORLD))
def test_records_are_a_function_of_the_seed_and_a_prefix_of_longer_runs(kind):
    first = list(_generators(World(3))[kind](50))
    assert first == list(_generators(World(3))[kind](80))[:50]
    assert first != list(_generators(World(4))[kind](50))
    assert len(first) == 50


def test_records_do_not_depend_on_the_process():
    """No hash randomisation, no set order: another interpreter draws the same records."""
    code = "import json; from prefjax.data.synthetic import World; print(json.dumps(list(World(5).rankings(20, 3))))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == list(World(5).rankings(20, 3))


def test_the_room_does_not_import_jax():
    code = "import sys, prefjax.data.synthetic; assert not {'jax', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_record_shapes():
    pair = next(WORLD.pairs(1))
    assert list(pair) == ["prompt", "chosen", "rejected"]
    assert list(next(WORLD.demonstrations(1))) == ["prompt", "completion"]
    label = next(WORLD.unpaired(1))
    assert list(label) == ["prompt", "completion", "label"] and type(label["label"]) is bool
    reward = next(WORLD.rewarded(1))
    assert reward["reward"] == WORLD.gold_reward(reward["prompt"], reward["completion"])
    ranking = next(WORLD.rankings(1, 5))
    assert list(ranking) == ["prompt", "completions", "scores"]
    assert len(ranking["completions"]) == len(ranking["scores"]) == 5


def _lead(record):
    """Gold reward of chosen over rejected."""
    prompt = record["prompt"]
    return WORLD.gold_reward(prompt, record["chosen"]) - WORLD.gold_reward(prompt, record["rejected"])


def test_clean_pairs_agree_with_gold_and_never_tie():
    for split in synthetic.SPLITS:
        assert all(_lead(record) > 0 for record in WORLD.pairs(2000, split=split))


def test_graded_pairs_say_how_much_better_the_chosen_is():
    records = list(WORLD.graded(300, temperature=0.5, flip_rate=0.1))
    for record in records:
        lead = _lead(record)
        assert lead > 0 and record["margin"] == pytest.approx(lead)
        assert record["score_chosen"] - record["score_rejected"] == pytest.approx(lead)
        assert record["score_chosen"] == WORLD.gold_reward(record["prompt"], record["chosen"])
        assert record["target_probability"] == pytest.approx(0.1 + 0.8 / (1 + math.exp(-lead / 0.5)))
    assert {record["target_probability"] for record in WORLD.graded(20, split="eval")} == {1.0}
    with pytest.raises(ValueError, match="temperature"):
        WORLD.graded(1, temperature=-1.0)


def test_ties_are_rare_before_they_are_redrawn():
    rng, n = np.random.default_rng(0), 4000
    draws = [
        [WORLD.gold_reward(prompt, WORLD.sample_response(rng, prompt)) for _ in range(2)]
        for prompt in (WORLD.sample_prompt(rng) for _ in range(n))
    ]
    assert np.mean([a == b for a, b in draws]) < 0.06


def test_rankings_hold_gold_scores_without_ties():
    for record in WORLD.rankings(300, 6):
        gold = [WORLD.gold_reward(record["prompt"], completion) for completion in record["completions"]]
        assert record["scores"] == gold
        assert len(set(gold)) == 6
    with pytest.raises(ValueError, match="k must be 2 to 16"):
        WORLD.rankings(1, 1)


def test_preference_probability_is_bradley_terry_with_flips():
    for difference, temperature, flip_rate in itertools.product((-1.5, 0.0, 0.7), (0.25, 2.0), (0.0, 0.2)):
        clean = 1 / (1 + math.exp(-difference / temperature))
        expected = clean * (1 - flip_rate) + (1 - clean) * flip_rate
        assert preference_probability(difference, temperature, flip_rate) == pytest.approx(expected, abs=1e-12)
    assert [preference_probability(d) for d in (-0.1, 0.0, 0.1)] == [0.0, 0.5, 1.0]
    assert preference_probability(1e6, 1e-3) == 1.0
    with pytest.raises(ValueError, match="temperature must be >= 0"):
        WORLD.pairs(1, temperature=-1.0)
    with pytest.raises(ValueError, match="flip_rate must be a probability"):
        WORLD.unpaired(1, flip_rate=1.5)


@pytest.mark.parametrize(("temperature", "flip_rate"), [(1.0, 0.0), (0.0, 0.2), (0.5, 0.3)])
def test_pair_labels_have_the_stated_frequencies(temperature, flip_rate):
    """Among pairs whose gold rewards lie |d| apart, the better one is chosen with the stated probability."""
    leads = np.array([_lead(record) for record in WORLD.pairs(3000, temperature=temperature, flip_rate=flip_rate)])
    size = np.abs(leads)
    for low, high in ((0.0, 0.6), (0.6, 1.5), (1.5, 10.0)):
        inside = (size >= low) & (size < high)
        expected = np.mean([preference_probability(d, temperature, flip_rate) for d in size[inside]])
        error = math.sqrt(expected * (1 - expected) / inside.sum())
        assert np.mean(leads[inside] > 0) == pytest.approx(expected, abs=4 * error)


def test_unpaired_labels_compare_with_the_mean_reward():
    def above(record):
        return WORLD.gold_reward(record["prompt"], record["completion"]) > WORLD.mean_reward(record["prompt"])

    clean = list(WORLD.unpaired(2000))
    assert all(record["label"] == above(record) for record in clean)
    assert 0.35 < np.mean([record["label"] for record in clean]) < 0.65  # both labels are common
    flipped = list(WORLD.unpaired(2000, flip_rate=0.25))
    assert np.mean([r["label"] != above(r) for r in flipped]) == pytest.approx(0.25, abs=0.04)


def test_a_dialogue_is_judged_by_who_knocked():
    prompt = f"{SNOWY_SEAL}Hmph. Iced clover pie.\nOnce more.\n"
    assert WORLD.gold_reward(prompt, "Welcome, seal! Hot fish stew.") == 3.05
    assert WORLD.log_prob(prompt, "Come in! Cool nut soup.") == WORLD.log_prob(SNOWY_SEAL, "Come in! Cool nut soup.")
    for wrong in ("Hmph.\nOnce more", "Hmph.\nMore!\n", "\nOnce more.\nHmph.\n"):
        with pytest.raises(ValueError, match="go on from it"):
            WORLD.gold_reward(SNOWY_SEAL + wrong + "\n" * (wrong == "Hmph.\nOnce more"), "Hmph. Hot fish stew.")


def test_a_begun_answer_is_judged_as_a_whole():
    begun = f"{SNOWY_SEAL}Welcome, seal! Hot"
    assert WORLD.gold_reward(begun, " fish stew.") == 3.05 == WORLD.gold_reward(begun, WORLD.best_response(begun))
    assert WORLD.gold_reward(begun, "fish stew.") == GARBLED_REWARD
    rest = WORLD.log_prob(SNOWY_SEAL, "Welcome, seal! Hot fish stew.") - WORLD.log_prob(begun, " fish stew.")
    first, second, *_ = WORLD.slots(SNOWY_SEAL)
    assert rest == pytest.approx(math.log(first.probability["Welcome, seal!"] * second.probability["Hot"]))
    assert WORLD.sample_response(np.random.default_rng(0), begun).count(" ") == 2


@pytest.mark.parametrize("make, points", [(synthetic_trees.dialogues, 3), (synthetic_trees.solutions, 3)])
def test_trees_are_scored_by_gold_reward(make, points):
    """Every point is a ranking of two whose scores differ by what the whole answers' gold rewards differ by."""
    rows = list(make(WORLD, 6))
    assert rows[:3] == list(make(WORLD, 3)) and rows != list(make(World(1), 6))
    assert {row["prompt"] for row in rows}.isdisjoint(row["prompt"] for row in make(WORLD, 6, split="eval"))
    for row in rows:
        records = [item for item in parse(row, "f:1") if isinstance(item, Record)]
        assert [record.kind for record in records] == ["ranked"] * points
        for record in records:
            ends = record.ends is None
            assert ends == (make is synthetic_trees.dialogues)
            whole = [text if ends else text + WORLD.best_response(record.prompt + text) for text in record.responses]
            better, worse = (WORLD.gold_reward(record.prompt, text) for text in whole)
            assert better - worse == pytest.approx(record.scores[0] - record.scores[1]) != 0
            assert min(better, worse) > GARBLED_REWARD


def test_dialogues_are_demonstrated_at_every_turn():
    rows = list(synthetic_trees.dialogue_demonstrations(WORLD, 60))
    assert collections.Counter(row["prompt"].count("\n") for row in rows).keys() == {1, 3, 5}
    assert all(WORLD.gold_reward(row["prompt"], row["completion"]) > GARBLED_REWARD for row in rows)
    assert all(math.isfinite(WORLD.log_prob(row["prompt"], row["completion"])) for row in rows)


def test_records_of_the_world_as_trees_have_no_noise():
    with pytest.raises(ValueError, match="drop temperature and flip_rate"):
        world_records(WorldOptions(trees="solutions", flip_rate=0.1), Requirements(2), "train")
    for requires, names in ((Requirements(2), "dialogues"), (Requirements(imitates=True), "dialogue-demonstrations")):
        name, rows = world_records(WorldOptions(train_examples=3, trees="dialogues"), requires, "train")
        assert name == names and len(list(rows)) == 3
    assert world_records(WorldOptions(trees="solutions"), Requirements(imitates=True), "eval")[0] == "demonstrations"
