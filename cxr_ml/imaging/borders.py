"""What lies around a film: black and white border, and the plain margin that a picture was padded with."""

import cv2
import numpy as np

BLACK, WHITE = 12, 245  # 8-bit grey: at most, at least; JPEG noise around 0 and 255 stays inside
SHARE = 0.98  # of a row or column that must be border; a marker letter may stand in it
PLAIN = 8  # grey levels around that of a margin: noise of JPEG
MARGIN = 0.02  # of the picture, at least: less is no more than a crop that the hashes stand
LEAST = 0.2  # of the picture that is left without its margin, at least: else it is blank, and nothing is cut off


def borders(grey: np.ndarray) -> tuple[float, float]:
    """Shares of the frame in whole rows and columns, from the edges, that are black and that are white."""
    edges = _edges(grey)
    shares = []
    for low, high in ((0, BLACK), (WHITE, 255)):
        at_edge = any(_is_within(edge, low, high) for edge in edges)
        shares.append(1.0 - _inside(grey, low, high).size / grey.size if at_edge else 0.0)
    return shares[0], shares[1]


def content(grey: np.ndarray) -> np.ndarray:
    """What a picture, uint8 [height, width], shows inside of a margin of one grey level, whichever; itself without one.

    What a padded copy shows is its original, or, where that has a margin of the same level, the original's content.
    """
    for edge in _edges(grey):
        level = edge[len(edge) // 2]
        low, high = max(0, level - PLAIN), min(255, level + PLAIN)
        if _is_within(edge, low, high):
            inside = _inside(grey, low, high)
            if LEAST <= inside.size / grey.size <= 1 - MARGIN:
                return inside
    return grey


def _edges(grey: np.ndarray) -> list[bytes]:
    return [edge.tobytes() for edge in (grey[0], grey[-1], grey[:, 0], grey[:, -1])]


def _is_within(edge: bytes, low: int, high: int) -> bool:
    return len(edge.translate(None, bytes(range(low, high + 1)))) <= (1 - SHARE) * len(edge)


def _inside(grey: np.ndarray, low: int, high: int) -> np.ndarray:
    """The picture without the rows from its edges, and then without the columns of what remains, at `low` to `high`."""
    if low == 0:  # a third of the time of inRange
        mask = cv2.threshold(grey, high, 255, cv2.THRESH_BINARY_INV)[1]
    elif high == 255:
        mask = cv2.threshold(grey, low - 1, 255, cv2.THRESH_BINARY)[1]
    else:
        mask = cv2.inRange(grey, low, high)
    rows = _between(mask, 1)
    mask = mask[rows]
    return grey[rows, _between(mask, 0)] if mask.size else grey[rows]


def _between(mask: np.ndarray, axis: int) -> slice:
    shares = cv2.reduce(mask, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel()
    rest = np.flatnonzero(shares < 255 * SHARE)
    return slice(rest[0], rest[-1] + 1) if len(rest) else slice(0, 0)
