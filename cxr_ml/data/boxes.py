"""Solid white rectangles laid over or beside a film: found by their straight, steep edges, not by their brightness.

Film that is clipped by exposure is as white as a box, but its outline is curved or fades; a box, or several that touch
or overlap, is bounded by long axis-aligned steps wherever it does not meet the frame. The limits were chosen on real
films, on the same films over-exposed in software, and on rectangles drawn on them before JPEG at quality 50 to 95.
"""

import cv2
import numpy as np

# 0-255, of the darkest colour channel. Each level is tried: the low one finds boxes that are not quite white or frayed
# by JPEG, the high one parts a box from the bright tissue that it lies on.
WHITES = (230, 242, 251)
THIN = 0.03  # of the short side: narrower white is a line, a letter, an arrow or the edge of a film
SMALL = 0.002  # of the area: smaller white is not looked at
HOLE = 0.1  # of the area of a white part: smaller holes in it are writing
STRAIGHT = (
    0.045  # of the long side: an edge runs straight for at least so long, and longer than a slanting one keeps a row
)
STEP = 12  # grey levels lost within 2 px outwards at the edge of a box
SHARE = 0.6  # of the outline inside the frame that is straight and steep, at least
_MARGIN = 4  # px kept around a candidate, at least the reach of a step


def white_box(darkest: np.ndarray) -> float:
    """Area of the largest solid white box, as a share of the picture's area; 0 where there is none.

    Rectangles that touch or overlap are one box, and writing on a box belongs to it.

    Args:
        darkest: uint8 [height, width], the darkest colour channel of each pixel; about 512 px on the long side.
    """
    largest = 0.0
    for level in WHITES:
        found = _largest(darkest, level)
        if found is None:  # what is brighter still is no thicker
            break
        largest = max(largest, found)
    return largest


def _largest(darkest: np.ndarray, level: int) -> float | None:
    """`white_box` among what is at least as bright as `level`; None where that is too small or too thin for a box."""
    height, width = darkest.shape
    white = cv2.threshold(darkest, level - 1, 1, cv2.THRESH_BINARY)[1]
    if cv2.countNonZero(white) < SMALL * white.size:
        return None
    thin = max(3, round(THIN * min(height, width))) | 1  # odd, or morphology shifts the mask
    # Beyond the frame counts as dark, so that a white line along the frame stays thin.
    padded = cv2.copyMakeBorder(white, thin, thin, thin, thin, cv2.BORDER_CONSTANT, value=0)
    half = np.ones((thin // 2 + 1, thin // 2 + 1), np.uint8)  # writing leaves so much of a box whole
    if not cv2.countNonZero(cv2.erode(padded, half)):
        return None
    _fill_writing(padded)
    solid = cv2.morphologyEx(padded, cv2.MORPH_OPEN, np.ones((thin, thin), np.uint8))[thin:-thin, thin:-thin]
    if cv2.countNonZero(solid) < SMALL * white.size:
        return None
    # Labelling is the dear part: only where something is.
    x, y, w, h = cv2.boundingRect(solid)
    around = np.s_[max(0, y - _MARGIN) : y + h + _MARGIN, max(0, x - _MARGIN) : x + w + _MARGIN]
    solid, darkest = solid[around], darkest[around]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=4)
    straight = max(5, round(STRAIGHT * max(height, width))) | 1
    largest = 0.0
    for i in range(1, count):
        x, y, w, h, area = stats[i].tolist()
        if area < max(SMALL, largest) * white.size:
            continue
        window = np.s_[max(0, y - _MARGIN) : y + h + _MARGIN, max(0, x - _MARGIN) : x + w + _MARGIN]
        if _straight_share((labels[window] == i).view(np.uint8), darkest[window], straight) >= SHARE:
            largest = area / white.size
    return largest


def _fill_writing(white: np.ndarray) -> None:
    """Fills the small holes of each white part, in place."""
    contours, tree = cv2.findContours(white, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parents = [] if tree is None else tree[0, :, 3].tolist()
    for contour, parent in zip(contours, parents, strict=True):
        if parent >= 0 and cv2.contourArea(contour) <= HOLE * cv2.contourArea(contours[parent]):
            cv2.drawContours(white, [contour], -1, 1, cv2.FILLED)


def _straight_share(region: np.ndarray, darkest: np.ndarray, straight: int) -> float:
    """Share of the outline of `region` in axis-aligned runs of `straight` px or more at which the grey falls by STEP.

    What runs along the picture's own frame is not outline. 0 where the region fills the picture.
    """
    level = cv2.copyMakeBorder(darkest, 2, 2, 2, 2, cv2.BORDER_REPLICATE)
    inner = cv2.copyMakeBorder(region, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    height, width = region.shape
    outline = steep = 0
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        beyond = inner[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        further = level[2 + 2 * dy : 2 + 2 * dy + height, 2 + 2 * dx : 2 + 2 * dx + width]
        edge = cv2.subtract(region, beyond)  # saturates at 0: 1 where the region ends
        step = cv2.bitwise_and(edge, cv2.inRange(cv2.subtract(darkest, further), STEP, 255))
        run = np.ones((1, straight) if dy else (straight, 1), np.uint8)
        outline += cv2.countNonZero(edge)
        steep += cv2.countNonZero(cv2.morphologyEx(step, cv2.MORPH_OPEN, run, borderValue=0))
    return steep / outline if outline else 0.0
