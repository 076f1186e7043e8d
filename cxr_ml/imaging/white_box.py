"""Finds solid white rectangles over or beside a film, by their straight, steep edges and not by their brightness.

Film that is clipped by exposure is as white as a box, but its outline is curved or fades; a box, or several that touch
or overlap, is bounded by long axis-aligned steps wherever it does not meet the frame. Where a box lies on clipped film,
some of its sides are invisible; the others reveal it as long as they meet at right angles and have film beyond them.
The limits were chosen on real films, on the same films over-exposed in software, and on rectangles drawn on them before
JPEG at quality 50 to 95; benchmarks/boxes.py measures how they do on held-out films.
"""

from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np

# 0-255, of the darkest colour channel. Each level is tried: the low one finds boxes that are not quite white or frayed
# by JPEG, the high one separates a box from the bright tissue that it lies on.
WHITE_LEVELS = (230, 242, 251)
MIN_THICKNESS = 0.03  # of the short side: narrower white inside the picture is a line, a letter or an arrow
MIN_STRIP_DEPTH = 2  # px of white along a whole side of the picture; scanners and crops leave a single one
MIN_STRIP_STEEP = 0.8  # of the edge of a strip
MAX_LOST_AT_END = 2  # px at an end of a strip where its edge is lost
MIN_AREA = 0.002  # of the picture
MAX_HOLE = 0.1  # of the area of a white part: smaller holes in it are writing
MIN_STRAIGHT = 0.045  # of the long side: length of a straight edge, longer than a slanting edge stays in one row
MIN_STEP = 12  # grey levels lost within 2 px outwards at the edge of a box
MIN_STEEP = 0.6  # of the outline inside the frame that is straight and steep
# A box that melts into burnt-out film on some of its sides
MAX_OFFSET = 2  # px between the rows (columns) of two parts of one side
MAX_CORNER_GAP = 6  # px between the ends of two sides where they meet
MIN_FILLED = 0.97  # of what the sides bound is white, and of each row of a strip
MAX_DEVIATION = 3.0  # grey levels, standard deviation of what the sides bound; JPEG makes 1 to 2 of a solid white
OUTSIDE_DISTANCE = 6  # px outwards of a side, past the ringing of JPEG
MIN_FILM_CONTRAST = 8  # grey levels between the tenth and the ninetieth percentile of film along a side
MIN_SPAN_SEEN = 0.35  # of a side that crosses the picture
MAX_WIDTH = 0.35  # of the picture beyond such a side, or between two sides that only the frame joins
_WHITE_BYTES = bytes(range(WHITE_LEVELS[0], 256))
_WINDOW_MARGIN = 4  # px kept around a candidate, at least the reach of a step


def measure_white_box(darkest: np.ndarray) -> float:
    """Returns the area of the largest solid white box as a share of the picture; 0 where there is none.

    Rectangles that touch or overlap are one box, and writing on a box belongs to it.

    Args:
        darkest: uint8 [height, width], the darkest colour channel of each pixel; about 384 px on the long side.

    Example:
        >>> film = np.tile(np.arange(0, 200, 2, np.uint8), (100, 1))
        >>> measure_white_box(film)
        0.0
        >>> film[20:40, 30:60] = 255
        >>> measure_white_box(film)
        0.06
    """
    white = _white_mask(darkest, WHITE_LEVELS[0])
    if white is None:
        return 0.0
    largest = _measure_strips(darkest)
    for level in WHITE_LEVELS:
        white = _white_mask(darkest, level) if level > WHITE_LEVELS[0] else white
        share = None if white is None else _measure_largest(white, darkest)
        if share is None:  # the white of a higher level is no thicker
            break
        largest = max(largest, share)
    return largest


def _white_mask(darkest: np.ndarray, level: int) -> np.ndarray | None:
    """Mask of the pixels at least as bright as `level`; None where they are too few for a box or a strip."""
    white = cv2.threshold(darkest, level - 1, 1, cv2.THRESH_BINARY)[1]
    return white if cv2.countNonZero(white) >= MIN_AREA * white.size else None


