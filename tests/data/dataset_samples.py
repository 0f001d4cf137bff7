"""A few invented rows of every named dataset in its real schema, and the records they must become.

FILES      dataset -> {path below manual_dir/<dataset>: rows}; a path ends as the published file does
EXPECTED   "<name>:<split>" -> records as `contents` gives them, or for a row that is dropped, its reason
"""

import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet


def write_samples(folder: Path, dataset: str) -> None:
    """The files of one dataset, in the formats they are published in."""
    for name, rows in FILES[dataset].items():
        path = folder / dataset / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif path.suffix == ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        elif name in WHOLE_JSON:
            path.write_text(json.dumps(rows))
        else:
            with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


def contents(record) -> tuple:
    """(prompt, responses, scores if there are any, else targets), chats as "role: content / role: content"."""

    def text(said) -> str:
        return said if isinstance(said, str) else " / ".join(f"{m.role}: {m.content}" for m in said)

    numbers = record.targets if record.scores is None else record.scores
    return text(record.prompt), tuple(map(text, record.responses)), numbers


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [turn("user", question), turn("assistant", answer)]


def said(content: str, by: str = "gpt") -> dict[str, str]:
    return {"from": by, "value": content}


def _rated(response: str, overall: float | None, fine: float, honesty: str) -> dict:
    aspects = {name: {"Rating": "2", "Rationale": "r"} for name in ("helpfulness", "instruction_following")}
    annotations = aspects | {"honesty": {"Rating": honesty, "Rationale": "r"}, "truthfulness": {"Rating": "5"}}
    scores = {"overall_score": overall, "fine-grained_score": fine}
    return {"model": "m", "response": response, "principle": "p", "annotations": annotations, **scores}


def _votes(*votes: str) -> list[dict[str, str]]:
    return [{"evaluator": f"w{i}", "overall_pref": vote, "helpful_pref": "Tie"} for i, vote in enumerate(votes)]


def _battle(a: str, b: str, winner: str | None, **more) -> dict:
    return {
        "messages_a": chat("When is the market?", a),
        "messages_b": chat("When is the market?", b),
        "winner": winner,
        "turn": 1,
        "model_a": "m",
        "model_b": "n",
        **more,
    }


def _helpsteer2(prompt: str, response: str, helpfulness: int, verbosity: int) -> dict:
    same = {"correctness": 3, "coherence": 4, "complexity": 1}
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, "verbosity": verbosity, **same}


def _tldr(split: str, choice: int) -> dict:
    info = {"id": "t3", "post": "A fox took my hens.", "title": "Fox", "subreddit": "farming", "site": None}
    summaries = [{"text": " Hens gone.", "policy": "a"}, {"text": " A fox ate.", "policy": "b"}]
    return {"info": info, "split": split, "summaries": summaries, "choice": choice, "worker": "w", "batch": "b"}


_HENS = "SUBREDDIT: r/farming\n\nTITLE: Fox\n\nPOST: A fox took my hens.\n\nTL;DR:"
_SHP = {
    "post_id": "p",
    "domain": "d",
    "history": "How to peel a beet?",
    "human_ref_A": "Boil it.",
    "human_ref_B": "Ask.",
}
_DEEP = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nA beet?"
_PAIR = {"chosen": chat("Tea?", "Gladly."), "rejected": chat("Tea?", "No.")}
_TEA = ("user: Tea?", ("assistant: Gladly.", "assistant: No."), (1.0, 0.0))

WHOLE_JSON = {"wildfeedback.json", "data/evalbiasbench/biasbench.json"}


def _oasst(text: str, *replies: dict, lang: str = "en", **more) -> dict:
    """A message as OASST exports it."""
    own = {"message_id": f"id of {text}", "text": text, "role": "assistant", "lang": lang, "review_count": 3}
    own |= {"review_result": True, "deleted": False, "synthetic": False, "emojis": {"+1": 1}, **more}
    return own | {"replies": [{**reply, "parent_id": own["message_id"]} for reply in replies]}


