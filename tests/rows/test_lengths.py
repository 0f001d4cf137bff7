"""Length statistics against their definitions."""

import json

import numpy as np
import pytest

from prefjax.data.encoding import encode_all
from prefjax.data.readers import read_records
from prefjax.data.tokenizers import load_tokenizer
from prefjax.rows.lengths import summarize_lengths
from prefjax.rows.trees import TokenTree


def tree(prompt: int, *responses: int, targets=None, **branches: int) -> TokenTree:
    """A tree of given lengths."""

    def tokens(length: int) -> np.ndarray:
        return np.zeros(length, np.int32)

    targets = np.array(targets or range(len(responses), 0, -1), np.float32)
    extras = {name: tokens(length) for name, length in branches.items()}
    return TokenTree(tokens(prompt), tuple(map(tokens, responses)), targets, **extras)


def test_one_pair_in_full():
    statistics = summarize_lengths([tree(10, 4, 6)])
    medians = {name: summary.median for name, summary in statistics.lengths.items()}
    names = ("prompt", "response", "chosen", "rejected", "sequence", "tree", "separate", "responses")
    assert medians == dict(zip(names, (10, 5, 4, 6, 15, 20, 30, 2), strict=True))
    ratios = {name: round(summary.median, 4) for name, summary in statistics.ratios.items()}
    assert ratios == {"P / C": 2.5, "P / R": 1.6667, "P / mean L": 2.0, "P / max L": 1.6667, "P / sum L": 1.0}
    assert (statistics.separate_tokens, statistics.shared_tokens, statistics.token_saving) == (30, 20, 1.5)


def test_the_saving_is_a_ratio_of_sums_not_a_formula_at_the_median():
    trees = [tree(100, 10, 10), tree(4, 100, 100), tree(6, 10, 10)]
    statistics = summarize_lengths(trees)
    assert statistics.token_saving == pytest.approx((220 + 208 + 32) / (120 + 204 + 26))
    median = statistics.ratios["P / mean L"].median
    assert abs(statistics.token_saving - 2 * (median + 1) / (median + 2)) > 0.05
    assert statistics.ratio_of_means == pytest.approx(110 / 120)


def test_every_branch_counts_and_only_pairs_have_a_chosen_response():
    statistics = summarize_lengths(
        [tree(10, 4, 6, 2), tree(8, 3), tree(5, 1, 1, targets=(0.0, 0.0)), tree(7, 2, 5, baseline=3, auxiliary=4)]
    )
    assert statistics.lengths["chosen"].count == statistics.ratios["P / R"].count == 1
    assert statistics.lengths["response"].count == 8 and statistics.lengths["prompt"].count == 4
    assert statistics.separate_tokens == (3 * 10 + 12) + (8 + 3) + (2 * 5 + 2) + (4 * 7 + 14)
    assert statistics.shared_tokens == (10 + 12) + (8 + 3) + (5 + 2) + (7 + 14)
    single = summarize_lengths([tree(8, 3), tree(9, 4)])
    assert single.token_saving == 1 and "chosen" not in single.lengths and "P / C" not in single.ratios
    with pytest.raises(ValueError, match="no token trees"):
        summarize_lengths([])


def test_summaries_and_the_table():
    statistics = summarize_lengths([tree(length, 2, 1) for length in (1, 2, 3, 4, 10)])
    prompt = statistics.lengths["prompt"]
    assert (prompt.count, prompt.median, prompt.mean, prompt.max) == (5, 3.0, 4.0, 10.0)
    assert prompt.p95 == pytest.approx(4 + 0.8 * 6)  # linear between the fourth and the fifth of five
    text = str(statistics)
    for summary in (*statistics.lengths.values(), *statistics.ratios.values()):
        assert summary.definition in text
    assert f"{statistics.token_saving:.2f} times fewer" in text and "sum over branches of P + L" in text
    assert json.loads(json.dumps(statistics.as_dict()))["token_saving"] == statistics.token_saving


def test_real_set_against_sequences_counted_one_by_one(real_data):
    records, _ = read_records(real_data / "oasst_en100_ranked.jsonl.gz", progress=False)
    trees, _ = encode_all(records, load_tokenizer("byte"), progress=False)
    statistics = summarize_lengths(trees)
    assert statistics.separate_tokens == sum(t.prompt.size + r.size for t in trees for r in t.responses)
    assert statistics.shared_tokens == sum(t.prompt.size + sum(r.size for r in t.responses) for t in trees)
    assert statistics.lengths["chosen"].count == 57 and statistics.lengths["responses"].max == 9
    assert 1.3 < statistics.token_saving < 1.6
