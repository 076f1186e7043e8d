"""Figures agree with scikit-learn and with numbers that a hand can check; intervals cover what they should."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sklearn

from cxr_ml.evaluation import metrics

CLASSES = ("NORMAL", "COVID19", "PNEUMONIA")


def pairs(confusion) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and predicted indices with this confusion matrix, and probabilities that say the same."""
    cells = [(t, p) for t, row in enumerate(confusion) for p, n in enumerate(row) for _ in range(n)]
    y, predicted = np.array([t for t, _ in cells]), np.array([p for _, p in cells])
    return y, predicted, 0.1 + 0.7 * np.eye(3)[predicted]


def drawn(n: int, seed: int = 0, skill: float = 1.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random images, decisions that are not always the likeliest class, and float32 probabilities."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    scores = rng.normal(size=(n, 3)) + skill * np.eye(3)[y]
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return y, (scores + np.array([0, 0.4, 0])).argmax(axis=1), p.astype(np.float32)


def test_metrics_agree_with_numbers_computed_by_hand():
    found = metrics.measure(*pairs(((8, 1, 1), (2, 6, 0), (0, 0, 2))), CLASSES)
    normal, covid, pneumonia = (found.classes[c] for c in CLASSES)
    assert (normal.recall, normal.precision, normal.f1, normal.support) == (0.8, 0.8, pytest.approx(0.8), 10)
    assert normal.specificity == 0.8 and covid.specificity == pytest.approx(11 / 12)
    assert (covid.recall, covid.support) == (0.75, 8)
    assert covid.precision == pytest.approx(6 / 7) and covid.f1 == pytest.approx(12 / 15)
    assert (pneumonia.recall, pneumonia.support) == (1.0, 2)
    assert pneumonia.precision == pytest.approx(2 / 3) and pneumonia.f1 == pytest.approx(4 / 5)
    assert found.macro_f1 == pytest.approx(0.8)
    assert found.accuracy == 0.8
    assert found.confusion == ((8, 1, 1), (2, 6, 0), (0, 0, 2))
    # 16 hits at 0.8 and 4 misses at 0.1: one bin of confidence 0.8, of which 0.8 are hits
    assert found.calibration_error == pytest.approx(0, abs=1e-12)
    assert found.log_loss == pytest.approx(-(0.8 * math.log(0.8) + 0.2 * math.log(0.1)))
    assert found.brier == pytest.approx(0.8 * 0.06 + 0.2 * (0.9**2 + 0.8**2 + 0.1**2))


def test_every_figure_is_that_of_scikit_learn_to_twelve_digits():
    y, predicted, p = drawn(5000)
    found = metrics.measure(y, predicted, p, CLASSES)
    exact = p.astype(np.float64)
    precision, recall, f1, support = sklearn.precision_recall_fscore_support(y, predicted)
    for i, label in enumerate(CLASSES):
        one = found.classes[label]
        assert (one.precision, one.recall, one.f1, one.support) == pytest.approx(
            (precision[i], recall[i], f1[i], support[i]), abs=1e-12
        )
        assert one.specificity == pytest.approx(
            sklearn.recall_score(y == i, predicted == i, pos_label=False), abs=1e-12
        )
        assert one.auc == pytest.approx(sklearn.roc_auc_score(y == i, exact[:, i]), abs=1e-12)
    assert found.macro_f1 == pytest.approx(sklearn.f1_score(y, predicted, average="macro"), abs=1e-12)
    assert found.accuracy == pytest.approx(sklearn.accuracy_score(y, predicted), abs=1e-12)
    assert found.log_loss == pytest.approx(sklearn.log_loss(y, exact / exact.sum(1, keepdims=True)), abs=1e-7)
    assert found.brier == pytest.approx(((exact - np.eye(3)[y]) ** 2).sum(axis=1).mean(), abs=1e-12)
    assert np.array_equal(found.confusion, sklearn.confusion_matrix(y, predicted))


def test_the_log_loss_is_scikit_learns_to_twelve_digits_where_probabilities_add_up():
    y, predicted, _ = drawn(1000)
    p = np.random.default_rng(3).dirichlet(np.ones(3), 1000)
    assert metrics.measure(y, predicted, p, CLASSES).log_loss == pytest.approx(sklearn.log_loss(y, p), abs=1e-12)


def test_equal_probabilities_count_half_in_the_auc():
    y, predicted, _ = drawn(300)
    found = metrics.measure(y, predicted, np.full((300, 3), 1 / 3), CLASSES)
    assert [c.auc for c in found.classes.values()] == [0.5, 0.5, 0.5]


def test_a_class_that_was_never_found_has_recall_and_f1_zero_and_no_precision():
    found = metrics.measure(*pairs(((5, 0, 0), (5, 0, 0), (0, 0, 5))), CLASSES)
    covid = found.classes["COVID19"]
    assert (covid.recall, covid.f1, covid.support) == (0.0, 0.0, 5)
    assert math.isnan(covid.precision)
    assert found.macro_f1 == pytest.approx((2 / 3 + 0 + 1) / 3)


@pytest.mark.parametrize("wrongly_predicted", [0, 3])
def test_a_class_without_images_has_no_recall_no_f1_no_auc_and_neither_has_the_mean(wrongly_predicted):
    found = metrics.measure(*pairs(((5, wrongly_predicted, 0), (0, 0, 0), (0, 0, 5))), CLASSES)
    covid = found.classes["COVID19"]
    assert covid.support == 0
    assert math.isnan(covid.recall) and math.isnan(covid.f1) and math.isnan(covid.auc)
    assert math.isnan(found.macro_f1)
    assert found.classes["PNEUMONIA"].recall == 1.0
    assert "recall COVID19" not in found.intervals and "recall PNEUMONIA" in found.intervals


def test_intervals_are_none_for_what_most_resamples_cannot_tell():
    y, predicted, p = pairs(((20, 0, 0), (0, 1, 0), (0, 0, 20)))  # a third of the resamples have no COVID19
    found = metrics.measure(y, predicted, p, CLASSES, np.arange(len(y)))
    assert "AUC COVID19" not in found.intervals and "macro F1" not in found.intervals
    assert found.intervals["F1 NORMAL"] == (1.0, 1.0)


def test_an_interval_over_groups_is_wider_than_one_over_their_images():
    y, predicted, p = drawn(200)
    y5, predicted5, p5 = (np.repeat(a, 5, axis=0) for a in (y, predicted, p))

    def width(groups):
        low, high = metrics.measure(y5, predicted5, p5, CLASSES, groups).intervals["macro F1"]
        return high - low

    alone = metrics.measure(y, predicted, p, CLASSES, np.arange(200)).intervals["macro F1"]
    assert width(np.repeat(np.arange(200), 5)) == pytest.approx(alone[1] - alone[0])
    assert width(np.arange(1000)) < 0.6 * width(np.repeat(np.arange(200), 5))


def test_the_interval_of_a_bootstrap_is_that_of_theory_for_a_mean():
    y, predicted, p = drawn(2000)
    found = metrics.measure(y, predicted, p, CLASSES, np.arange(2000))
    low, high = found.intervals["accuracy"]
    expected = 1.96 * math.sqrt(found.accuracy * (1 - found.accuracy) / 2000)
    assert found.accuracy - low == pytest.approx(expected, rel=0.1)
    assert high - found.accuracy == pytest.approx(expected, rel=0.1)


def test_the_auc_of_resamples_hardly_moves_where_probabilities_share_steps():
    y, predicted, p = drawn(20_000)
    drawn_auc = metrics.resample(y, predicted, p, CLASSES, np.arange(len(y)))["AUC COVID19"]
    exact = metrics.measure(y, predicted, p, CLASSES).classes["COVID19"].auc
    assert drawn_auc.mean() == pytest.approx(exact, abs=1e-4 + 3 * drawn_auc.std() / math.sqrt(len(drawn_auc)))


def test_the_same_groups_and_seed_draw_the_same_resamples_for_every_model():
    y, predicted, p = drawn(300)
    one = metrics.resample(y, predicted, p, CLASSES, np.arange(300))
    other = metrics.resample(y, predicted, p, CLASSES, np.arange(300))
    assert all(np.array_equal(one[n], other[n]) for n in one)
    assert not np.array_equal(
        one["accuracy"], metrics.resample(y, predicted, p, CLASSES, np.arange(300), 1)["accuracy"]
    )


@pytest.mark.parametrize(("hits", "support"), [(88, 90), (90, 90), (0, 90), (1, 2), (950, 1000)])
def test_the_interval_of_a_recall_is_the_wilson_interval_that_scipy_gives(hits, support):
    theirs = binomtest(hits, support).proportion_ci(method="wilson")
    assert metrics.wilson(hits / support, support) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_nothing_evaluated_has_no_interval():
    assert (
        metrics.wilson(math.nan, 0) is None and metrics.wilson(0.5, 0) is None and metrics.wilson(math.nan, 9) is None
    )
