"""Solid white rectangles laid over or beside a film: found by their straight, steep edges, not by their brightness.

Film that is clipped by exposure is as white as a box, but its outline is curved or fades; a box, or several that touch
or overlap, is bounded by long axis-aligned steps wherever it does not meet the frame. Where a box lies on clipped film,
some of its sides cannot be seen by anybody; the others give it away as long as they meet in right angles, with film
beyond them. The limits were chosen on real films, on the same films over-exposed in software, and on rectangles drawn
on them before JPEG at quality 50 to 95; benchmarks/boxes.py tells what they are worth on films held out.
"""

from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np

# 0-255, of the darkest colour channel. Each level is tried: the low one finds boxes that are not quite white or frayed
# by JPEG, the high one parts a box from the bright tissue that it lies on.
WHITES = (230, 242, 251)
THIN = 0.03  # of the short side: narrower white inside the picture is a line, a letter or an arrow
STRIP = 2  # px of white along a whole side of the picture, at least; a single one is a line, left by scanners and crops
LASTING = 0.8  # of the edge of a strip is steep, at least
ROUND = 2  # px at an end of a strip where its edge is lost, at most
SMALL = 0.002  # of the area: smaller white is not looked at
HOLE = 0.1  # of the area of a white part: smaller holes in it are writing
STRAIGHT = (
    0.045  # of the long side: an edge runs straight for at least so long, and longer than a slanting one keeps a row
)
STEP = 12  # grey levels lost within 2 px outwards at the edge of a box
SHARE = 0.6  # of the outline inside the frame that is straight and steep, at least
# A box that melts into burnt-out film on some of its sides
ALIGNED = 2  # px between the rows (columns) of two parts of one side, at most
CORNER = 6  # px that the ends of two sides are apart where they meet, at most
FILLED = 0.97  # of what they bound is white, at least, and of each row of a strip
FLAT = 3.0  # grey levels, standard deviation of what they bound, at most; JPEG makes 1 to 2 of a solid white
BEYOND = 6  # px outwards of a side: what lies beyond it, past the ringing of JPEG
VARIES = 8  # grey levels between the tenth and the ninetieth percentile of film along a side, at least
SPAN = 0.35  # of a side that crosses the picture is seen, at least
WIDEST = 0.35  # of the picture beyond such a side, or between two that only the frame joins, at most
_WHITE = bytes(range(WHITES[0], 256))
_MARGIN = 4  # px kept around a candidate, at least the reach of a step


def white_box(darkest: np.ndarray) -> float:
    """Area of the largest solid white box, as a share of the picture's area; 0 where there is none.

    Rectangles that touch or overlap are one box, and writing on a box belongs to it.

    Args:
        darkest: uint8 [height, width], the darkest colour channel of each pixel; about 384 px on the long side.
    """
    white = _white(darkest, WHITES[0])
    if white is None:
        return 0.0
    largest = _strips(darkest)
    for level in WHITES:
        white = _white(darkest, level) if level > WHITES[0] else white
        found = None if white is None else _largest(white, darkest)
        if found is None:  # what is brighter still is no thicker
            break
        largest = max(largest, found)
    return largest


def _white(darkest: np.ndarray, level: int) -> np.ndarray | None:
    """Mask of what is at least as bright as `level`; None where that is too small for a box or a strip."""
    white = cv2.threshold(darkest, level - 1, 1, cv2.THRESH_BINARY)[1]
    return white if cv2.countNonZero(white) >= SMALL * white.size else None


def _strips(darkest: np.ndarray) -> float:
    """Share of the area under thin white strips along whole sides of the picture: one, or two, as of an L.

    A strip is white in each of its rows (columns), and ends in one straight, steep edge from end to end; the light
    surround of a scanned film has round corners. At more than two sides it is an outline. What is wider than thin may
    be left to `_largest`.
    """
    height, width = darkest.shape
    widest = max(3, round(THIN * min(height, width))) + 1
    sides = (darkest, darkest[::-1], darkest.T, darkest.T[::-1])
    depths = [_depth(lines, widest) for lines in sides]
    for side, (lines, depth) in enumerate(zip(sides, depths, strict=True)):
        before, after = depths[2:] if side < 2 else depths[:2]
        depths[side] = depth if depth and _ends_steeply(lines[depth - 1 :, before : lines.shape[1] - after]) else 0
    top, bottom, left, right = depths
    if max(depths) < STRIP or depths.count(0) < 2:
        return 0.0
    return 1 - (height - top - bottom) * (width - left - right) / darkest.size


def _depth(lines: np.ndarray, widest: int) -> int:
    """Rows that are white from the first on; 0 where they are more than `widest`, or all."""
    for depth, line in enumerate(lines[: widest + 1]):
        if len(line.tobytes().translate(None, _WHITE)) > (1 - FILLED) * len(line):
            return depth if depth + 2 < len(lines) else 0
    return 0


