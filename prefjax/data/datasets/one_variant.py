"""Datasets of the Hugging Face hub of one variant, whose every row becomes one record or none: an entry for each."""

from collections.abc import Iterable

from prefjax.data.dataset_entry import Reading, Row, hub_dataset, hub_file, labelled, pair, user
from prefjax.data.datasets import DATASETS

_SEARCH_ARENA = "lmarena-ai/search-arena-24k"
_WILDFEEDBACK = "microsoft/WildFeedback"
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


def _messages(turns: Iterable[Row]) -> list[Row]:
    """{from, value} turns as {role, content} messages."""
    return [{"role": _SHAREGPT_ROLES.get(t["from"], t["from"]), "content": t["value"]} for t in turns]


def _sharegpt(row: Row) -> Row:
    """A conversation of {from, value} turns, and the next turn twice."""
    sides = {side: [{"role": "assistant", "content": row[side]["value"]}] for side in ("chosen", "rejected")}
    return {"prompt": _messages(row["conversations"]), **sides}


def _capybara(row: Row) -> Row:
    scores = {"score_chosen": row["rating_chosen"], "score_rejected": row["rating_rejected"]}
    return {"chosen": row["chosen"], "rejected": row["rejected"], **scores}


def _helpsteer3(row: Row) -> Row:
    return pair(row["context"], row["response1"], row["response2"], -row["overall_preference"])


def _kto_mix(row: Row) -> Row:
    return {"prompt": row["completion"][:-1], "completion": row["completion"][-1:], "label": row["label"]}


def _orca(row: Row) -> Row:
    prompt = user(row["question"], row["system"])
    return {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]}


def _search_arena(row: Row) -> Row | None:
    a, b = row["messages_a"], row["messages_b"]
    if row["winner"] is None or not len(a) == len(b) == 2:
        return None
    preference = {"model_a": 1, "model_b": -1}.get(row["winner"], 0)
    return pair(a[:1], a[1]["content"], b[1]["content"], preference)


def _ultramedical(row: Row) -> Row:
    """Chats with or without the prompt in front; a prompt column is only needed for the latter."""
    sides = {"chosen": row["chosen"], "rejected": row["rejected"]}
    whole = row["chosen"][:1] and row["chosen"][0]["role"] != "assistant"
    return sides if whole else {"prompt": user(row["prompt"]), **sides}


for dataset in (
    hub_dataset(
        "capybara_dpo",
        "Capybara-DPO 7k, dialogues of several turns",
        "argilla/distilabel-capybara-dpo-7k-binarized",
        licence="Apache-2.0",
        reads=Reading(("chosen", "rejected", "rating_chosen", "rating_rejected"), _capybara),
    ),
    hub_dataset(
        "coig_p",
        "COIG-P, a million Chinese pairs judged by models",
        "m-a-p/COIG-P",
        paper="arXiv 2504.05535",
        reads=Reading(("conversations", "chosen", "rejected"), _sharegpt),
    ),
    hub_dataset(
        "helpsteer3",
        "HelpSteer3-Preference, general, STEM, code and multilingual, preferences from -3 to 3",
        "nvidia/HelpSteer3",
        licence="CC-BY-4.0",
        paper="arXiv 2505.11475",
        splits={split: f"preference/{split}.jsonl.gz" for split in ("train", "validation")},
        reads=Reading(("context", "response1", "response2", "overall_preference"), _helpsteer3, name="preference"),
    ),
    hub_dataset(
        "kto_mix",
        "KTO mix 15k, single responses with labels",
        "argilla/kto-mix-15k",
        licence="MIT",
        reads=Reading(("completion", "label"), _kto_mix, "unpaired"),
    ),
    hub_dataset(
        "metamath_dpo",
        "MetaMath-DPO, grade-school problems with one calculation falsified",
        "abacusai/MetaMath_DPO_FewShot",
        licence="Apache-2.0",
        paper="arXiv 2402.13228",
        note="Plain text with worked examples in the prompt.",
        splits=("train", "eval"),
        reads=Reading(("prompt", "chosen", "rejected")),
    ),
    hub_dataset(
        "offsetbias",
        "OffsetBias, counter-examples to the biases of judges",
        "NCSOFT/offsetbias",
        licence="BSD-3-Clause",
        paper="arXiv 2407.06551",
        note="To be mixed with other data: alone it teaches the opposite biases.",
        reads=labelled("output_1", "output_2"),
    ),
    hub_dataset(
        "orca_dpo_pairs",
        "Orca DPO pairs, a stronger against a weaker model",
        "Intel/orca_dpo_pairs",
        licence="Apache-2.0",
        paper="arXiv 2306.02707",
        splits={"train": "orca_rlhf.jsonl"},
        reads=Reading(("system", "question", "chosen", "rejected"), _orca),
    ),
    hub_dataset(
        "search_arena",
        "Search Arena, votes on answers of models that search the web",
        _SEARCH_ARENA,
        licence="prompts CC-BY-4.0, responses under their providers' terms",
        paper="arXiv 2506.05334",
        note="Battles of one turn: in a longer one, the two sides hold different conversations before the vote. About "
        "half of the conversations have no vote and are left out. The source calls its only split test.",
        splits={
            "test": hub_file(
                _SEARCH_ARENA,
                "data/search-arena-chat-24k.parquet",
                revision="fac8dcf86146c8773ef020095c5694c9b2bc98d7",
            )
        },
        reads=Reading(("messages_a", "messages_b", "winner"), _search_arena),
    ),
    hub_dataset(
        "skywork_reward",
        "Skywork-Reward-Preference 80K v0.2, selected pairs without overlap with RewardBench",
        "Skywork/Skywork-Reward-Preference-80K-v0.2",
        paper="arXiv 2410.18451",
    ),
    hub_dataset(
        "ultrafeedback_binarized",
        "UltraFeedback, the best against a random other response, as Zephyr was trained",
        "HuggingFaceH4/ultrafeedback_binarized",
        licence="MIT",
        paper="arXiv 2310.16944",
        splits={split: f"data/{split}_prefs-00000-of-00001.parquet" for split in ("train", "test")},
        reads=Reading(("chosen", "rejected", "score_chosen", "score_rejected")),
    ),
    hub_dataset(
        "ultramedical",
        "UltraMedical-Preference, medical questions judged by GPT-4",
        "TsinghuaC3I/UltraMedical-Preference",
        licence="MIT",
        paper="arXiv 2406.03949",
        reads=Reading(("prompt", "chosen", "rejected"), _ultramedical),
    ),
    hub_dataset(
        "wildfeedback",
        "WildFeedback, preferences taken from what users said next",
        _WILDFEEDBACK,
        licence="ODC-BY",
        paper="arXiv 2408.15549",
        splits={
            "train": hub_file(_WILDFEEDBACK, "wildfeedback.json", revision="8b1a3e530b949d6aacfad6ba8912e209a05bc846")
        },
        reads=Reading(("conversations", "chosen", "rejected"), _sharegpt),
    ),
):
    DATASETS.add(dataset, __name__)
