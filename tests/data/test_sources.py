"""What data.train names: files, names, the hub and mixtures, and what preparing says of every source."""

import itertools
import json
import sys
import types

import numpy as np
import pytest

from prefjax.data.config import DataConfig
from prefjax.data.formats import RecordFormat
from prefjax.data.prepare import full_account, prepare
from prefjax.data.readers import read_records
from prefjax.data.sources import OpenSource, Source, parse_sources, take_shares
from prefjax.data.tokenizers import load_tokenizer
from prefjax.data.world_records import WorldOptions
from prefjax.options import build as dataclass_from
from prefjax.requirements import Requirements
from tests.data.dataset_samples import write_samples

PAIRS = Requirements(2)


def write_pairs(path, count: int, word: str = "pair", ties: int = 0) -> str:
    rows = [
        {"prompt": f"{word} {i}?", "chosen": f" yes {i}", "rejected": f" no {i}", "score_chosen": 2.0,
         "score_rejected": 2.0 if i < ties else 1.0}
        for i in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(config: DataConfig, directory, split: str = "train", need: Requirements = PAIRS):
    return prepare(config, need, load_tokenizer("byte", None), directory, split=split, progress=False)


def prompts(trees) -> list[str]:
    return ["".join(map(chr, trees[i].prompt[trees[i].prompt < 256])) for i in range(len(trees))]


def test_mixtures_read_as_they_look(tmp_path):
    assert parse_sources("a.jsonl") == (Source("a.jsonl"),)
    assert parse_sources("a.jsonl + hh_rlhf/helpful-base:train") == (
        Source("a.jsonl"), Source("hh_rlhf/helpful-base:train"),
    )  # fmt: skip
    mixed = parse_sources("0.5 a*.jsonl + .25 b:train[:10%] + 1 hf:o/n:train")
    assert [s.name for s in mixed] == ["a*.jsonl", "b:train[:10%]", "hf:o/n:train"]
    np.testing.assert_allclose([s.share for s in mixed], np.array([0.5, 0.25, 1]) / 1.75)
    for name in ("3 bears.jsonl", "a + b.jsonl"):  # a file is itself, whatever its name looks like
        path = tmp_path / name
        path.write_text("")
        assert parse_sources(str(path)) == (Source(str(path)),)


@pytest.mark.parametrize(
    "text, hint",
    [("0.7 a", "every one of several"), ("0.7 a + b", "every one of several"), ("a + ", "missing beside a plus"),
     ("a + a", "named twice"), ("0 a + 1 b", "above 0")],
)  # fmt: skip
def test_mixtures_that_say_nothing_are_refused(text, hint):
    with pytest.raises(ValueError, match=hint):
        DataConfig(train=text)


def test_the_synthetic_world_is_not_mixed():
    with pytest.raises(ValueError, match="synthetic world cannot be mixed"):
        DataConfig(train="0.5 synthetic + 0.5 a.jsonl")
    with pytest.raises(ValueError, match="named twice"):
        DataConfig(train="synthetic", eval="a + a")


def test_shares_are_the_largest_mixture_without_repeats(tmp_path):
    records = [read_records(write_pairs(tmp_path / f"{n}.jsonl", n), progress=False)[0] for n in (40, 30, 7)]
    sources = [Source("a", 0.5), Source("b", 0.3), Source("c", 0.2)]
    kept, accounts = take_shares(records, sources, 0)
    assert [len(own) for own in kept] == [17, 10, 7]  # 7 / 0.2 = 35 in all, and the smallest is kept whole
    for own, chosen, account in zip(records, kept, accounts, strict=True):
        assert [record for record in own if record in chosen] == chosen  # in the order they had
        assert account["mix"].read == len(own) and account["mix"].dropped["not_drawn"] == len(own) - len(chosen)
    assert take_shares(records, sources, 0)[0] == kept
    other = take_shares(records, sources, 1)[0]
    assert other[0] != kept[0] and [len(own) for own in other] == [17, 10, 7]
    # A larger mixture of the same seed holds the smaller one.
    larger = take_shares([records[0], records[1]], [Source("a", 0.5), Source("b", 0.5)], 0)[0]
    assert set(kept[0]) < set(larger[0]) and len(larger[0]) == 30
    # What one source draws does not depend on the others' order.
    turned = take_shares(records[::-1], sources[::-1], 0)[0]
    assert turned[::-1] == kept
    with pytest.raises(ValueError, match="no record of b is left"):
        take_shares([records[0], []], [Source("a", 0.5), Source("b", 0.5)], 0)


def test_draws_are_uniform(tmp_path):
    records, _ = read_records(write_pairs(tmp_path / "f.jsonl", 10), progress=False)
    sources = [Source("a", 0.3), Source("b", 0.7)]
    counts = np.zeros(10)
    for seed in range(200):
        for record in take_shares([records, records[:7]], sources, seed)[0][0]:
            counts[records.index(record)] += 1
    # 3 of 10 in each of 200 draws: 60 each, standard deviation 6.5.
    assert counts.sum() == 600 and np.abs(counts - 60).max() < 4 * 6.5


def test_every_source_is_counted_in_account_and_manifest(tmp_path):
    a = write_pairs(tmp_path / "a.jsonl", 20, "alpha", ties=4)
    b = write_pairs(tmp_path / "b.jsonl", 30, "beta")
    held_out = write_pairs(tmp_path / "e.jsonl", 3, "gamma")
    config = DataConfig(train=f"0.8 {a} + 0.2 {b}", eval=held_out)
    trees = prepared(config, tmp_path / "prepared")
    first, second = trees.manifest["sources"]
    assert (first["name"], first["share"], first["trees"]) == (a, 0.8, 16)
    assert (second["name"], second["trees"]) == (b, 4)
    assert first["account"]["read"]["dropped"] == {"tie": 4} and second["account"]["read"]["dropped"] == {}
    assert second["account"]["mix"]["dropped"] == {"not_drawn": 26}
    total = trees.manifest["account"]
    assert total["read"]["read"] == 50 and total["mix"]["kept"] == total["encode"]["outputs"] == len(trees) == 20
    texts = prompts(trees)
    assert all("alpha" in text for text in texts[:16]) and all("beta" in text for text in texts[16:])
    lines = full_account(trees).splitlines()
    assert [line.split()[1:] for line in lines if line.startswith((f"{a} ", f"{b} "))] == [
        ["80.0%", "20", "16", "16", "80.0%"], ["20.0%", "30", "30", "4", "20.0%"],
    ]  # fmt: skip


def test_all_records_without_shares_and_the_order_of_the_names(tmp_path):
    a, b = write_pairs(tmp_path / "a.jsonl", 5, "alpha"), write_pairs(tmp_path / "b.jsonl", 7, "beta")
    config = DataConfig(train=f"{a} + {b}", eval=a)
    trees = prepared(config, tmp_path / "prepared")
    assert [source["trees"] for source in trees.manifest["sources"]] == [5, 7]
    assert "mix" not in trees.manifest["account"]
    single = prepared(DataConfig(train=a, eval=a), tmp_path / "prepared")
    assert "asked" not in full_account(single) and "asked" in full_account(trees)
    assert single.manifest["sources"][0]["trees"] == 5


def test_what_was_prepared_is_found_by_content_seed_and_shares(tmp_path):
    a, b = write_pairs(tmp_path / "a.jsonl", 9, "alpha"), write_pairs(tmp_path / "b.jsonl", 9, "beta")

    def where(train, **options):
        return prepared(DataConfig(train=train, eval=a, **options), tmp_path / "prepared").directory

    kept = where(f"0.5 {a} + 0.5 {b}")
    assert where(f"1 {a} + 1 {b}") == kept
    others = {
        where(f"0.6 {a} + 0.4 {b}"),
        where(f"{a} + {b}"),
        where(f"0.5 {a} + 0.5 {b}", mixture_seed=1),
        where(a),
    }
    assert len(others) == 4 and kept not in others
    assert where(a, mixture_seed=1, tfds_dir="x", manual_dir="y") == where(a)
    write_pairs(tmp_path / "b.jsonl", 10, "beta")
    assert where(f"0.5 {a} + 0.5 {b}") != kept


def test_prompts_held_out_of_a_mixture_are_in_no_other_half(tmp_path):
    a, b = write_pairs(tmp_path / "a.jsonl", 60, "same"), write_pairs(tmp_path / "b.jsonl", 61, "same")
    config = DataConfig(train=f"0.5 {a} + 0.5 {b}", holdout=0.3)
    halves = [set(prompts(prepared(config, tmp_path / "prepared", split))) for split in ("train", "eval")]
    assert all(halves) and not halves[0] & halves[1]


def test_rewards_of_a_mixture_are_normalised_together(tmp_path):
    rows = {"low": [0.0, 2.0], "high": [10.0, 12.0]}
    for name, rewards in rows.items():
        text = "".join(
            json.dumps({"prompt": f"{name} {i}", "completion": f" {i}", "reward": reward}) + "\n"
            for i, reward in enumerate(rewards)
        )
        (tmp_path / f"{name}.jsonl").write_text(text)
    train = " + ".join(str(tmp_path / f"{name}.jsonl") for name in rows)
    need = Requirements(reads="rewards")
    config = DataConfig(train=train, eval=train, normalize_targets=True)
    trees = prepared(config, tmp_path / "prepared", need=need)
    targets = np.array([trees[i].targets[0] for i in range(4)])
    np.testing.assert_allclose(targets, (np.array([0, 2, 10, 12]) - 6) / np.sqrt(26), rtol=1e-6)
    assert trees.manifest["normalization"] == {"mean": 6.0, "std": pytest.approx(np.sqrt(26))}


def test_a_file_without_the_number_that_is_read_is_refused_with_the_count(tmp_path):
    file, need = write_pairs(tmp_path / "mine.jsonl", 6), Requirements(2, inputs=frozenset({"margin"}))
    said = r"(?s)no record of the train split is left.*missing_field +6 +6.*margin_field"
    with pytest.raises(ValueError, match=said):
        prepared(DataConfig(train=file, eval=file), tmp_path, need=need)
    rows = [json.loads(line) | {"gap": i / 2} for i, line in enumerate(open(file))]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(train=file, eval=file, format=RecordFormat(margin_field="gap"))
    trees = prepared(config, tmp_path, need=need)
    assert [trees[i].margin for i in range(6)] == [i / 2 for i in range(6)]


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize(
    "need,responses,numbers",
    [
        (Requirements(2, reads="scores"), 2, (True, True)),
        (Requirements(2, inputs=frozenset({"margin"})), 2, (True, True)),
        (Requirements(min_responses=2, reads="scores"), 4, (False, False)),
        (Requirements(reads="scores"), 4, (False, False)),
        (PAIRS, 2, (False, False)),
    ],
)
def test_the_synthetic_world_feeds_every_need(need, responses, numbers, split, tmp_path):
    config = DataConfig(
        pair_targets="scores" if need.reads == "scores" else "labels",
        world=WorldOptions(train_examples=8, eval_examples=4, temperature=1.0),
        format=RecordFormat(margin_field="margin", target_probability_field="target_probability"),
    )
    trees = prepared(config, tmp_path, split, need)
    assert trees.lengths.responses.shape == ({"train": 8, "eval": 4}[split], responses)
    for tree in (trees[i] for i in range(len(trees))):
        assert (tree.margin is not None, tree.target_probability is not None) == numbers
        if numbers[0] and need.reads == "scores":
            assert tree.targets[0] - tree.targets[1] == pytest.approx(tree.margin, abs=1e-5)
            assert tree.target_probability == pytest.approx(1 / (1 + np.exp(-tree.margin)), abs=1e-6)


def test_the_synthetic_world_says_which_words_explain_a_preference(tmp_path):
    need = Requirements(2, inputs=frozenset({"token_weight"}))
    trees = prepared(
        DataConfig(world=WorldOptions(8, 4), format=RecordFormat(spans_field="spans")), tmp_path, need=need
    )
    for tree in (trees[i] for i in range(len(trees))):
        scores = [{number: w for w, number in zip(*marks, strict=True)} for marks in zip(*marks_of(tree), strict=True)]
        assert [sorted(own) for own in scores] == [[0, 1, 2, 3, 4]] * 2, "four slots, and what stands between them"
        assert scores[0] == scores[1] and max(scores[0].values()) > 0 and min(scores[0].values()) == scores[0][0] == 0


def marks_of(tree):
    return tree.token_weight, tree.token_segment


def test_a_name_and_a_file_together_offline(tmp_path):
    for dataset in ("ultrafeedback", "helpsteer3"):
        write_samples(tmp_path / "manual", dataset)
    mine = write_pairs(tmp_path / "mine.jsonl", 4)
    config = DataConfig(
        train=f"ultrafeedback/overall:train + {mine}",
        eval="helpsteer3:validation",
        rankings="all",
        tfds_dir=str(tmp_path / "tfds"),
        manual_dir=str(tmp_path / "manual"),
    )
    trees = prepared(config, tmp_path / "prepared")
    assert [source["trees"] for source in trees.manifest["sources"]] == [6 * 3, 4]  # three rated responses, three pairs
    assert trees.manifest["sources"][0]["account"]["adapt"]["outputs"] == 18
    held_out = prepared(config, tmp_path / "prepared", "eval")
    assert held_out.manifest["account"]["read"]["dropped"] == {"tie": 1} and len(held_out) == 2


def fake_hub(monkeypatch, rows):
    calls = []
    module = types.ModuleType("datasets")
    module.load_dataset = lambda *args, **options: calls.append((args, options)) or rows
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_the_hub_through_its_library(monkeypatch):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "a"}]
    calls = fake_hub(monkeypatch, rows)
    source = OpenSource("hf:owner/name:train[:10%]")
    records, account = source.read(RecordFormat())
    assert calls == [(("owner/name", None), {"split": "train[:10%]"})]
    assert [record.source for record in records] == ["hf:owner/name:train[:10%]:1"]
    assert account["read"].dropped == {"missing_field": 1}
    assert account["read"].examples["missing_field"][0].startswith("hf:owner/name:train[:10%]:2:rejected")
    before = source.fingerprint()
    assert OpenSource("hf:owner/name/config:train").fingerprint() == before  # the content, not its name
    assert calls[1] == (("owner/name", "config"), {"split": "train"})
    rows[0] = {**rows[0], "chosen": "c"}
    assert source.fingerprint() != before
    for name in ("hf:owner/name", "hf:name:train", "hf:a/b/c/d:train", "hf:/b:train"):
        with pytest.raises(ValueError, match="write hf:owner/dataset:split"):
            OpenSource(name)