def _ends_steeply(lines: np.ndarray) -> bool:
    """Whether grey falls from the first row to 2 px beyond it, at both of its ends too."""
    steep = lines[0].astype(int) - lines[2] >= STEP
    return bool(steep[: ROUND + 1].any() and steep[-ROUND - 1 :].any() and steep.mean() >= LASTING)


def _largest(white: np.ndarray, darkest: np.ndarray) -> float | None:
    """`white_box` among what is white; None where that is too thin for a box."""
    thin = max(3, round(THIN * min(white.shape))) | 1  # odd, or morphology shifts the mask
    x, y, w, h = cv2.boundingRect(white)  # what follows is dear: only where something is
    # Beyond the frame counts as dark, so that a white line along the frame stays thin.
    padded = cv2.copyMakeBorder(white[y : y + h, x : x + w], thin, thin, thin, thin, cv2.BORDER_CONSTANT, value=0)
    half = np.ones((thin // 2 + 1, thin // 2 + 1), np.uint8)  # writing leaves so much of a box whole
    if not cv2.countNonZero(cv2.erode(padded, half)):
        return None
    _fill_writing(padded, thin)
    opened = cv2.morphologyEx(padded, cv2.MORPH_OPEN, np.ones((thin, thin), np.uint8))
    if cv2.countNonZero(opened) < SMALL * white.size:
        return None
    solid = np.zeros_like(white)
    solid[y : y + h, x : x + w] = opened[thin:-thin, thin:-thin]
    x, y, w, h = cv2.boundingRect(solid)
    top, left = max(0, y - _MARGIN), max(0, x - _MARGIN)
    around = np.s_[top : y + h + _MARGIN, left : x + w + _MARGIN]
    straight = max(5, round(STRAIGHT * max(white.shape))) | 1
    edges, runs = _outline(solid[around], darkest[around], straight)
    if not any(map(cv2.countNonZero, runs)):
        return 0.0
    count, labels = cv2.connectedComponents(solid[around], connectivity=4)
    largest = 0
    sides: list[_Side] = []
    for i in range(1, count):
        region = (labels == i).view(np.uint8)
        area = cv2.countNonZero(region)
        if area < max(SMALL * white.size, largest):
            continue
        own = [cv2.bitwise_and(run, region) for run in runs]
        steep = sum(map(cv2.countNonZero, own))
        if steep and steep / sum(cv2.countNonZero(cv2.bitwise_and(edge, region)) for edge in edges) >= SHARE:
            largest = area
        elif steep:
            sides += _sides(own, top, left)
    return max(largest, _melted(solid, darkest, sides, thin) if sides else 0) / white.size


def _fill_writing(white: np.ndarray, thin: int) -> None:
    """Fills the small holes of each white part, in place, but for those too wide for a letter: film in an outline."""
    contours, tree = cv2.findContours(white, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parents = [] if tree is None else tree[0, :, 3].tolist()
    holes: dict[int, list[np.ndarray]] = {}
    for contour, parent in zip(contours, parents, strict=True):
        if parent >= 0:
            holes.setdefault(parent, []).append(contour)
    for parent, inside in holes.items():
        whole = cv2.contourArea(contours[parent])
        if whole < (thin - 1) ** 2:  # opening with `thin` leaves nothing of it, filled or not
            continue
        writing = []
        for contour in inside:
            area = cv2.contourArea(contour)
            # Around at most 3 * thin² px no outline is too short: it is longest around a disc.
            if area <= HOLE * whole and (area <= 3 * thin**2 or 2 * area <= thin * cv2.arcLength(contour, True)):
                writing.append(contour)
        cv2.drawContours(white, writing, -1, 1, cv2.FILLED)


def _outline(solid: np.ndarray, darkest: np.ndarray, straight: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The outline of all that is solid, and its axis-aligned runs of `straight` px or more at which grey falls by STEP.

    Returns:
        Masks of the outline, masks of the runs: above, below, left, right. What runs along the picture's own frame is
        not outline.
    """
    level = cv2.copyMakeBorder(darkest, 2, 2, 2, 2, cv2.BORDER_REPLICATE)
    inner = cv2.copyMakeBorder(solid, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    height, width = solid.shape
    edges, runs = [], []
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        beyond = inner[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        further = level[2 + 2 * dy : 2 + 2 * dy + height, 2 + 2 * dx : 2 + 2 * dx + width]
        edge = cv2.subtract(solid, beyond)  # saturates at 0: 1 where the white ends
        step = cv2.threshold(cv2.subtract(darkest, further), STEP - 1, 1, cv2.THRESH_BINARY)[1]
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

    upright: bool  # a column, else a row
    far: bool  # the white lies before it: a lower or a right side
    at: int  # its row or column
    begin: int
    end: int  # the last
    seen: int  # px of it that are steep; the rest melts into white


def _sides(runs: list[np.ndarray], top: int, left: int) -> list[_Side]:
    """The runs of `_outline` in a window of the picture that begins at `top` and `left`."""
    found = []
    for number, mask in enumerate(runs):
        upright, far = divmod(number, 2)
        if not cv2.countNonZero(mask):
            continue
        for contour in cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
            x, y, w, h = cv2.boundingRect(contour)
            at, begin, long = (x + left, y + top, h) if upright else (y + top, x + left, w)
            found.append(_Side(bool(upright), bool(far), at, begin, begin + long - 1, long))
    return found


def _melted(solid: np.ndarray, darkest: np.ndarray, sides: list[_Side], thin: int) -> int:
    """px of the largest white rectangle of which some sides melt into burnt-out film; 0 where there is none.

    Enough are a side that crosses the picture, and two or more sides that meet in right angles, or meet the frame side
    by side, with film beyond two of them. What is counted reaches as far as the sides that are seen.
    """
    rows, columns = (_joined([s for s in sides if s.upright == u], solid.T if u else solid) for u in (False, True))
    largest = 0
    for side in rows + columns:
        whole = solid.T if side.upright else solid
        strip = whole[: side.at + 1] if side.far else whole[side.at :]
        if len(strip) < thin or not largest < strip.size <= WIDEST * solid.size:
            continue
        if side.seen >= SPAN * strip.shape[1] and _full(strip):
            largest = strip.size
    corners = [(row, column) for row in rows for column in columns if _meet(row, column)]
    boxes = [[row, column] for row, column in corners]
    boxes += [[*one, *other] for one, other in combinations(corners, 2) if one[0] is other[0] or one[1] is other[1]]
    for lines, (wide, long) in ((rows, solid.shape), (columns, solid.shape[::-1])):
        for s, t in combinations(lines, 2):
            meet = max(s.begin, t.begin) <= ALIGNED or min(s.end, t.end) >= long - 1 - ALIGNED
            if meet and s.far != t.far and abs(s.at - t.at) <= WIDEST * wide:  # the body is wider
                boxes.append([s, t])
    for box in boxes:
        ys = [y for s in box for y in ((s.begin, s.end) if s.upright else (s.at,))]
        xs = [x for s in box for x in ((s.at,) if s.upright else (s.begin, s.end))]
        inside = np.s_[min(ys) : max(ys) + 1, min(xs) : max(xs) + 1]
        white = solid[inside]
        if white.size <= largest or min(white.shape) <= max(thin, 2 * CORNER) or not _full(white):
            continue
        core = darkest[inside][CORNER:-CORNER, CORNER:-CORNER]
        if cv2.meanStdDev(core)[1][0, 0] <= FLAT and sum(_film_beyond(darkest, s) for s in {*box}) >= 2:
            largest = white.size
    return largest


def _joined(sides: list[_Side], solid: np.ndarray) -> list[_Side]:
    """`sides` with those in one line as one, if nothing but white lies between them; rows of `solid` run along them."""
    found: list[_Side] = []
    for side in sorted(sides, key=lambda s: s.begin):
        for place, other in enumerate(found):
            if other.far != side.far or abs(other.at - side.at) > ALIGNED or side.begin <= other.end:
                continue
            first, last = sorted((other.at, side.at))
            if _full(solid[max(0, first - 1) : last + 2, other.end + 1 : side.begin]):
                found[place] = other._replace(end=side.end, seen=other.seen + side.seen)
                break
        else:
            found.append(side)
    return found


def _full(part: np.ndarray) -> bool:
    return cv2.countNonZero(np.ascontiguousarray(part)) >= FILLED * part.size


def _meet(row: _Side, column: _Side) -> bool:
    """Whether the two are the sides of a corner of something white."""
    x, y = (row.end if column.far else row.begin), (column.end if row.far else column.begin)
    return abs(x - column.at) <= CORNER and abs(y - row.at) <= CORNER


def _film_beyond(darkest: np.ndarray, side: _Side) -> bool:
    """Whether what lies beyond a side varies, as film does, and padding and the shadow of a collimator do not."""
    at = side.at + BEYOND if side.far else side.at - BEYOND
    lines = darkest.T if side.upright else darkest
    if not 0 <= at < len(lines):
        return False
    line = np.sort(lines[at, side.begin : side.end + 1])
    return int(line[len(line) * 9 // 10]) - int(line[len(line) // 10]) >= VARIES