def _measure_strips(darkest: np.ndarray) -> float:
    """Share of the area under thin white strips along one whole side of the picture, or along two as an L.

    A strip is white in each of its rows (columns) and ends in one straight, steep edge from end to end; the light
    surround of a scanned film has round corners. White at more than two sides is an outline. Thicker strips are left to
    `_measure_largest`.
    """
    height, width = darkest.shape
    max_depth = max(3, round(MIN_THICKNESS * min(height, width))) + 1
    sides = (darkest, darkest[::-1], darkest.T, darkest.T[::-1])
    depths = [_strip_depth(lines, max_depth) for lines in sides]
    for side, (lines, depth) in enumerate(zip(sides, depths, strict=True)):
        before, after = depths[2:] if side < 2 else depths[:2]
        depths[side] = depth if depth and _ends_steeply(lines[depth - 1 :, before : lines.shape[1] - after]) else 0
    top, bottom, left, right = depths
    if max(depths) < MIN_STRIP_DEPTH or depths.count(0) < 2:
        return 0.0
    return 1 - (height - top - bottom) * (width - left - right) / darkest.size


def _strip_depth(lines: np.ndarray, max_depth: int) -> int:
    """Number of white rows from the first on; 0 where they are more than `max_depth`, or all."""
    for depth, line in enumerate(lines[: max_depth + 1]):
        if len(line.tobytes().translate(None, _WHITE_BYTES)) > (1 - MIN_FILLED) * len(line):
            return depth if depth + 2 < len(lines) else 0
    return 0


def _ends_steeply(lines: np.ndarray) -> bool:
    """Whether grey falls from the first row to 2 px beyond it, also at both ends."""
    steep = lines[0].astype(int) - lines[2] >= MIN_STEP
    ends = steep[: MAX_LOST_AT_END + 1], steep[-MAX_LOST_AT_END - 1 :]
    return all(end.any() for end in ends) and bool(steep.mean() >= MIN_STRIP_STEEP)