def _oasst_tree(lang: str) -> dict:
    answers = _oasst("So", rank=1), _oasst("Thus", rank=0), _oasst("Spam", review_result=False)
    more = _oasst("Why?", *answers, role="prompter")
    top = _oasst("Hi", _oasst("Hello", more, rank=0), _oasst("Go", rank=1), role="prompter", lang=lang)
    return {"message_tree_id": top["message_id"], "tree_state": "ready_for_export", "prompt": top}


_OASST = [_oasst_tree("en"), _oasst_tree("de")]
_OASST_RECORDS = [
    ("user: Hi", ("assistant: Hello", "assistant: Go"), (0.0, -1.0)),
    ("user: Hi / assistant: Hello / user: Why?", ("assistant: So", "assistant: Thus"), (-1.0, 0.0)),
]

FILES = {
    "hh_rlhf": {
        f"{part}/{split}.jsonl.gz": [
            {
                "chosen": f"\n\nHuman: Hi {split}\n\nAssistant: Hello!\n\nHuman: Bye\n\nAssistant: Farewell: to you",
                "rejected": f"\n\nHuman: Hi {split}\n\nAssistant: Hello!\n\nHuman: Bye\n\nAssistant: Go",
            },
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant:"},
        ]
        for part in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
        for split in ("train", "test")
    },
    "helpsteer2": {
        "train.jsonl.gz": [
            _helpsteer2("Beets?", "Yes.", 4, 0), _helpsteer2("Beets?", "No.", 1, 2),
            _helpsteer2(_DEEP, "Red.", 2, 2), _helpsteer2(_DEEP, "Green.", 2, 1),
        ],
        "validation.jsonl.gz": [_helpsteer2("Tea?", "Hot.", 3, 1), _helpsteer2("Tea?", "Cold.", 2, 1)],
        "preference/preference.jsonl.gz": [
            {"split": split, "prompt": prompt, "response_1": "One", "response_2": "Two", "preference_strength": by,
             "preference_statement": "s", "preference_elaboration": "e", "three_most_similar_preferences": "[]"}
            for split, prompt, by in [("train", "A?", -3), ("train", _DEEP, 1), ("train", "C?", 0), ("val", "D?", 2)]
        ],
    },
    "helpsteer3": {
        f"preference/{split}.jsonl.gz": [
            {"domain": "general", "language": "english", "context": [*chat("Hi", "Hello"), turn("user", split)],
             "response1": "One", "response2": "Two", "overall_preference": preference, "individual_preference": []}
            for preference in (-2, 3, 0)
        ]
        for split in ("train", "validation")
    },
    "shp": {
        f"{subreddit}/{split}.json": [
            {**_SHP, "labels": 1, "score_A": 9, "score_B": 2}, {**_SHP, "labels": 0, "score_A": 3, "score_B": 7}
        ]
        for subreddit in (
            "askacademia askanthropology askbaking askcarguys askculinary askdocs askengineers askhistorians askhr "
            "askphilosophy askphysics askscience asksciencefiction asksocialscience askvet changemyview "
            "explainlikeimfive legaladvice"
        ).split()
        for split in ("train", "validation", "test")
    },
    "tldr": {
        f"batch{n}.json": [_tldr("valid2", 0)] if n < 22 else [_tldr("train", 0), _tldr("valid1", 1), _tldr("train", 1)]
        for n in (*range(3, 21), 22)
    },
    "multipref": {
        "default/train/0000.parquet": [
            {"comparison_id": "c", "text": "Rain?", "completion_a": "Yes", "completion_b": "No", "model_a": "m",
             "normal_worker_annotations": _votes(*normal), "expert_worker_annotations": _votes(*expert)}
            for normal, expert in [
                (("A-is-clearly-better", "Tie"), ("B-is-clearly-better", "B-is-clearly-better")),
                (("A-is-slightly-better", "Tie"), ("B-is-slightly-better", "Tie")),
            ]
        ]
    },
    "community_alignment": {
        "community_alignment.csv": [
            {"conversation_id": "1", "assigned_lang": lang, "first_turn_prompt": 'Soup,\n"or" salad?',
             **{f"first_turn_response_{x}": text for x, text in zip("abcd", texts, strict=True)},
             "first_turn_preferred_response": best}
            for lang, texts, best in [
                ("en", ("Soup<|end_of_text|>", "Salad", "Both", "None"), "response_c"),
                ("pt", ("Sopa", "Salada", "Ambos", ""), "response_a"),
                ("en", ("1", "2", "3", "4"), ""),
            ]
        ]
    },
    "search_arena": {
        "data/search-arena-chat-24k.parquet": [
            _battle("Noon", "Dawn", "model_b"), _battle("Noon", "Dawn", "tie (bothbad)"), _battle("Noon", "Dawn", None),
            _battle("Noon", "Dawn", "model_a"),
            _battle("Noon", "Dawn", "model_a", messages_b=chat("When is the market?", "Dawn") + chat("Sure?", "Yes")),
        ]
    },
    "wildfeedback": {
        "wildfeedback.json": [
            {"conversations": [said("Hi", "human"), said("Hello"), said("Tea?", "human")], "chosen": said("Hot"),
             "rejected": said("Cold")}
        ]
    },
    "ultrafeedback": {
        f"{part}.jsonl": [
            {"source": part, "instruction": f"Ask {part}", "models": ["m"], "correct_answers": ["None"],
             "completions": [_rated("A", 9.0, 4.5, "5"), _rated("B", None, 2.0, "N/A"),
                             _rated("C", 10.0, float("nan"), "1"), _rated("D", 3.5, 1.25, "4")]}
        ]
        for part in ("evol_instruct", "false_qa", "flan", "sharegpt", "truthful_qa", "ultrachat")
    },
    "ultrafeedback_binarized": {
        f"data/{part}-00000-of-00001.parquet": [
            {"prompt": "Tea?", "prompt_id": "i", "messages": chat("Tea?", "Gladly."), **_PAIR, "score_chosen": high,
             "score_rejected": 4.0}
            for high in (9.5, 4.0)
        ]
        for part in ("train_prefs", "test_prefs")
    },
    "capybara_dpo": {
        "default/train/0000.parquet": [
            {"chosen": [*chat("Hi", "Hello"), *_PAIR["chosen"]], "rating_chosen": 5, "rating_rejected": 2,
             "rejected": [*chat("Hi", "Hello"), *_PAIR["rejected"]], "original_response": "No."}
        ]
    },
    "orca_dpo_pairs": {
        "orca_rlhf.jsonl": [
            {"system": system, "question": "Tea?", "chosen": "Gladly.", "rejected": "No."}
            for system in ("Be kind.", "")
        ]
    },
    "metamath_dpo": {
        f"default/{split}/0000.parquet": [{"prompt": f"1+1 is 2. 1+2? {split}", "chosen": "is 3", "rejected": "is 4"}]
        for split in ("train", "eval")
    },
    "ultramedical": {
        "default/train/0000.parquet": [
            {"prompt_id": "i", "label_type": "hard", "prompt": "Tea?", **_PAIR},
            {"prompt_id": "j", "label_type": "easy", "prompt": "Tea?", **{k: v[1:] for k, v in _PAIR.items()}},
        ]
    },
    "coig_p": {
        "default/train/0000.parquet": [
            {"conversations": [said("茶？", "human")], "chosen": said("好"), "rejected": said("不"), "domain": "chat"}
        ]
    },
    "rpr": {
        f"default/{split}/0000.parquet": [
            {"prompt": "A poem", "response_a": "Short", "response_b": "Long",
             "criteria_x": "Be brief", "criteria_y": "Be full", "scenario_x": "s", "scenario_y": "t"}
        ]
        for split in ("train", "test")
    },
    "tulu_2_5": {
        f"default/{part}/0000.parquet": [{"source": part, **_PAIR}]
        for part in ("helpsteer", "ultrafeedback_mean_aspects", "preference_big_mixture")
    },
    "skywork_reward": {"default/train/0000.parquet": [{**_PAIR, "source": "s"}]},
    "kto_mix": {
        "default/train/0000.parquet": [
            {"prompt": "Tea?", "completion": _PAIR["chosen"], "label": True, "rating": 5.0, "dataset": "d"},
            {"prompt": "Tea?", "completion": [turn("system", "S"), *_PAIR["rejected"]], "label": False, "rating": 1.0},
        ]
    },
    "offsetbias": {
        "default/train/0000.parquet": [
            {"instruction": "Tea?", "output_1": "Gladly.", "output_2": "No.", "label": label} for label in (1, 2)
        ]
    },
    "codeprefbench": {
        f"datasets/eval/{name}-alignment.jsonl": [
            {"task_id": "T/1", "instruction": "Tea?", "choices": ["Gladly.", "No."], "gt_choice": 0},
            {"task_id": "T/2", "instruction": "Tea?", "choices": ["No.", "Gladly."], "gt_choice": 1},
        ]
        for name in ("correctness", "efficiency", "security", "human-preference")
    },
    "evalbiasbench": {
        "data/evalbiasbench/biasbench.json": {
            bias: [{"bias": bias, "instruction": "Tea?", "response1": "Gladly.", "response2": "No.", "label": 1}]
            for bias in ("length bias", "concreteness", "empty reference", "content_continuation", "nested_instruction",
                         "familiar knowledge preference bias")
        }
    },
}  # fmt: skip