def test_without_the_library_the_hub_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="requirements-hf.txt"):
        OpenSource("hf:owner/name:train")


def test_a_file_in_two_sources_is_refused(tmp_path):
    path = write_pairs(tmp_path / "a.jsonl", 2)
    with pytest.raises(ValueError, match="named twice, so its records would count twice"):
        prepared(DataConfig(train=f"{path} + {tmp_path}/*.jsonl", eval=path), tmp_path / "prepared")


def test_files_stay_files(tmp_path, monkeypatch):
    """A path is never taken for a name, nor a name for a path."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "f.jsonl", 2)
    (tmp_path / "hh_rlhf").mkdir()
    write_pairs(tmp_path / "hh_rlhf" / "mine.jsonl", 3)
    counts = [len(OpenSource(name).read(RecordFormat(), progress=False)[0])
              for name in ("f.jsonl", "*.jsonl", "hh_rlhf/mine.jsonl", "hh_rlhf/*.jsonl")]  # fmt: skip
    assert counts == [2, 2, 3, 3]
    for name in ("missing.jsonl", "folder/missing.jsonl.gz", "*.nothing"):
        with pytest.raises(FileNotFoundError, match="no file"):
            OpenSource(name)
    assert len(OpenSource("hh_rlhf").read(RecordFormat(), progress=False)[0]) == 3, "a folder of that name is itself"
    (tmp_path / "d.png").write_text("[]")
    with pytest.raises(ValueError, match="suffix"):
        OpenSource("d.png")


def test_flags_reach_the_sources():
    given = {"train": "0.7 a.jsonl + 0.3 b.jsonl", "mixture_seed": 3, "tfds_dir": "t", "manual_dir": "m"}
    config = dataclass_from(DataConfig, given, "config.data")
    assert (config.mixture_seed, config.tfds_dir, config.manual_dir) == (3, "t", "m")
    names = [source.name for source in itertools.chain(parse_sources(config.train))]
    assert names == ["a.jsonl", "b.jsonl"]


def test_a_split_of_which_holding_out_leaves_nothing_says_what_to_change(tmp_path):
    config = DataConfig(train=write_pairs(tmp_path / "a.jsonl", 3), holdout=1e-4)
    said = "split eval: 0 of 3 records; .*: data.holdout=0.0001 may be too small for it, or too large"
    with pytest.raises(ValueError, match=f"no record of the eval split is left\n{said}"):
        prepared(config, tmp_path / "data", "eval")
