"""Datasets judged by people: votes, ratings and comparisons."""

import itertools
import re
from collections.abc import Iterator

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

# HH-RLHF ------------------------------------------------------------------------------------------------------------

_HH = "Anthropic/hh-rlhf"
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def _hh_messages(transcript: str) -> list[Row]:
    """A transcript "\\n\\nHuman: ...\\n\\nAssistant: ..." as messages; the one space after each colon goes."""
    _, *parts = _HH_TURN.split(transcript)
    turns = zip(parts[::2], parts[1::2], strict=True)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.removeprefix(" ")} for who, said in turns]


def _hh(row: Row) -> Row:
    return {side: _hh_messages(row[side]) for side in ("chosen", "rejected")}


def _hh_variant(name: str) -> Variant:
    splits = {s: Split((hub_file(_HH, f"{name}/{s}.jsonl.gz", format="jsonl"),)) for s in ("train", "test")}
    return Variant("pairs", splits, ("chosen", "rejected"), each(_hh), name)


HH_RLHF = Dataset(
    name="hh_rlhf",
    title="HH-RLHF, helpful and harmless dialogues",
    homepage=hub_page(_HH),
    licence="MIT",
    paper="arXiv 2204.05862",
    variants=tuple(map(_hh_variant, ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"))),
    note="Offensive and harmful texts by design. The prompt is what both transcripts share.",
)

# HelpSteer ----------------------------------------------------------------------------------------------------------

_HELPSTEER2 = "nvidia/HelpSteer2"
_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
HELPSTEER2_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def _helpsteer2_prompt(prompt: str) -> list[Row]:
    """Prompts of several turns mark every turn but the first, which is the user's, by <extra_id_1>."""
    first, *parts = _HELPSTEER_TURN.split(prompt)
    turns = zip(("User", *parts[::2]), (first, *parts[1::2]), strict=True)
    return [{"role": who.lower(), "content": said} for who, said in turns]


def _helpsteer2_ratings(attribute: str) -> Variant:
    def records(rows: Iterator[Row]) -> Iterator[Row]:
        for prompt, rated in itertools.groupby(rows, key=lambda row: row["prompt"]):
            rated = list(rated)
            yield {
                "prompt": _helpsteer2_prompt(prompt),
                "completions": [row["response"] for row in rated],
                "scores": [row[attribute] for row in rated],
            }

    splits = {s: Split((hub_file(_HELPSTEER2, f"{s}.jsonl.gz", format="jsonl"),)) for s in ("train", "validation")}
    return Variant("rankings", splits, ("prompt", "response", attribute), records, attribute)


def _helpsteer2_preference(row: Row) -> Row:
    prompt = _helpsteer2_prompt(row["prompt"])
    return pair(prompt, row["response_1"], row["response_2"], -row["preference_strength"])


_HELPSTEER2_PREFERENCE = hub_file(_HELPSTEER2, "preference/preference.jsonl.gz", format="jsonl")
HELPSTEER2 = Dataset(
    name="helpsteer2",
    title="HelpSteer2, ratings of five attributes from 0 to 4, and preferences from -3 to 3",
    homepage=hub_page(_HELPSTEER2),
    licence="CC-BY-4.0",
    paper="arXiv 2406.08673, 2410.01257",
    variants=(
        Variant(
            "pairs",
            {
                "train": Split((_HELPSTEER2_PREFERENCE,), {"split": ("train",)}),
                "validation": Split((_HELPSTEER2_PREFERENCE,), {"split": ("val",)}),
            },
            ("prompt", "response_1", "response_2", "preference_strength"),
            each(_helpsteer2_preference),
            "preference",
        ),
        *map(_helpsteer2_ratings, HELPSTEER2_ATTRIBUTES),
    ),
    note="Rows of one prompt follow each other and become one ranking.",
)

_HELPSTEER3 = "nvidia/HelpSteer3"


def _helpsteer3(row: Row) -> Row:
    return pair(row["context"], row["response1"], row["response2"], -row["overall_preference"])


HELPSTEER3 = Dataset(
    name="helpsteer3",
    title="HelpSteer3-Preference, general, STEM, code and multilingual, preferences from -3 to 3",
    homepage=hub_page(_HELPSTEER3),
    licence="CC-BY-4.0",
    paper="arXiv 2505.11475",
    variants=(
        Variant(
            "pairs",
            {
                s: Split((hub_file(_HELPSTEER3, f"preference/{s}.jsonl.gz", format="jsonl"),))
                for s in ("train", "validation")
            },
            ("context", "response1", "response2", "overall_preference"),
            each(_helpsteer3),
            "preference",
        ),
    ),
)

# Reddit -------------------------------------------------------------------------------------------------------------

_SHP = "stanfordnlp/SHP"
SHP_SUBREDDITS = (
    *("askacademia", "askanthropology", "askbaking", "askcarguys", "askculinary", "askdocs", "askengineers"),
    *("askhistorians", "askhr", "askphilosophy", "askphysics", "askscience", "asksciencefiction", "asksocialscience"),
    *("askvet", "changemyview", "explainlikeimfive", "legaladvice"),
)


def _shp(row: Row) -> Row:
    chosen, rejected = "AB" if row["labels"] == 1 else "BA"
    return {
        "prompt": user(row["history"]),
        "chosen": row[f"human_ref_{chosen}"],
        "rejected": row[f"human_ref_{rejected}"],
        "score_chosen": row[f"score_{chosen}"],
        "score_rejected": row[f"score_{rejected}"],
    }


def _shp_variant(name: str, subreddits: tuple[str, ...]) -> Variant:
    splits = {
        split: Split(tuple(hub_file(_SHP, f"{subreddit}/{split}.json", format="jsonl") for subreddit in subreddits))
        for split in ("train", "validation", "test")
    }
    columns = ("history", "human_ref_A", "human_ref_B", "score_A", "score_B", "labels")
    return Variant("pairs", splits, columns, each(_shp), name)


SHP = Dataset(
    name="shp",
    title="Stanford Human Preferences, comments on 18 subreddits",
    homepage=hub_page(_SHP),
    licence="see the source (Reddit's terms)",
    paper="arXiv 2110.08420",
    variants=(_shp_variant("all", SHP_SUBREDDITS), *(_shp_variant(name, (name,)) for name in SHP_SUBREDDITS)),
    note="Scores are the votes a comment got; both comments are people's.",
)

_TLDR = "https://openaipublic.blob.core.windows.net/summarize-from-feedback/dataset/comparisons"
_TLDR_BATCHES = (*range(3, 21), 22)  # the others are about news articles
_TLDR_PROMPT = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def _tldr(row: Row) -> Row:
    summaries = [" " + summary["text"].removeprefix(" ") for summary in row["summaries"]]
    return {
        "prompt": _TLDR_PROMPT.format_map(row["info"]),
        "chosen": summaries[row["choice"]],
        "rejected": summaries[1 - row["choice"]],
    }


def _tldr_splits() -> dict[str, Split]:
    files = tuple(File(f"batch{n}.json", f"{_TLDR}/batch{n}.json", "jsonl") for n in _TLDR_BATCHES)
    return {"train": Split(files, {"split": ("train",)}), "validation": Split(files, {"split": ("valid1", "valid2")})}


TLDR = Dataset(
    name="tldr",
    title="TL;DR comparisons, summaries of Reddit posts",
    homepage="https://github.com/openai/summarize-from-feedback",
    licence="see the source",
    paper="arXiv 2009.01325",
    variants=(Variant("pairs", _tldr_splits(), ("info", "summaries", "choice"), each(_tldr)),),
    note="Plain text, in the prompt format of the paper's code.",
)

# Several annotators, several countries -------------------------------------------------------------------------------

_MULTIPREF_VOTES = {
    "A-is-clearly-better": 1.0,
    "A-is-slightly-better": 0.5,
    "Tie": 0.0,
    "B-is-slightly-better": -0.5,
    "B-is-clearly-better": -1.0,
}


def _multipref(kinds: tuple[str, ...]) -> Variant:
    columns = tuple(f"{kind}_worker_annotations" for kind in kinds)

    def record(row: Row) -> Row:
        votes = [_MULTIPREF_VOTES[vote["overall_pref"]] for column in columns for vote in row[column]]
        return pair(user(row["text"]), row["completion_a"], row["completion_b"], sum(votes) / len(votes))

    splits = {"train": Split((HubParquet("allenai/multipref", "train"),))}
    name = kinds[0] if len(kinds) == 1 else "all"
    return Variant("pairs", splits, ("text", "completion_a", "completion_b", *columns), each(record), name)


MULTIPREF = Dataset(
    name="multipref",
    title="MultiPref, two crowd workers and two experts on every pair",
    homepage=hub_page("allenai/multipref"),
    licence="ODC-BY",
    paper="arXiv 2410.19133",
    variants=(_multipref(("normal", "expert")), _multipref(("normal",)), _multipref(("expert",))),
    note="The mean of the overall votes, clearly 1 and slightly 0.5, decides; its size is the score of the winner.",
)

_COMMUNITY = "facebook/community-alignment-dataset"
_COMMUNITY_FILE = hub_file(
    _COMMUNITY, "community_alignment.csv", format="csv", revision="97343c7f6399fcbea430ed0f37c1768281a78d56"
)


def _community(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        offered = {f"response_{x}": row[f"first_turn_response_{x}"] for x in "abcd"}
        offered = {name: text.replace("<|end_of_text|>", "") for name, text in offered.items() if text}
        best = row["first_turn_preferred_response"]
        if best is not None:
            scores = [float(name == best) for name in offered]
            yield {"prompt": user(row["first_turn_prompt"]), "completions": [*offered.values()], "scores": scores}


def _community_variant(name: str, where: dict[str, tuple[str, ...]]) -> Variant:
    columns = ("first_turn_prompt", "first_turn_preferred_response", *(f"first_turn_response_{x}" for x in "abcd"))
    return Variant("rankings", {"train": Split((_COMMUNITY_FILE,), where)}, columns, _community, name)


COMMUNITY_ALIGNMENT = Dataset(
    name="community_alignment",
    title="Community Alignment, the best of four responses to people of five countries",
    homepage=hub_page(_COMMUNITY),
    licence="CC-BY-4.0",
    paper="arXiv 2507.09650",
    variants=(_community_variant("all", {}), _community_variant("en", {"assigned_lang": ("en",)})),
    note=(
        "First turns; the preferred response scores 1 and the others 0, so make pairs by data.rankings='all'. Rows "
        "without a preference are left out. People disagree on one prompt on purpose."
    ),
)

# Users ---------------------------------------------------------------------------------------------------------------

_SEARCH = "lmarena-ai/search-arena-24k"


def _search_arena(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        a, b = row["messages_a"], row["messages_b"]
        if row["winner"] is not None and len(a) == len(b) == 2:
            preference = {"model_a": 1, "model_b": -1}.get(row["winner"], 0)
            yield pair(a[:1], a[1]["content"], b[1]["content"], preference)


SEARCH_ARENA = Dataset(
    name="search_arena",
    title="Search Arena, votes on answers of models that search the web",
    homepage=hub_page(_SEARCH),
    licence="prompts CC-BY-4.0, responses under their providers' terms",
    paper="arXiv 2506.05334",
    variants=(
        Variant(
            "pairs",
            {
                "test": Split(
                    (
                        hub_file(
                            _SEARCH,
                            "data/search-arena-chat-24k.parquet",
                            format="parquet",
                            revision="fac8dcf86146c8773ef020095c5694c9b2bc98d7",
                        ),
                    ),
                )
            },
            ("messages_a", "messages_b", "winner"),
            _search_arena,
        ),
    ),
    note=(
        "Battles of one turn: in a longer one, the two sides hold different conversations before the vote. About half "
        "of the conversations have no vote and are left out. The source calls its only split test."
    ),
)

_WILDFEEDBACK = "microsoft/WildFeedback"


def _wildfeedback(row: Row) -> Row:
    sides = {side: [{"role": "assistant", "content": row[side]["value"]}] for side in ("chosen", "rejected")}
    return {"prompt": sharegpt(row["conversations"]), **sides}


WILDFEEDBACK = Dataset(
    name="wildfeedback",
    title="WildFeedback, preferences taken from what users said next",
    homepage=hub_page(_WILDFEEDBACK),
    licence="ODC-BY",
    paper="arXiv 2408.15549",
    variants=(
        Variant(
            "pairs",
            {
                "train": Split(
                    (
                        hub_file(
                            _WILDFEEDBACK,
                            "wildfeedback.json",
                            format="json",
                            revision="8b1a3e530b949d6aacfad6ba8912e209a05bc846",
                        ),
                    )
                )
            },
            ("conversations", "chosen", "rejected"),
            each(_wildfeedback),
        ),
    ),
)

DATASETS = (HH_RLHF, HELPSTEER2, HELPSTEER3, SHP, TLDR, MULTIPREF, COMMUNITY_ALIGNMENT, SEARCH_ARENA, WILDFEEDBACK)