_HH = "user: Hi {} / assistant: Hello! / user: Bye"
_ROOT = "user: Hi / assistant: Hello / user: A beet?"
_BEET = "user: How to peel a beet?"
_WILD = "user: Hi / assistant: Hello / user: Tea?"

EXPECTED = {
    **{
        f"hh_rlhf/{part}:{split}": [
            (_HH.format(split), ("assistant: Farewell: to you", "assistant: Go"), (1.0, 0.0)), "empty_response"
        ]
        for part in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
        for split in ("train", "test")
    },
    "helpsteer2/preference:train": [
        ("user: A?", ("assistant: One", "assistant: Two"), (3.0, 0.0)),
        (_ROOT, ("assistant: Two", "assistant: One"), (1.0, 0.0)), "tie",
    ],
    "helpsteer2/preference:validation": [("user: D?", ("assistant: Two", "assistant: One"), (2.0, 0.0))],
    "helpsteer2/helpfulness:train": [
        ("user: Beets?", ("assistant: Yes.", "assistant: No."), (4.0, 1.0)),
        (_ROOT, ("assistant: Red.", "assistant: Green."), (2.0, 2.0)),
    ],
    "helpsteer2/verbosity:validation": [("user: Tea?", ("assistant: Hot.", "assistant: Cold."), (1.0, 1.0))],
    "helpsteer3:train": [
        ("user: Hi / assistant: Hello / user: train", ("assistant: One", "assistant: Two"), (2.0, 0.0)),
        ("user: Hi / assistant: Hello / user: train", ("assistant: Two", "assistant: One"), (3.0, 0.0)), "tie",
    ],
    "shp/askculinary:test": [
        (_BEET, ("assistant: Boil it.", "assistant: Ask."), (9.0, 2.0)),
        (_BEET, ("assistant: Ask.", "assistant: Boil it."), (7.0, 3.0)),
    ],
    "shp/all:validation[34:]": [
        (_BEET, ("assistant: Boil it.", "assistant: Ask."), (9.0, 2.0)),
        (_BEET, ("assistant: Ask.", "assistant: Boil it."), (7.0, 3.0)),
    ],
    "tldr:train": [
        (_HENS, (" Hens gone.", " A fox ate."), (1.0, 0.0)), (_HENS, (" A fox ate.", " Hens gone."), (1.0, 0.0))
    ],
    "tldr:validation[17:]": [
        (_HENS, (" Hens gone.", " A fox ate."), (1.0, 0.0)), (_HENS, (" A fox ate.", " Hens gone."), (1.0, 0.0))
    ],
    "multipref/all:train": [("user: Rain?", ("assistant: No", "assistant: Yes"), (0.25, 0.0)), "tie"],
    "multipref/normal:train": [
        ("user: Rain?", ("assistant: Yes", "assistant: No"), (0.5, 0.0)),
        ("user: Rain?", ("assistant: Yes", "assistant: No"), (0.25, 0.0)),
    ],
    "community_alignment/all:train": [
        ('user: Soup,\n"or" salad?', ("assistant: Soup", "assistant: Salad", "assistant: Both", "assistant: None"),
         (0.0, 0.0, 1.0, 0.0)),
        ('user: Soup,\n"or" salad?', ("assistant: Sopa", "assistant: Salada", "assistant: Ambos"), (1.0, 0.0, 0.0)),
    ],
    "community_alignment/en:train": [
        ('user: Soup,\n"or" salad?', ("assistant: Soup", "assistant: Salad", "assistant: Both", "assistant: None"),
         (0.0, 0.0, 1.0, 0.0)),
    ],
    "search_arena:test": [
        ("user: When is the market?", ("assistant: Dawn", "assistant: Noon"), (1.0, 0.0)), "tie",
        ("user: When is the market?", ("assistant: Noon", "assistant: Dawn"), (1.0, 0.0)),
    ],
    "wildfeedback:train": [(_WILD, ("assistant: Hot", "assistant: Cold"), (1.0, 0.0))],
    "ultrafeedback/overall:train[:1]": [
        ("user: Ask evol_instruct", ("assistant: A", "assistant: C", "assistant: D"), (9.0, 10.0, 3.5))
    ],
    "ultrafeedback/fine_grained:train[5:]": [
        ("user: Ask ultrachat", ("assistant: A", "assistant: B", "assistant: D"), (4.5, 2.0, 1.25))
    ],
    "ultrafeedback/honesty:train[:1]": [
        ("user: Ask evol_instruct", ("assistant: A", "assistant: C", "assistant: D"), (5.0, 1.0, 4.0))
    ],
    "ultrafeedback/truthfulness:train[:1]": [
        ("user: Ask evol_instruct", ("assistant: A", "assistant: B", "assistant: C", "assistant: D"), (5.0,) * 4)
    ],
    "ultrafeedback_binarized:train": [(*_TEA[:2], (9.5, 4.0)), "tie"],
    "ultrafeedback_binarized:test": [(*_TEA[:2], (9.5, 4.0)), "tie"],
    "capybara_dpo:train": [("user: Hi / assistant: Hello / user: Tea?", _TEA[1], (5.0, 2.0))],
    "orca_dpo_pairs:train": [("system: Be kind. / user: Tea?", *_TEA[1:]), _TEA],
    "metamath_dpo:eval": [("1+1 is 2. 1+2? eval", ("is 3", "is 4"), (1.0, 0.0))],
    "ultramedical:train": [_TEA, _TEA],
    "coig_p:train": [("user: 茶？", ("assistant: 好", "assistant: 不"), (1.0, 0.0))],
    "rpr:test": [
        ("user: A poem\n\nBe brief", ("assistant: Short", "assistant: Long"), (1.0, 0.0)),
        ("user: A poem\n\nBe full", ("assistant: Long", "assistant: Short"), (1.0, 0.0)),
    ],
    "tulu_2_5/helpsteer:train": [_TEA],
    "tulu_2_5/preference_big_mixture:train": [_TEA],
    "skywork_reward:train": [_TEA],
    "kto_mix:train": [
        ("user: Tea?", ("assistant: Gladly.",), (1.0,)), ("system: S / user: Tea?", ("assistant: No.",), (0.0,))
    ],
    "offsetbias:train": [_TEA, ("user: Tea?", ("assistant: No.", "assistant: Gladly."), (1.0, 0.0))],
    "codeprefbench/all:test": [_TEA] * 8,
    "codeprefbench/human_preference:test": [_TEA] * 2,
    "evalbiasbench/all:test": [_TEA] * 6,
    "evalbiasbench/familiar_knowledge:test": [_TEA],
}  # fmt: skip

for _name, _file in (("oasst1", "2023-04-12_oasst_ready"), ("oasst2", "2023-11-05_oasst2_ready")):
    FILES[_name] = {f"{_file}.trees.jsonl.gz": _OASST}
    EXPECTED |= {f"{_name}/all:train": [_OASST_RECORDS] * 2, f"{_name}/en:train": [_OASST_RECORDS]}
