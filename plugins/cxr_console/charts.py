"""Line charts as numbers for the template `chart.svg.html`: drawn by the server, styled by the page's own colours."""

from collections.abc import Sequence
from typing import Any

from cxr_ml.reporting import formatting

WIDTH, HEIGHT = 720, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 210, 12, 28
_LONGEST = 22  # letters of a name beside its line
_APART = 15  # px between two labels at the ends of lines
_MOST_TICKS = 8


def lines(
    label: str, names: Sequence[str], series: dict[str, Sequence[float | None]], low: float, high: float, shares: bool
) -> dict[str, Any] | None:
    """A chart of series over the same points; None where there is nothing to draw.

    Args:
        label: what is shown, for who cannot see it.
        names: of the points, from left to right.
        series: name -> a value per point, None where there is none.
        low: the bottom of the axis.
        high: the top.
        shares: whether values are 0 to 1 and shown as percentages.
    """
    if not names or not any(v is not None for values in series.values() for v in values):
        return None
    high = high if high > low else low + 1
    across, down = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def x(place: int) -> float:
        return round(_LEFT + (across * place / (len(names) - 1) if len(names) > 1 else across / 2), 1)

    def y(value: float) -> float:
        return round(_TOP + down * (1 - (value - low) / (high - low)), 1)

    drawn = []
    for number, (name, values) in enumerate(series.items()):
        points = [(x(i), y(v), names[i], _text(v, shares)) for i, v in enumerate(values) if v is not None]
        if points:
            shown = formatting.plain(name, _LONGEST)
            drawn.append({"name": shown, "style": number % 6, "points": points, "last": points[-1][3]})
    above = -1e9
    for line in sorted(drawn, key=lambda line: line["points"][-1][1]):  # labels at the ends never overlap
        above = line["label_y"] = max(line["points"][-1][1], above + _APART)
    over = above - (HEIGHT - _BOTTOM)
    for line in drawn:
        line["label_y"] = round(line["label_y"] - max(0, over), 1)
    step = -(-len(names) // _MOST_TICKS)
    ticks = [(x(i), name) for i, name in enumerate(names) if i % step == 0]
    grid = [(y(low + (high - low) * part / 4), _text(low + (high - low) * part / 4, shares)) for part in range(5)]
    return {
        "label": label, "width": WIDTH, "height": HEIGHT, "left": _LEFT, "right": WIDTH - _RIGHT,
        "bottom": HEIGHT - _BOTTOM, "lines": drawn, "ticks": ticks, "grid": grid,
    }  # fmt: skip


def _text(value: float, shares: bool) -> str:
    return f"{100 * value:.1f} %".replace(".0 %", " %") if shares else f"{value:,.0f}"
