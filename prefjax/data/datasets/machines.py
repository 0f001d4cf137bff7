"""Datasets judged by models, made by a rule, or mixed from others; and two that test for biases."""

import math
from collections.abc import Iterator
from typing import Any

from prefjax.data.datasets.entry import (
    Dataset,
    File,
    HubParquet,
    Row,
    Split,
    Variant,
    each,
    hub_file,
    hub_page,
    pair,
    sharegpt,
    user,
)


def _conversations(row: Row) -> Row:
    """Two whole chats in chosen and rejected; the prompt is what they share."""
    return {"chosen": row["chosen"], "rejected": row["rejected"]}


def _hub_pairs(repository: str, *splits: str, record=_conversations, columns=("chosen", "rejected")) -> Variant:
    return Variant("pairs", {s: Split((HubParquet(repository, s),)) for s in splits}, columns, each(record))


# UltraFeedback -------------------------------------------------------------------------------------------------------

_ULTRAFEEDBACK = "openbmb/UltraFeedback"
_ULTRAFEEDBACK_FILES = ("evol_instruct", "false_qa", "flan", "sharegpt", "truthful_qa", "ultrachat")
ULTRAFEEDBACK_ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")


def _rating(value: Any) -> float | None:
    """A number, or the text of one; "N/A", NaN and nothing are no rating."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


def _ultrafeedback(name: str, rating_of) -> Variant:
    def record(row: Row) -> Row:
        rated = [(completion["response"], _rating(rating_of(completion))) for completion in row["completions"]]
        rated = [(response, rating) for response, rating in rated if rating is not None]
        completions, scores = zip(*rated, strict=True) if rated else ((), ())
        return {"prompt": user(row["instruction"]), "completions": list(completions), "scores": list(scores)}

    files = tuple(hub_file(_ULTRAFEEDBACK, f"{part}.jsonl", format="jsonl") for part in _ULTRAFEEDBACK_FILES)
    return Variant("rankings", {"train": Split(files)}, ("instruction", "completions"), each(record), name)


def _aspect(aspect: str) -> Variant:
    return _ultrafeedback(aspect, lambda completion: completion["annotations"].get(aspect, {}).get("Rating"))


ULTRAFEEDBACK = Dataset(
    name="ultrafeedback",
    title="UltraFeedback, four responses rated by GPT-4 overall and in four aspects",
    homepage=hub_page(_ULTRAFEEDBACK),
    licence="MIT",
    paper="arXiv 2310.01377",
    variants=(
        _ultrafeedback("overall", lambda completion: completion.get("overall_score")),
        _ultrafeedback("fine_grained", lambda completion: completion.get("fine-grained_score")),
        *map(_aspect, ULTRAFEEDBACK_ASPECTS),
    ),
    note=(
        "Responses without a rating are left out of their ranking. overall is the critique's score from 1 to 10, which "
        "is known to say 10 for some responses that the critique calls bad; fine_grained is the mean of the aspects, 1 "
        "to 5."
    ),
)

_BINARIZED = "HuggingFaceH4/ultrafeedback_binarized"


def _binarized(row: Row) -> Row:
    return {name: row[name] for name in ("chosen", "rejected", "score_chosen", "score_rejected")}


ULTRAFEEDBACK_BINARIZED = Dataset(
    name="ultrafeedback_binarized",
    title="UltraFeedback, the best against a random other response, as Zephyr was trained",
    homepage=hub_page(_BINARIZED),
    licence="MIT",
    paper="arXiv 2310.16944",
    variants=(
        Variant(
            "pairs",
            {
                split: Split((hub_file(_BINARIZED, f"data/{part}-00000-of-00001.parquet", format="parquet"),))
                for split, part in {"train": "train_prefs", "test": "test_prefs"}.items()
            },
            ("chosen", "rejected", "score_chosen", "score_rejected"),
            each(_binarized),
        ),
    ),
)

# Pairs ---------------------------------------------------------------------------------------------------------------

_CAPYBARA = "argilla/distilabel-capybara-dpo-7k-binarized"


def _capybara(row: Row) -> Row:
    return {**_conversations(row), "score_chosen": row["rating_chosen"], "score_rejected": row["rating_rejected"]}


CAPYBARA_DPO = Dataset(
    name="capybara_dpo",
    title="Capybara-DPO 7k, dialogues of several turns",
    homepage=hub_page(_CAPYBARA),
    licence="Apache-2.0",
    paper="",
    variants=(
        _hub_pairs(
            _CAPYBARA,
            "train",
            record=_capybara,
            columns=("chosen", "rejected", "rating_chosen", "rating_rejected"),
        ),
    ),
)

_ORCA = "Intel/orca_dpo_pairs"


def _orca(row: Row) -> Row:
    prompt = user(row["question"], row["system"])
    return {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]}


ORCA_DPO_PAIRS = Dataset(
    name="orca_dpo_pairs",
    title="Orca DPO pairs, a stronger against a weaker model",
    homepage=hub_page(_ORCA),
    licence="Apache-2.0",
    paper="arXiv 2306.02707",
    variants=(
        Variant(
            "pairs",
            {"train": Split((hub_file(_ORCA, "orca_rlhf.jsonl", format="jsonl"),))},
            ("system", "question", "chosen", "rejected"),
            each(_orca),
        ),
    ),
)

_METAMATH = "abacusai/MetaMath_DPO_FewShot"


def _metamath(row: Row) -> Row:
    return {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}


METAMATH_DPO = Dataset(
    name="metamath_dpo",
    title="MetaMath-DPO, grade-school problems with one calculation falsified",
    homepage=hub_page(_METAMATH),
    licence="Apache-2.0",
    paper="arXiv 2402.13228",
    variants=(_hub_pairs(_METAMATH, "train", "eval", record=_metamath, columns=("prompt", "chosen", "rejected")),),
    note="Plain text with worked examples in the prompt.",
)

_ULTRAMEDICAL = "TsinghuaC3I/UltraMedical-Preference"


def _with_prompt(row: Row) -> Row:
    """Chats with or without the prompt in front; a prompt column is only needed for the latter."""
    whole = row["chosen"][:1] and row["chosen"][0]["role"] != "assistant"
    return _conversations(row) if whole else {"prompt": user(row["prompt"]), **_conversations(row)}


ULTRAMEDICAL = Dataset(
    name="ultramedical",
    title="UltraMedical-Preference, medical questions judged by GPT-4",
    homepage=hub_page(_ULTRAMEDICAL),
    licence="MIT",
    paper="arXiv 2406.03949",
    variants=(_hub_pairs(_ULTRAMEDICAL, "train", record=_with_prompt, columns=("prompt", "chosen", "rejected")),),
)

_COIG_P = "m-a-p/COIG-P"


def _coig_p(row: Row) -> Row:
    sides = {side: [{"role": "assistant", "content": row[side]["value"]}] for side in ("chosen", "rejected")}
    return {"prompt": sharegpt(row["conversations"]), **sides}


COIG_P = Dataset(
    name="coig_p",
    title="COIG-P, a million Chinese pairs judged by models",
    homepage=hub_page(_COIG_P),
    licence="see the source",
    paper="arXiv 2504.05535",
    variants=(_hub_pairs(_COIG_P, "train", record=_coig_p, columns=("conversations", "chosen", "rejected")),),
)

_RPR = "microsoft/rpr"


def _rpr(context: str) -> Variant:
    def records(rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            for side, preference in (("x", 1), ("y", -1)):
                prompt = user(f"{row['prompt']}\n\n{row[f'{context}_{side}']}")
                made = pair(prompt, row["response_a"], row["response_b"], preference)
                yield {name: made[name] for name in ("prompt", "chosen", "rejected")}

    columns = ("prompt", "response_a", "response_b", f"{context}_x", f"{context}_y")
    splits = {split: Split((HubParquet(_RPR, split),)) for split in ("train", "test")}
    return Variant("pairs", splits, columns, records, context)


RPR = Dataset(
    name="rpr",
    title="Reasonable Preference Reversal, pairs whose preference turns with the context",
    homepage=hub_page(_RPR),
    licence="CDLA-Permissive-2.0",
    paper="arXiv 2407.14916",
    variants=(_rpr("criteria"),),
    note="Two records a row: the criterion follows the prompt after a blank line; a wins under x, b under y.",
)

# Mixtures ------------------------------------------------------------------------------------------------------------

_TULU = "allenai/tulu-2.5-preference-data"
TULU_PARTS = (
    *("preference_big_mixture", "ultrafeedback_mean_aspects", "helpsteer", "hh_rlhf", "shp_2", "nectar"),
    *("stack_exchange_paired", "chatbot_arena_2023", "chatbot_arena_2024", "capybara", "orca_dpo_pairs"),
    *("alpaca_farm_gpt4_pref", "alpaca_farm_human_pref", "prm800k_pairs_phase2"),
)
TULU_2_5 = Dataset(
    name="tulu_2_5",
    title="Tulu 2.5 preference data, fourteen sources in one format",
    homepage=hub_page(_TULU),
    licence="ODC-BY; parts have licences of their own",
    paper="arXiv 2406.09279",
    variants=tuple(
        Variant(
            "pairs",
            {"train": Split((HubParquet(_TULU, part),))},
            ("chosen", "rejected"),
            each(_conversations),
            part,
        )
        for part in TULU_PARTS
    ),
    note="The source's splits are its parts.",
)

_SKYWORK = "Skywork/Skywork-Reward-Preference-80K-v0.2"
SKYWORK_REWARD = Dataset(
    name="skywork_reward",
    title="Skywork-Reward-Preference 80K v0.2, selected pairs without overlap with RewardBench",
    homepage=hub_page(_SKYWORK),
    licence="see the source",
    paper="arXiv 2410.18451",
    variants=(_hub_pairs(_SKYWORK, "train"),),
)

_KTO_MIX = "argilla/kto-mix-15k"


def _kto(row: Row) -> Row:
    return {"prompt": row["completion"][:-1], "completion": row["completion"][-1:], "label": row["label"]}


KTO_MIX = Dataset(
    name="kto_mix",
    title="KTO mix 15k, single responses with labels",
    homepage=hub_page(_KTO_MIX),
    licence="MIT",
    paper="",
    variants=(
        Variant("unpaired", {"train": Split((HubParquet(_KTO_MIX, "train"),))}, ("completion", "label"), each(_kto)),
    ),
)

# Biases --------------------------------------------------------------------------------------------------------------

_OFFSETBIAS = "NCSOFT/offsetbias"


def _labelled(first: str, second: str):
    """label 1 or 2: the better response."""

    def record(row: Row) -> Row:
        chosen, rejected = (first, second) if row["label"] == 1 else (second, first)
        return {"prompt": user(row["instruction"]), "chosen": row[chosen], "rejected": row[rejected]}

    return record


OFFSETBIAS = Dataset(
    name="offsetbias",
    title="OffsetBias, counter-examples to the biases of judges",
    homepage=hub_page(_OFFSETBIAS),
    licence="BSD-3-Clause",
    paper="arXiv 2407.06551",
    variants=(
        _hub_pairs(
            _OFFSETBIAS,
            "train",
            record=_labelled("output_1", "output_2"),
            columns=("instruction", "output_1", "output_2", "label"),
        ),
    ),
    note="To be mixed with other data: alone it teaches the opposite biases.",
)

EVAL_BIASES = {
    "length": "length bias",
    "concreteness": "concreteness",
    "empty_reference": "empty reference",
    "content_continuation": "content_continuation",
    "nested_instruction": "nested_instruction",
    "familiar_knowledge": "familiar knowledge preference bias",
}
_EVALBIASBENCH = File(
    "data/evalbiasbench/biasbench.json",
    "https://raw.githubusercontent.com/ncsoft/offsetbias/0bd16e4ac935315999ed23480c69673b675884b0/"
    "data/evalbiasbench/biasbench.json",
    "json",
)


def _evalbiasbench(name: str, where: dict[str, tuple[str, ...]]) -> Variant:
    columns = ("instruction", "response1", "response2", "label")
    record = each(_labelled("response1", "response2"))
    return Variant("pairs", {"test": Split((_EVALBIASBENCH,), where)}, columns, record, name)


EVALBIASBENCH = Dataset(
    name="evalbiasbench",
    title="EvalBiasBench, 80 pairs that tempt a judge by one of six biases",
    homepage="https://github.com/ncsoft/offsetbias",
    licence="BSD-3-Clause",
    paper="arXiv 2407.06551",
    variants=(
        _evalbiasbench("all", {}),
        *(_evalbiasbench(name, {"bias": (bias,)}) for name, bias in EVAL_BIASES.items()),
    ),
    note="For evaluation.",
)

DATASETS = (
    *(ULTRAFEEDBACK, ULTRAFEEDBACK_BINARIZED, CAPYBARA_DPO, ORCA_DPO_PAIRS, METAMATH_DPO, ULTRAMEDICAL, COIG_P, RPR),
    *(TULU_2_5, SKYWORK_REWARD, KTO_MIX, OFFSETBIAS, EVALBIASBENCH),
)
