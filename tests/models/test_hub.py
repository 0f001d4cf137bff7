"""Models by their names at the hub: downloaded once, the folder in their place, and one line where that cannot be."""

from pathlib import Path

import huggingface_hub
import pytest

from experiments.command import line_of
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.models import hub
from prefjax.policies.open import open_policy
from prefjax.training.runs import origin, run_config

LLAMA = Path(__file__).parent / "fixtures" / "llama"


@pytest.fixture(autouse=True)
def nothing_known():
    hub._downloaded.cache_clear()


@pytest.fixture
def asked(monkeypatch):
    """What the hub is asked for; it has one model."""
    names = []

    def snapshot_download(name, *, revision, allow_patterns, ignore_patterns):
        assert "*.safetensors" in allow_patterns and "*.py" not in allow_patterns and ignore_patterns
        names.append((name, revision))
        return str(LLAMA)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return names


def test_a_run_starts_from_a_model_of_the_hub_and_its_folder_says_which(asked):
    values = {"objective": "dpo", "loss": {}, "data": {"tokenizer": "byte"}, "rows": {}, "optimizer": {}}
    values |= {"train": {"steps": 4}, "init_from": "hf:owner/model@v1", "reference": {"init_from": "hf:owner/other"}}
    for _ in range(2):
        stage = run_config(values).stage
    assert (stage.init_from, stage.reference.init_from) == (str(LLAMA), str(LLAMA))
    assert values["init_from"] == "hf:owner/model@v1" and set(asked) == {("owner/model", "v1"), ("owner/other", None)}
    assert len(asked) == 2
    assert stage.model == run_config(values | {"init_from": str(LLAMA)}).stage.model
    assert origin("hf:owner/model@v1") == str(LLAMA) and hub.local(LLAMA) == str(LLAMA) and hub.local("") == ""


def test_a_policy_is_opened_by_its_name_at_the_hub(asked, monkeypatch):
    monkeypatch.setattr("prefjax.policies.open.tokenizer_of", lambda data, model: ByteTokenizer())
    policy = open_policy("hf:owner/model")
    assert (policy.origin, policy.data.tokenizer, asked) == (str(LLAMA), str(LLAMA), [("owner/model", None)])


def test_without_a_network_it_is_one_line_with_the_fix(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match="^hf:owner/model could not be downloaded .* as `hf download owner/model`"
    ) as error:
        hub.local("hf:owner/model")
    assert "outgoing traffic has been disabled" in line_of(error.value)
