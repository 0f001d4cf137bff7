"""Whole reward-model stages: they learn, are found again, and score texts; no policy comes of them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from prefjax.data.encoding import EncodingPolicy
from prefjax.data.records import Message, Record
from prefjax.data.tokenizers import load_tokenizer
from prefjax.models.lora import LoraConfig
from prefjax.models.reward_head import RewardHead
from prefjax.policies.evaluate import evaluate_stage
from prefjax.policies.export import export_reward_model
from prefjax.policies.rewards import open_reward_model
from prefjax.training import loop
from prefjax.training.config import ReferenceConfig
from prefjax.training.loop import LoopConfig
from prefjax.training.mesh import MeshConfig
from prefjax.training.optimizers import OptimizerConfig
from prefjax.training.parameters import read_policy
from prefjax.training.stage import run_stage
from tests.training.test_run import DPO, final_state, lines

BT = dataclasses.replace(
    DPO,
    objective="bt",
    loss={"centering": 0.01},
    reference=ReferenceConfig(kind="none"),
    model=dataclasses.replace(DPO.model, tie_embeddings=False),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    train=LoopConfig(steps=100, log_every=10),
)
PROMPT = "Snow. A muddy seal knocks.\n"
TEXTS = ["Welcome, seal! Hot fish stew.", "Go away. Iced nut tea.", "Hmph. Warm fish pie."]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reward")
    return workdir, run_stage(BT, workdir, workdir / "data")


@pytest.fixture(scope="module")
def scorer(whole):
    return open_reward_model(whole[0], BT)


@pytest.mark.slow
def test_reward_accuracy_rises_from_a_half(whole):
    workdir, result = whole
    first, *_, last = lines(workdir)
    assert first["loss"] == pytest.approx(np.log(2), abs=0.1)
    assert last["reward_accuracy"] > max(0.75, first["reward_accuracy"] + 0.1) and last["loss"] < first["loss"] - 0.1
    assert last["chosen_reward"] > last["rejected_reward"]
    assert "chosen_logp" not in last and "kl_estimate" not in last
    assert result.reference is None and "head" not in result.policy


@pytest.mark.slow
def test_evaluation_is_that_of_the_run(whole):
    workdir, result = whole
    assert evaluate_stage(BT, workdir, "") == pytest.approx(result.eval_metrics, rel=1e-5)


def test_scores_of_texts_are_those_of_training(whole, scorer):
    """The evaluation's own responses, scored as trees: the same accuracy and mean rewards."""
    _, result = whole
    scores = np.stack(scorer.score_trees(result.eval_trees))
    assert scores.shape == (16, 2)
    np.testing.assert_allclose(scores.mean(0)[0], result.eval_metrics["chosen_reward"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose((scores[:, 0] > scores[:, 1]).mean(), result.eval_metrics["reward_accuracy"])


@pytest.mark.slow
def test_a_score_does_not_depend_on_company_and_equal_texts_are_equal(scorer):
    (together,) = scorer([PROMPT], [[*TEXTS, TEXTS[0]]])
    assert together[3] == together[0] and len(set(together)) == 3
    alone = [scorer([PROMPT], [[text]])[0][0] for text in TEXTS]
    np.testing.assert_allclose(together[:3], alone, rtol=1e-4, atol=1e-5)
    apart = scorer([PROMPT, "Sun. A small moth knocks.\n"], [TEXTS[1:], TEXTS[:1]])
    np.testing.assert_allclose(apart[0], together[1:3], rtol=1e-4, atol=1e-5)
    assert [len(scores) for scores in apart] == [2, 1]


def test_an_empty_completion_has_a_score_and_chats_do_too(scorer):
    scores = scorer([PROMPT, PROMPT], [["", TEXTS[0], " "], [""]])
    assert np.isfinite(scores[0]).all() and scores[0][0] == scores[0][2]
    np.testing.assert_allclose(scores[1][0], scores[0][0], rtol=1e-4, atol=1e-5)
    chat = scorer([(Message("user", "Hi"),)], [[(Message("assistant", "Ho"),), (Message("assistant", "Hum"),)]])
    assert np.isfinite(chat).all() and chat[0][0] != chat[0][1]


def test_what_cannot_be_scored_is_named(whole, scorer):
    short = dataclasses.replace(scorer, data=dataclasses.replace(scorer.data, encoding=EncodingPolicy(max_length=40)))
    with pytest.raises(ValueError, match="1 of 2 prompts cannot be scored(?s:.*)sequence_too_long(?s:.*)prompt 1"):
        short([PROMPT, PROMPT * 2], [["Hi."], ["Hi."]])
    scored, report = short.score([Record(PROMPT * 2, ("Hi.",), (0.0,), "ranked")])
    assert scored == [] and report["score"].dropped == {"sequence_too_long": 1}


def test_a_reward_model_is_no_policy_and_a_policy_no_reward_model(whole, scorer):
    workdir, result = whole
    with pytest.raises(ValueError, match=r"holds a reward model \(bt\), which is no policy"):
        read_policy(str(workdir), result.setup.model, result.setup.mesh, seed=BT.seed)
    with pytest.raises(ValueError, match=r"trained a policy \(dpo\)"):
        open_reward_model(workdir, dataclasses.replace(BT, objective="dpo", loss={}, reference=ReferenceConfig()))


def test_a_head_that_is_not_new_fails_the_start_check(whole):
    values = {"loss": 0.8, "expected_loss": 0.693}
    with pytest.raises(loop.StartCheckError, match="with rewards of 0, as those of a new reward head"):
        loop.check_start(values, "bt", tolerance=1e-3)


def test_export_holds_the_head_and_knows_where_a_response_ends(whole, scorer, tmp_path):
    workdir, result = whole
    export_reward_model(open_reward_model(workdir, BT), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(stored["score.weight"], np.asarray(result.policy["reward_head"]).T)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] == scorer.tokenizer.pad_id
    assert load_tokenizer(tmp_path / "out").encode("Hi") == scorer.tokenizer.encode("Hi")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="padding token is the end token"):
        patch.setattr(type(scorer.tokenizer), "pad_id", scorer.tokenizer.eos_id)
        export_reward_model(open_reward_model(workdir, BT), tmp_path / "other")


@pytest.mark.slow
def test_adapters_and_head_are_trained_and_found_again(whole, tmp_path):
    workdir, _ = whole
    adapted = dataclasses.replace(BT, lora=LoraConfig(rank=2), train=LoopConfig(steps=4, log_every=1))
    result = run_stage(adapted, tmp_path, workdir / "data")
    saved = jax.tree_util.tree_leaves_with_path(final_state(tmp_path)["params"])
    names = {jax.tree_util.keystr(path).rsplit("'", 2)[-2] for path, _ in saved}
    assert names == {"lora_a", "lora_b", "reward_head"}
    scores = np.stack(open_reward_model(tmp_path, adapted).score_trees(result.eval_trees))
    assert scores.std() > 0
    np.testing.assert_allclose(scores.mean(0)[0], result.eval_metrics["chosen_reward"], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_general_preference_model_learns_and_compares(whole, tmp_path):
    workdir, _ = whole
    config = dataclasses.replace(
        BT,
        objective="gpm",
        loss={"tau": 0.1},
        reward_head=RewardHead(4, normalize=True, gate=True),
        mesh=MeshConfig(),
        train=LoopConfig(steps=30, log_every=5),
    )
    result = run_stage(config, tmp_path, workdir / "data")
    first, *_, last = lines(tmp_path)
    assert last["loss"] < first["loss"] - 0.1 and last["reward_accuracy"] > first["reward_accuracy"] + 0.1
    assert result.finished
    scorer = open_reward_model(tmp_path, config)
    first, second = scorer([PROMPT], [TEXTS[:2]])[0]
    assert first == pytest.approx(-second, abs=1e-6)
    three = scorer([PROMPT], [TEXTS])[0]
    assert sum(three) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="only compares responses of one prompt"):
        scorer([PROMPT], [TEXTS[:1]])
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["split"] == "eval"
