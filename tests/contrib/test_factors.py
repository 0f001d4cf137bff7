"""Bradley-Terry regression against closed forms, its own slope and a simulation; sparse features that were planted."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefjax.contrib.factors import bradley_terry_regression, count_features, preference_factors
from prefjax.contrib.sparse import _gradients, sparse_features, train_sparse_autoencoder
from prefjax.contrib.table import Table


def test_one_binary_feature_has_a_closed_form():
    """Chosen has it in 30 of 40 pairs that differ: w = log 3, and the information is 40 * 3/16."""
    differences = np.array([[1.0]] * 30 + [[-1.0]] * 10 + [[0.0]] * 7)
    fit = bradley_terry_regression(differences)
    assert fit.coefficients[0] == pytest.approx(math.log(3))
    assert fit.standard_errors[0] == pytest.approx((40 * 3 / 16) ** -0.5)
    expected = 30 * math.log(0.75) + 10 * math.log(0.25) + 7 * math.log(0.5)
    assert fit.log_likelihood == pytest.approx(expected)


@given(st.integers(0, 500), st.floats(1e-3, 1e3))
def test_it_is_the_maximum_and_follows_the_units_of_a_feature(seed, unit):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 2))
    x *= np.where(rng.random(60) < 1 / (1 + np.exp(-x @ np.array([1.0, -0.5]))), 1.0, -1.0)[:, None]
    fit = bradley_terry_regression(x)
    slope = x.T @ (1 / (1 + np.exp(x @ fit.coefficients)))  # of a concave function: 0 at its maximum alone
    np.testing.assert_allclose(slope, 0, atol=1e-8)
    scaled = bradley_terry_regression(x * np.array([[unit, 1.0]]))
    np.testing.assert_allclose(scaled.coefficients * np.array([unit, 1.0]), fit.coefficients, rtol=1e-6)
    np.testing.assert_allclose(scaled.standard_errors * np.array([unit, 1.0]), fit.standard_errors, rtol=1e-6)


def test_standard_errors_are_the_spread_of_estimates():
    truth, found, errors = np.array([0.8, -0.3]), [], []
    rng = np.random.default_rng(0)
    for _ in range(300):
        x = rng.normal(size=(400, 2))
        x *= np.where(rng.random(400) < 1 / (1 + np.exp(-x @ truth)), 1.0, -1.0)[:, None]
        fit = bradley_terry_regression(x)
        found.append(fit.coefficients)
        errors.append(fit.standard_errors)
    np.testing.assert_allclose(np.mean(found, 0), truth, atol=0.03)
    np.testing.assert_allclose(np.std(found, 0), np.mean(errors, 0), rtol=0.12)


@pytest.mark.parametrize(
    "differences, message",
    [
        (np.array([[1.0], [2.0]]), "tell chosen from rejected without exception"),
        (np.array([[1.0, 1.0], [-1.0, 2.0], [2.0, 0.0], [-3.0, 1.0]]), "without exception"),
        (np.array([[1.0, 2.0], [-1.0, -2.0], [1.0, 2.0]]), "depend on each other"),
        (np.array([[1.0, 0.0], [-1.0, 0.0]]), r"features \[1\] never differ"),
        (np.zeros((3, 0)), "never differ"),
    ],
)
def test_fits_that_do_not_exist_are_refused(differences, message):
    with pytest.raises(ValueError, match=message):
        bradley_terry_regression(differences)


def test_text_features_count_what_a_reader_sees():
    text = "# Title\n\n- one **bold**\n* two\n1. three: see https://a.b/c?\n\n```\ncode!\n```\nnot-a-list - 2 words\n"
    names = ("headings", "list items", "bold", "code blocks", "links", "lines", "exclamation marks", "digits")
    assert count_features([text, ""], names).tolist() == [[1, 3, 1, 1, 1, 8, 1, 2], [0] * 8]
    with pytest.raises(ValueError, match="no text feature 'length': choose from words"):
        count_features([text], ("length",))


def test_the_tool_finds_that_long_answers_win_and_names_what_never_differs():
    long, short = "a b c d e", "a b"
    responses = [[long, short]] * 8 + [[short, long]] * 4
    rows = Table({"responses": responses, "cites": [[1, 0], [0, 1]] * 6})
    output = preference_factors(rows, columns=("cites",))
    words = output.values["factors"]["words"]
    assert words["coefficient"] == pytest.approx(math.log(2)) and words["deviation"] == 3.0
    assert words["chosen_has_more"].value == pytest.approx(2 / 3)
    assert output.values["factors"]["cites"]["coefficient"] == pytest.approx(0, abs=1e-9)
    assert output.values["left_out"] == ["list items", "bold", "headings"]
    assert "Strongest factor: words" in output.headline
    with pytest.raises(ValueError, match="none of the features differs"):
        preference_factors(Table({"responses": [["a", "b"]]}))


def planted(pairs=1500, width=12, seed=0):
    """Embedding differences that are sparse sums of four directions; the first is preferred, the second not."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(width, width)))[0][:4]
    codes = rng.normal(size=(pairs, 4)) * (rng.random((pairs, 4)) < 0.3)
    prefers = rng.random(pairs) < 1 / (1 + np.exp(-codes @ np.array([2.0, -2.0, 0.0, 0.0])))
    codes *= np.where(prefers, 1.0, -1.0)[:, None]
    return codes, directions, codes @ directions + 0.01 * rng.normal(size=(pairs, width))


