"""Charts of the console: nothing overlaps, nothing is invented."""

import itertools

from cxr_console import charts


def test_nothing_to_draw_is_no_chart():
    assert charts.lines("x", [], {"recall": []}, 0.0, 1.0, shares=True) is None
    assert charts.lines("x", ["v1"], {"recall": [None]}, 0.0, 1.0, shares=True) is None


def test_a_missing_value_leaves_a_gap_and_is_not_drawn_as_zero():
    chart = charts.lines("x", ["v1", "v2", "v3"], {"recall": [0.9, None, 1.0]}, 0.8, 1.0, shares=True)
    (line,) = chart["lines"]
    assert [name for _, _, name, _ in line["points"]] == ["v1", "v3"]
    assert line["last"] == "100 %"


def test_higher_values_are_drawn_higher_and_within_the_axes():
    chart = charts.lines("x", ["1", "2"], {"a": [0.8, 1.0]}, 0.8, 1.0, shares=True)
    (_, low, _, _), (_, high, _, _) = chart["lines"][0]["points"]
    assert high < low == chart["bottom"]


def test_labels_of_twelve_equal_lines_do_not_overlap_and_stay_in_the_picture():
    series = {f"a class with a very long name {n}": [0.5, 0.5] for n in range(12)}
    chart = charts.lines("x", ["1", "2"], series, 0.0, 1.0, shares=True)
    places = sorted(line["label_y"] for line in chart["lines"])
    assert min(b - a for a, b in itertools.pairwise(places)) >= 15
    assert places[0] >= 0 and places[-1] <= chart["height"]
    assert all(len(line["name"]) <= 22 for line in chart["lines"])


def test_many_points_have_few_labels_below():
    chart = charts.lines("x", [str(n) for n in range(50)], {"a": [float(n) for n in range(50)]}, 0, 50, shares=False)
    assert len(chart["ticks"]) <= 8 and chart["lines"][0]["last"] == "49"
