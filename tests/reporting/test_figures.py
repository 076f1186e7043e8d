"""The plots: they open, say what is missing, and stay legible with many classes and hostile names."""

import io
import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import report_samples as samples
from matplotlib.text import Text
from PIL import Image

from cxr_ml.records import Dataset
from cxr_ml.reporting import data_figures, figures, formatting, plot_style

FLOORS = {"COVID19": 0.95, "PNEUMONIA": 0.90, "NORMAL": 0.70}
HOSTILE = ("<script>alert(1)</script>", "$\\frac{1", "a\nb\u202ec", "$$", "{0}%s", "\ud800", "x" * 300, "COVID19")


def picture(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


TWELVE = tuple(f"A CLASS WITH A LONG NAME {i}" for i in range(12))


def texts(monkeypatch, draw) -> list[str]:
    """Every text that the figure shows; none is cut off, and none lies on another."""
    seen = []

    def spy(figure):
        figure.set_dpi(180)
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        for text in figure.findobj(lambda artist: hasattr(artist, "get_text") and hasattr(artist, "get_window_extent")):
            if text.get_visible() and text.get_text().strip():
                seen.append(text.get_text())
        axles = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
        ticks = [(tick, *sorted(axis.get_view_interval())) for axis in axles for tick in axis.get_major_ticks()]
        undrawn = {id(tick.label1) for tick, low, high in ticks if not low <= tick.get_loc() <= high}
        boxes = [
            (text.get_text(), text.get_window_extent(renderer))
            for text in figure.findobj(Text)
            if text.get_visible() and text.get_text().strip() and not text.get_rotation() % 90
            if id(text) not in undrawn
        ]
        for (one, here), (other, there) in combinations(boxes, 2):
            across = min(here.x1, there.x1) - max(here.x0, there.x0)
            down = min(here.y1, there.y1) - max(here.y0, there.y0)
            assert across < 2 or down < 2, f"{one!r} lies on {other!r}"
        box = figure.get_tightbbox(renderer)
        width, height = figure.get_size_inches()
        assert box.x0 >= -0.02 and box.y0 >= -0.02, "something is cut off at the left or bottom"
        assert box.x1 <= width + 0.02 and box.y1 <= height + 0.02, "something is cut off at the right or top"
        return b""

    monkeypatch.setattr(plot_style, "png", spy)
    draw()
    assert seen
    return seen


def crowd(classes: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (len(classes), len(classes))) + 80 * np.eye(len(classes), dtype=int)
    return tuple(tuple(int(n) for n in row) for row in counts)


def test_the_best_epoch_of_a_stage_is_the_one_that_the_history_marks():
    history = samples.history(head=4, fine_tune=3)
    assert figures.best_epochs(history) == {"head": 3, "fine_tune": 7}
    history.loc[history["stage"] == "fine_tune", "kept"] = False
    assert figures.best_epochs(history) == {"head": 3}


def test_the_loss_curve_names_both_epochs_that_are_kept_and_the_start_of_fine_tuning(monkeypatch):
    history = samples.history(head=4, fine_tune=3)
    seen = texts(monkeypatch, lambda: figures.losses("inception_v3-d3", history))
    assert "epoch · kept of head: 3 · kept of fine-tune: 7" in seen
    assert "fine-tuning starts" in seen
    assert "inception_v3-d3" in seen
    assert "macro F1 (%)" in seen


def test_a_run_without_fine_tuning_shows_no_start_of_it(monkeypatch):
    seen = texts(monkeypatch, lambda: figures.losses("light", samples.history(head=1, fine_tune=0)))
    assert "fine-tuning starts" not in seen


@pytest.mark.parametrize("history", [None, pd.DataFrame(), samples.history().assign(loss=math.nan, val_loss=math.inf)])
def test_a_missing_or_broken_history_says_so(monkeypatch, history):
    seen = texts(monkeypatch, lambda: figures.losses("light", history))
    assert len(seen) == 1 and seen[0].startswith("No loss curve")


def test_recalls_are_printed_with_their_support_and_the_champion_beside(monkeypatch):
    seen = texts(monkeypatch, lambda: figures.recalls(samples.run(), FLOORS))
    assert "97.8 % of 90" in seen and "90.0 % of 90" in seen
    assert {"floor", "candidate, 95 % interval", "champion, 95 % interval"} <= set(seen)


def test_a_class_that_was_not_evaluated_is_named_so_and_not_drawn_as_zero(monkeypatch):
    none = ((90, 0, 0), (0, 0, 0), (0, 0, 90))
    seen = texts(monkeypatch, lambda: figures.recalls(samples.run(test=none, champion=None), FLOORS))
    assert "not evaluated" in seen
    assert not any(text.startswith("0.0 %") for text in seen)


@pytest.mark.parametrize("images", [10, 35, 60])
def test_a_recall_of_all_or_none_is_drawn_with_its_interval(monkeypatch, images):
    # At these numbers of images, rounding put the end of the interval on the wrong side, which cannot be drawn.
    confusion = ((images, 0, 0), (0, 90, 0), (images, 0, 0))
    seen = texts(monkeypatch, lambda: figures.recalls(samples.run(test=confusion, champion=confusion), FLOORS))
    assert f"100.0 % of {images}" in seen and f"0.0 % of {images}" in seen


def test_without_champion_none_is_drawn(monkeypatch):
    seen = texts(monkeypatch, lambda: figures.recalls(samples.run(champion=None), FLOORS))
    assert "champion, 95 % interval" not in seen


def test_a_run_without_decision_has_no_recall_to_show(monkeypatch):
    seen = texts(monkeypatch, lambda: figures.recalls(samples.run(decision=None), FLOORS))
    assert seen == ["No recall to show: this run chose no candidate."]


def test_the_confusion_matrix_prints_counts_and_row_shares(monkeypatch):
    metrics = samples.metrics()
    seen = texts(monkeypatch, lambda: figures.confusion(metrics, samples.CLASSES))
    assert "88\n97.8 %" in seen and "COVID19\n90 images" in seen


def test_a_true_class_without_images_has_dashes_in_the_confusion_matrix(monkeypatch):
    metrics = samples.metrics(((90, 0, 0), (0, 0, 0), (0, 0, 90)))
    seen = texts(monkeypatch, lambda: figures.confusion(metrics, samples.CLASSES))
    assert seen.count("–") == 3


def test_an_empty_confusion_matrix_says_so(monkeypatch):
    metrics = samples.metrics(((1, 0), (0, 1)), ("A", "B")).model_copy(update={"confusion": ((0, 0), (0, 0))})
    seen = texts(monkeypatch, lambda: figures.confusion(metrics, ("A", "B")))
    assert seen == ["No confusion matrix: no test image was evaluated."]


def test_the_balance_prints_every_count(monkeypatch):
    seen = texts(monkeypatch, lambda: data_figures.balance(samples.run()))
    assert {"820", "680", "540", "150", "141", "132", "90"} <= set(seen)


def test_a_run_without_dataset_has_no_balance(monkeypatch):
    seen = texts(monkeypatch, lambda: data_figures.balance(samples.run(dataset=None)))
    assert seen == ["No class balance to show: this run built no dataset."]


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize(
    "classes",
    [HOSTILE, pytest.param(tuple(f"A CLASS WITH A LONG NAME {i}" for i in range(12)), marks=pytest.mark.slow)],
)
def test_hostile_names_and_twelve_classes_are_drawn_whole(monkeypatch, classes):
    counts = crowd(classes)
    run = samples.run(test=counts, champion=counts, classes=classes)
    seen = texts(monkeypatch, lambda: figures.recalls(run, FLOORS))
    seen += texts(monkeypatch, lambda: figures.confusion(run.evaluations[0].test, classes))
    seen += texts(monkeypatch, lambda: data_figures.balance(run))
    seen += texts(monkeypatch, lambda: figures.losses(classes[0], samples.history()))
    seen += texts(monkeypatch, lambda: figures.differences(run.evaluations[0], {f"recall {classes[0]}": 0.05}))
    seen += texts(monkeypatch, lambda: data_figures.growth(versions(run.dataset, 30)))
    seen += texts(monkeypatch, lambda: data_figures.refused({c: 3 for c in classes}))
    assert max(map(len, seen)) < 80


def versions(newest: Dataset, count: int) -> list[Dataset]:
    """A dataset that grew evenly, newest first."""
    grown = {n: {s: {c: v * n // count for c, v in of.items()} for s, of in newest.counts.items()} for n in
             range(1, count + 1)}  # fmt: skip
    return [
        newest.model_copy(update={"dataset": n, "parent": n - 1 or None, "counts": grown[n]})
        for n in range(count, 0, -1)
    ]


def test_the_growth_has_a_panel_for_each_class_with_the_images_of_each_split_now(monkeypatch):
    seen = texts(monkeypatch, lambda: data_figures.growth(versions(samples.dataset(), 4)))
    assert {"COVID19\nnow 680 / 141 / 90", "NORMAL\nnow 820 / 150 / 90", "train", "validation", "test"} <= set(seen)
    assert "dataset version" in seen


def test_a_class_that_came_later_has_its_panel_too(monkeypatch):
    first, second = reversed(versions(samples.dataset(), 2))
    late = {split: {**counts, "TUBERCULOSIS": 7} for split, counts in second.counts.items()}
    seen = texts(monkeypatch, lambda: data_figures.growth([first, second.model_copy(update={"counts": late})]))
    assert "TUBERCULOSIS\nnow 7 / 7 / 7" in seen


def test_the_first_dataset_has_no_growth(monkeypatch):
    seen = texts(monkeypatch, lambda: data_figures.growth([samples.dataset()]))
    assert seen == ["No growth to show: this is the first dataset."]


def test_refused_files_are_counted_by_reason_the_most_frequent_first_and_the_rest_together(monkeypatch):
    seen = texts(monkeypatch, lambda: data_figures.refused({"white_box": 1200} | {f"r{n}": n for n in range(1, 18)}))
    assert seen.index("white box") < seen.index("r17") < seen.index("r4") and "r3" not in seen
    assert "1,200" in seen and "3 further reasons" in seen and "6" in seen


def test_without_refused_files_there_is_nothing_to_count(monkeypatch):
    assert texts(monkeypatch, lambda: data_figures.refused({})) == ["No file was refused."]


def test_the_difference_to_the_champion_is_printed_with_its_interval_and_the_margin_of_the_gate(monkeypatch):
    found = samples.run().evaluations[0]
    seen = texts(monkeypatch, lambda: figures.differences(found, {"recall COVID19": 0.05}))
    assert "+7.8  (+3.9 to +11.7)" in seen and "recall COVID19" in seen
    assert "as far below as the gate lets the interval reach" in seen


def test_a_difference_without_interval_or_number_is_not_made_up(monkeypatch):
    found = samples.run().evaluations[0]
    values = {"macro F1": 0.02, "recall NORMAL": math.nan}
    gap = found.difference.model_copy(update={"figures": values, "intervals": {}})
    seen = texts(monkeypatch, lambda: figures.differences(found.model_copy(update={"difference": gap}), {}))
    assert "+2.0" in seen and "recall NORMAL" not in seen
    alone = found.model_copy(update={"difference": None})
    assert texts(monkeypatch, lambda: figures.differences(alone, {}))[0].startswith("No difference to show")


def test_long_names_that_differ_at_their_end_stay_apart():
    names = [plot_style.name(f"A CLASS WITH A VERY LONG NAME {n}") for n in range(12)]
    assert len(set(names)) == 12 and max(map(len, names)) <= 22 and names[0].startswith("A CLASS")


def test_a_picture_shows_something_and_is_small_enough_for_mail():
    for png in (figures.recalls(samples.run(), FLOORS), figures.losses("light", samples.history())):
        assert picture(png).std() > 10
        assert len(png) < 100_000


def test_series_differ_in_grey_as_well():
    luminances = [np.dot([0.2126, 0.7152, 0.0722], [int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in
                  (plot_style.BLUE, plot_style.ORANGE, "#cccccc")]  # fmt: skip
    assert min(abs(np.diff(sorted(luminances)))) > 25


def test_rounding_never_lifts_a_value_to_the_floor_it_missed():
    assert formatting.percent(0.9499999, 0.95) == "94.99999 %"
    assert formatting.percent(0.9497, 0.95) == "94.97 %"
    assert formatting.percent(0.95, 0.95) == "95.0 %"
    assert formatting.score(0.8499, 0.85) == "0.8499"


def test_names_lose_what_could_forge_a_line_or_break_encoding():
    assert formatting.plain("a\r\nBcc: x\u202e\x00\ud800\u2028y") == "a  Bcc: x    y"
    assert formatting.plain("x" * 50, 10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.42, "0.4 s"), (48, "48 s"), (59.7, "1 min 0 s"), (725, "12 min 5 s"), (7380, "2 h 3 min")]
)
def test_durations_read_as_people_say_them(seconds, said):
    assert formatting.duration(seconds) == said
