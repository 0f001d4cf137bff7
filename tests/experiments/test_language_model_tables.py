"""Tables that train a language model: their claims on made-up arms, and their smoke sizes. And the one that scores
a model, on one that finds all tokens equally likely."""

import json

import jax
import numpy as np
import pytest

from experiments.tables import harness, language_model, load_table, table_ids
from experiments.tables.ranking import accuracy
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.models import ModelConfig, decoder
from prefjax.training.mesh import MeshConfig, make_mesh
from prefjax.training.parameters import Policy

TABLES = [name for name in table_ids() if hasattr(load_table(name), "ARMS")]
ANSWERS = 6


def said(name: str, gold: float, kl: float) -> dict:
    rewards = [[gold + 0.1 * (i % 2), 0.1 * (i % 3)] for i in range(ANSWERS)]
    curve = [(1, 0.7), (2, 0.6)]
    return dict(gold=rewards, proxy=rewards, kl=[kl] * ANSWERS, curve=curve, seconds={"stem": 2.0, name: 1.0})


@pytest.mark.parametrize("table_id", TABLES)
def test_claims_see_which_arm_is_better(table_id, monkeypatch):
    """Arms that are worth the more, and go the less far, the later they stand; the other way round; and equal ones."""
    module = load_table(table_id)
    with pytest.raises(harness.NotRun, match=f"ask for {table_id}:long"):
        harness.get_config(table_id, module)
    config = harness.get_config(table_id, module, harness.LONG)
    config.update(answered=ANSWERS, num_seeds=2)
    arms, outcomes = list(module.ARMS.values()), []
    for sign in (1, -1, 0):
        made = {arm: said(arm, 1.5 + 0.2 * sign * i, 1.0 - 0.1 * sign * i) for i, arm in enumerate(map(repr, arms))}
        monkeypatch.setattr(language_model, "outcome", lambda config, seed, arm, made=made: made[repr(arm)])
        results = harness.Results(row for cell in module.cells(config) for row in module.run(config, cell))
        judgement = harness.judge(module.SETTINGS, module.CLAIMS, results)
        assert results.mean("stem and arms", "wall", harness.SECONDS) == 2.0 + len(arms)
        outcomes.append([holds for *_, holds in judgement.claims])
        assert module.plot(results).axes
    assert any(own != outcomes[0] for own in outcomes)


@pytest.fixture(scope="module")
def stems(tmp_path_factory):
    """Where the tables' runs go: they share what they can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "FOLDER", tmp_path_factory.mktemp("stems"))
        yield language_model.FOLDER


@pytest.mark.slow
@pytest.mark.parametrize("table_id", TABLES)
def test_the_smoke_size_goes_from_sft_to_the_judge(table_id, stems):
    """Every arm answers every held-out prompt; one stem is made for all."""
    module = load_table(table_id)
    config = harness.get_config(table_id, module, "smoke")
    results = harness.Results(row for cell in module.cells(config) for row in module.run(config, cell))
    for setting in module.SETTINGS:
        for col in language_model.COLUMNS:
            values = results.final(setting.key, col, language_model.METRIC)
            assert values.shape == (config.answered,) and np.isfinite(values).all(), (setting.key, col)
    assert len([path for path in stems.rglob("run.json") if path.parent.name == "sft"]) == 1
    judgement = harness.judge(module.SETTINGS, module.CLAIMS, results)
    assert judgement.holds or table_id != "prefix.convergence", "sharing changes nothing after two steps either"


def test_a_model_that_finds_all_tokens_equally_likely_ranks_as_the_shorter_wins(tmp_path, monkeypatch):
    """Its log-probs are the lengths times one number, a tie being right; of other log-probs the table turns red."""
    config = harness.get_config("ranking.accuracy", accuracy, harness.LONG)
    config.update(model=str(tmp_path), data=str(tmp_path / "pairs.jsonl"), pairs=4, max_length=12)
    with pytest.raises(harness.NotRun, match="--config.model=FOLDER"):
        accuracy.cells(config)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(harness.NotRun, match="--config.data=FILE"):
        accuracy.cells(config)
    texts = [("a", "bbb"), ("cc", "d"), ("e", "f"), ("g", "hh"), ("too long for it", "i")]
    lines = [json.dumps({"prompt": "pq", "chosen": chosen, "rejected": rejected}) for chosen, rejected in texts]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    model, mesh = ModelConfig(259, 1, 16, 2, 1, 8, 24), make_mesh(MeshConfig(), jax.devices()[:1])
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), decoder.shapes(model))
    policy = Policy(model, zeros, mesh, ByteTokenizer(), (ByteTokenizer.eos_id,))
    monkeypatch.setattr(accuracy, "open_policy", lambda folder, dtype: policy)
    monkeypatch.setattr(accuracy, "TOKENS_PER_STEP", 64)
    [cell] = accuracy.cells(config)
    results = harness.Results(accuracy.run(config, cell))
    for metric, ours, rule in ((accuracy.ACCURACY, 0.75, 0.625), (accuracy.AGREEMENT, 0.875, 1.0)):
        assert results.mean(f"raw {metric}", "ours", metric) == ours
        assert results.mean(f"raw {metric}", "shorter wins", metric) == rule
    assert results.mean("pairs", "that fit", "count") == 4
    assert accuracy.plot(results).axes
    assert harness.judge(accuracy.SETTINGS, accuracy.CLAIMS, results).rows[2] == harness.SIGN
    with pytest.raises(harness.UsageError, match="has 4 pairs of at most 12 tokens"):
        next(accuracy.run(harness.ml_collections.ConfigDict({**config, "pairs": 5}), cell))

    of = accuracy.measured(np.array([[-4.0, -6.0], [-9.0, -1.0]]), np.array([[2, 4], [3, 1]]))
    for log_prob, metric, values in (
        ("raw", accuracy.ACCURACY, [1, 0]),
        ("raw", accuracy.AGREEMENT, [1, 1]),
        ("per token", accuracy.ACCURACY, [0, 0]),
        ("per token", accuracy.AGREEMENT, [0, 1]),
    ):
        np.testing.assert_array_equal(of[log_prob][metric, "ours"], values)
    monkeypatch.setattr(accuracy, "score_trees", lambda *_, **__: [np.array([[-1.0, -9.0]] * 4)])
    wrong = harness.judge(accuracy.SETTINGS, accuracy.CLAIMS, harness.Results(accuracy.run(config, cell)))
    assert wrong.rows == [harness.NOT_REPRODUCED] * 3 + [harness.SIGN] and not wrong.holds