def test_gradients_are_those_of_the_loss():
    rng = np.random.default_rng(1)
    x, encoder, decoder = rng.normal(size=(6, 4)), rng.normal(size=(4, 5)), rng.normal(size=(5, 4))

    def loss(encoder, decoder):
        found = x @ encoder
        kept = np.sort(np.abs(found).ravel())[-12]
        z = np.where(np.abs(found) >= kept, found, 0.0)
        return float(((x - z @ decoder) ** 2).mean() / 0.7)

    gradients = _gradients(x, encoder, decoder, 12, 0.7)
    for name, array in (("encoder", encoder), ("decoder", decoder)):
        for place in np.ndindex(array.shape):
            step = np.zeros_like(array)
            step[place] = 1e-6
            ends = [
                loss(encoder + sign * step, decoder) if name == "encoder" else loss(encoder, decoder + sign * step)
                for sign in (1, -1)
            ]
            assert gradients[name][place] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)


def test_planted_directions_are_found_and_kept_as_sparse_as_asked():
    codes, directions, differences = planted()
    model = train_sparse_autoencoder(differences, features=4, active=1, epochs=60, learning_rate=5e-3)
    overlap = np.abs(model.decoder @ directions.T)
    assert overlap.max(0).min() > 0.95, overlap.round(2)
    z = model.activations(differences)
    assert (z != 0).sum() == len(differences) * 1
    np.testing.assert_array_equal(model.activations(-differences), -z)
    assert model.unexplained(differences) < 0.15
    np.testing.assert_allclose(np.linalg.norm(model.decoder, axis=1), 1, rtol=1e-6)
    again = train_sparse_autoencoder(differences, features=4, active=1, epochs=60, learning_rate=5e-3)
    np.testing.assert_array_equal(again.decoder, model.decoder)


def test_the_tool_says_which_features_are_preferred():
    _, directions, differences = planted()
    embedding = np.stack([differences, np.zeros_like(differences)], axis=1)
    rows = Table({"embedding": embedding, "length": np.random.default_rng(2).normal(size=(len(embedding), 2))})
    output = sparse_features(rows, control="length", features=4, active=1, epochs=60, learning_rate=5e-3)
    model = train_sparse_autoencoder(differences, features=4, active=1, epochs=60, learning_rate=5e-3)
    sways = {each["feature"]: each["coefficient"] / each["standard_error"] for each in output.values["features"]}
    matches = model.decoder @ directions.T
    for place, sign in ((0, 1), (1, -1)):
        feature = int(np.abs(matches[:, place]).argmax())
        assert sign * np.sign(matches[feature, place]) * sways[feature] > 8
    for place in (2, 3):
        assert abs(sways[int(np.abs(matches[:, place]).argmax())]) < 4
    strongest = output.values["features"][0]
    row = strongest["rows"][0]
    activation = model.activations(differences)[:, strongest["feature"]]
    assert activation[abs(row) - 1] == np.sign(row) * np.abs(activation).max()
    with pytest.raises(ValueError, match="never differs"):
        sparse_features(Table({"embedding": embedding, "same": np.ones((len(embedding), 2))}), control="same")


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="active=5"):
        train_sparse_autoencoder(np.ones((3, 2)), features=4, active=5)
    with pytest.raises(ValueError, match="all embedding differences are 0"):
        train_sparse_autoencoder(np.zeros((3, 2)))
