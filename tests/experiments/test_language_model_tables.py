"""Tables that train a language model, on made-up arms: what trains them is tested where the commands are."""

import pytest

from experiments.tables import harness, language_model, load_table, table_ids

TABLES = [name for name in table_ids() if load_table(name).TABLE.size == harness.LONG]
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