def _measure_largest(white: np.ndarray, darkest: np.ndarray) -> float | None:
    """Share of the largest box in the mask `white`; None where the white is too thin for a box."""
    thin = max(3, round(MIN_THICKNESS * min(white.shape))) | 1  # odd, or morphology shifts the mask
    x, y, w, h = cv2.boundingRect(white)  # what follows is expensive: only where there is white
    # Outside the frame counts as dark, so that a white line along the frame stays thin.
    padded = cv2.copyMakeBorder(white[y : y + h, x : x + w], thin, thin, thin, thin, cv2.BORDER_CONSTANT, value=0)
    half = np.ones((thin // 2 + 1, thin // 2 + 1), np.uint8)  # writing leaves at least this much of a box intact
    if not cv2.countNonZero(cv2.erode(padded, half)):
        return None
    _fill_writing(padded, thin)
    opened = cv2.morphologyEx(padded, cv2.MORPH_OPEN, np.ones((thin, thin), np.uint8))
    if cv2.countNonZero(opened) < MIN_AREA * white.size:
        return None
    solid = np.zeros_like(white)
    solid[y : y + h, x : x + w] = opened[thin:-thin, thin:-thin]
    x, y, w, h = cv2.boundingRect(solid)
    top, left = max(0, y - _WINDOW_MARGIN), max(0, x - _WINDOW_MARGIN)
    window = np.s_[top : y + h + _WINDOW_MARGIN, left : x + w + _WINDOW_MARGIN]
    straight = max(5, round(MIN_STRAIGHT * max(white.shape))) | 1
    edges, runs = _trace_outline(solid[window], darkest[window], straight)
    if not any(map(cv2.countNonZero, runs)):
        return 0.0
    count, labels = cv2.connectedComponents(solid[window], connectivity=4)
    largest = 0
    sides: list[_Side] = []
    for i in range(1, count):
        region = (labels == i).view(np.uint8)
        area = cv2.countNonZero(region)
        if area < max(MIN_AREA * white.size, largest):
            continue
        region_runs = [cv2.bitwise_and(run, region) for run in runs]
        steep = sum(map(cv2.countNonZero, region_runs))
        if steep and steep / sum(cv2.countNonZero(cv2.bitwise_and(edge, region)) for edge in edges) >= MIN_STEEP:
            largest = area
        elif steep:
            sides += _find_sides(region_runs, top, left)
    return max(largest, _largest_melted(solid, darkest, sides, thin) if sides else 0) / white.size


def _fill_writing(white: np.ndarray, thin: int) -> None:
    """Fills the small holes of each white part in place, except those too wide for a letter: film inside an outline."""
    contours, tree = cv2.findContours(white, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parents = [] if tree is None else tree[0, :, 3].tolist()
    holes: dict[int, list[np.ndarray]] = {}
    for contour, parent in zip(contours, parents, strict=True):
        if parent >= 0:
            holes.setdefault(parent, []).append(contour)
    for parent, inner in holes.items():
        outer_area = cv2.contourArea(contours[parent])
        if outer_area < (thin - 1) ** 2:  # opening with `thin` leaves nothing of it, filled or not
            continue
        writing = []
        for contour in inner:
            area = cv2.contourArea(contour)
            # No outline of at most 3 * thin² px is too short: a disc has the shortest.
            is_thin = area <= 3 * thin**2 or 2 * area <= thin * cv2.arcLength(contour, True)
            if area <= MAX_HOLE * outer_area and is_thin:
                writing.append(contour)
        cv2.drawContours(white, writing, -1, 1, cv2.FILLED)


def _trace_outline(solid: np.ndarray, darkest: np.ndarray, straight: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Finds the outline of all solid white, and its runs of at least `straight` px at which grey falls steeply.

    Returns:
        Masks of the outline and masks of the runs, each above, below, left and right. The picture's own frame is not
        part of the outline.
    """
    level = cv2.copyMakeBorder(darkest, 2, 2, 2, 2, cv2.BORDER_REPLICATE)
    inner = cv2.copyMakeBorder(solid, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    height, width = solid.shape
    edges, runs = [], []
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        beyond = inner[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        further = level[2 + 2 * dy : 2 + 2 * dy + height, 2 + 2 * dx : 2 + 2 * dx + width]
        edge = cv2.subtract(solid, beyond)  # saturates at 0: 1 where the white ends
        step = cv2.threshold(cv2.subtract(darkest, further), MIN_STEP - 1, 1, cv2.THRESH_BINARY)[1]
        step = cv2.bitwise_and(edge, step)
        if cv2.countNonZero(step) >= straight:
            run = np.ones((1, straight) if dy else (straight, 1), np.uint8)
            step = cv2.morphologyEx(step, cv2.MORPH_OPEN, run, borderValue=0)
        else:
            step[:] = 0
        edges.append(edge)
        runs.append(step)
    return edges, runs


class _Side(NamedTuple):
    """A straight, steep edge of something white."""

    is_column: bool  # else a row
    is_far: bool  # a lower or a right side: the white lies before it
    position: int  # its row or column
    begin: int
    end: int  # inclusive
    visible: int  # px that are steep; the rest melts into white


def _find_sides(runs: list[np.ndarray], top: int, left: int) -> list[_Side]:
    """The runs of `_trace_outline` in a window of the picture that begins at `top` and `left`."""
    sides = []
    for number, mask in enumerate(runs):
        is_column, is_far = divmod(number, 2)
        if not cv2.countNonZero(mask):
            continue
        for contour in cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
            x, y, w, h = cv2.boundingRect(contour)
            position, begin, length = (x + left, y + top, h) if is_column else (y + top, x + left, w)
            sides.append(_Side(bool(is_column), bool(is_far), position, begin, begin + length - 1, length))
    return sides


def _largest_melted(solid: np.ndarray, darkest: np.ndarray, sides: list[_Side], thin: int) -> int:
    """Area in px of the largest white rectangle of which some sides melt into burnt-out film; 0 where there is none.

    One side that crosses the picture is enough, or two or more sides that meet at right angles or end at the frame side
    by side, with film beyond two of them. The rectangle reaches as far as its visible sides.
    """
    rows, columns = (
        _join_sides([s for s in sides if s.is_column == is_column], solid.T if is_column else solid)
        for is_column in (False, True)
    )
    largest = _largest_crossing(solid, rows + columns, thin)
    for box in _candidate_boxes(solid.shape, rows, columns):
        ys = [y for s in box for y in ((s.begin, s.end) if s.is_column else (s.position,))]
        xs = [x for s in box for x in ((s.position,) if s.is_column else (s.begin, s.end))]
        inside = np.s_[min(ys) : max(ys) + 1, min(xs) : max(xs) + 1]
        white = solid[inside]
        if white.size <= largest or min(white.shape) <= max(thin, 2 * MAX_CORNER_GAP) or not _is_filled(white):
            continue
        core = darkest[inside][MAX_CORNER_GAP:-MAX_CORNER_GAP, MAX_CORNER_GAP:-MAX_CORNER_GAP]
        if cv2.meanStdDev(core)[1][0, 0] <= MAX_DEVIATION and sum(_has_film_beyond(darkest, s) for s in {*box}) >= 2:
            largest = white.size
    return largest


def _largest_crossing(solid: np.ndarray, sides: list[_Side], thin: int) -> int:
    """Area in px of the largest white strip behind a side that crosses the picture."""
    largest = 0
    for side in sides:
        lines = solid.T if side.is_column else solid
        strip = lines[: side.position + 1] if side.is_far else lines[side.position :]
        if len(strip) < thin or not largest < strip.size <= MAX_WIDTH * solid.size:
            continue
        if side.visible >= MIN_SPAN_SEEN * strip.shape[1] and _is_filled(strip):
            largest = strip.size
    return largest


def _candidate_boxes(shape: tuple[int, ...], rows: list[_Side], columns: list[_Side]) -> list[list[_Side]]:
    """Sides that may belong to one rectangle: of one corner, of two that share a side, or two that end at the frame."""
    corners = [(row, column) for row in rows for column in columns if _is_corner(row, column)]
    boxes = [[row, column] for row, column in corners]
    boxes += [[*a, *b] for a, b in combinations(corners, 2) if a[0] is b[0] or a[1] is b[1]]
    for lines, (across, along) in ((rows, shape), (columns, shape[::-1])):
        for a, b in combinations(lines, 2):
            end_at_frame = max(a.begin, b.begin) <= MAX_OFFSET or min(a.end, b.end) >= along - 1 - MAX_OFFSET
            # The body is wider.
            if end_at_frame and a.is_far != b.is_far and abs(a.position - b.position) <= MAX_WIDTH * across:
                boxes.append([a, b])
    return boxes


def _join_sides(sides: list[_Side], solid: np.ndarray) -> list[_Side]:
    """Joins sides in one line if only white lies between them; rows of `solid` run along them."""
    joined: list[_Side] = []
    for side in sorted(sides, key=lambda s: s.begin):
        for index, other in enumerate(joined):
            offset = abs(other.position - side.position)
            if other.is_far != side.is_far or offset > MAX_OFFSET or side.begin <= other.end:
                continue
            first, last = sorted((other.position, side.position))
            if _is_filled(solid[max(0, first - 1) : last + 2, other.end + 1 : side.begin]):
                joined[index] = other._replace(end=side.end, visible=other.visible + side.visible)
                break
        else:
            joined.append(side)
    return joined


def _is_filled(part: np.ndarray) -> bool:
    return cv2.countNonZero(np.ascontiguousarray(part)) >= MIN_FILLED * part.size


def _is_corner(row: _Side, column: _Side) -> bool:
    """Whether the two sides meet in a corner of white."""
    x, y = (row.end if column.is_far else row.begin), (column.end if row.is_far else column.begin)
    return abs(x - column.position) <= MAX_CORNER_GAP and abs(y - row.position) <= MAX_CORNER_GAP


def _has_film_beyond(darkest: np.ndarray, side: _Side) -> bool:
    """Whether grey varies beyond a side, as it does in film but not in padding or the shadow of a collimator."""
    position = side.position + OUTSIDE_DISTANCE if side.is_far else side.position - OUTSIDE_DISTANCE
    lines = darkest.T if side.is_column else darkest
    if not 0 <= position < len(lines):
        return False
    line = np.sort(lines[position, side.begin : side.end + 1])
    return int(line[len(line) * 9 // 10]) - int(line[len(line) // 10]) >= MIN_FILM_CONTRAST
