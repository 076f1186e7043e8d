"""Solid white rectangles laid over or beside a film: found by their straight, steep edges, not by their brightness.

Film that is clipped by exposure is as white as a box, but its outline is curved or fades; a box, or several that touch
or overlap, is bounded by long axis-aligned steps wherever it does not meet the frame. The limits were chosen on real
films, on the same films over-exposed in software, and on rectangles drawn on them before JPEG at quality 50 to 95.
"""

import cv2
import numpy as np

WHITE = 242  # 0-255, of the darkest colour channel; lets JPEG ringing in a box pass
THIN = 0.02  # of the short side: narrower white is a line, a letter or an arrow
SMALL = 0.002  # of the area: smaller white is not looked at
STRAIGHT = 0.03  # of the long side: an edge runs straight for at least so long
STEP = 12  # grey levels lost within 2 px outwards at the edge of a box
SHARE = 0.6  # of the outline inside the frame that is straight and steep, at least
_MARGIN = 4  # px kept around a candidate, at least the reach of a step


def white_box(darkest: np.ndarray) -> float:
    """Area of the largest solid white box, as a share of the picture's area; 0 where there is none.

    Rectangles that touch or overlap are one box, and writing on a box belongs to it.

    Args:
        darkest: uint8 [height, width], the darkest colour channel of each pixel; about 512 px on the long side.
    """
    height, width = darkest.shape
    white = (darkest >= WHITE).view(np.uint8)
    if cv2.countNonZero(white) < SMALL * white.size:
        return 0.0
    thin = max(3, round(THIN * min(height, width))) | 1  # odd, or morphology shifts the mask
    # Beyond the frame counts as dark, so that a white line along the frame stays thin.
    padded = cv2.copyMakeBorder(white, thin, thin, thin, thin, cv2.BORDER_CONSTANT, value=0)
    solid = cv2.morphologyEx(padded, cv2.MORPH_OPEN, np.ones((thin, thin), np.uint8))[thin:-thin, thin:-thin]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=4)
    straight = max(5, round(STRAIGHT * max(height, width))) | 1
    largest = 0.0
    for i in range(1, count):
        x, y, w, h, area = (int(v) for v in stats[i])
        if area < SMALL * white.size:
            continue
        window = np.s_[max(0, y - _MARGIN) : y + h + _MARGIN, max(0, x - _MARGIN) : x + w + _MARGIN]
        filled = _fill(labels[window] == i)
        if _straight_share(filled, darkest[window], straight) >= SHARE:
            largest = max(largest, int(filled.sum()) / white.size)
    return largest


def _fill(region: np.ndarray) -> np.ndarray:
    """`region` without its holes, uint8 0 or 1."""
    contours, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(region.shape, np.uint8), contours, -1, 1, cv2.FILLED)


def _straight_share(region: np.ndarray, darkest: np.ndarray, straight: int) -> float:
    """Share of the outline of `region` in axis-aligned runs of `straight` px or more at which the grey falls by STEP.

    What runs along the picture's own frame is not outline. 0 where the region fills the picture.
    """
    level = np.pad(darkest, 2, mode="edge").astype(np.int16)
    inner = np.pad(region, 1, mode="edge")
    height, width = region.shape
    outline = steep = 0
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        beyond = inner[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        further = level[2 + 2 * dy : 2 + 2 * dy + height, 2 + 2 * dx : 2 + 2 * dx + width]
        edge = (region == 1) & (beyond == 0)
        step = edge & (level[2:-2, 2:-2] - further >= STEP)
        run = np.ones((1, straight) if dy else (straight, 1), np.uint8)
        outline += int(edge.sum())
        steep += int(cv2.morphologyEx(step.astype(np.uint8), cv2.MORPH_OPEN, run, borderValue=0).sum())
    return steep / outline if outline else 0.0
