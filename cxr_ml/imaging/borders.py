"""Borders of a film: the share that is black or white, and the plain margin that a picture was padded with."""

from typing import NamedTuple

import cv2
import numpy as np

MAX_BLACK, MIN_WHITE = 12, 245  # 8-bit grey levels of a border; JPEG noise around 0 and 255 stays inside
MIN_BORDER_SHARE = 0.98  # of a row or column that belongs to the border; a marker letter may stand in it
MAX_NOISE = 8  # grey levels by which JPEG changes a plain margin
MIN_MARGIN = 0.02  # of the picture; the hashes tolerate a smaller crop
MIN_CONTENT = 0.2  # of the picture that is left without its margin; a picture with less is blank and stays whole


class Borders(NamedTuple):
    """Shares of the frame, 0-1."""

    black: float
    white: float


def measure_borders(grey: np.ndarray) -> Borders:
    """Returns which share of the frame lies in whole black and in whole white rows and columns at the edges.

    Args:
        grey: uint8 [height, width].

    Example:
        >>> film = np.full((100, 100), 128, np.uint8)
        >>> film[:10] = 0
        >>> black, white = measure_borders(film)
        >>> round(black, 3), white
        (0.1, 0.0)
    """
    edges = _edges(grey)
    shares = []
    for low, high in ((0, MAX_BLACK), (MIN_WHITE, 255)):
        has_border = any(_is_within(edge, low, high) for edge in edges)
        shares.append(1.0 - _crop_border(grey, low, high).size / grey.size if has_border else 0.0)
    return Borders(*shares)


def crop_margin(grey: np.ndarray) -> np.ndarray:
    """Returns the picture without its margin of one grey level; the picture itself where it has none.

    A padded copy thus gives its original or, where the original has a margin of the same level, what is inside that.

    Args:
        grey: uint8 [height, width].

    Returns:
        A view of `grey`.
    """
    for edge in _edges(grey):
        level = edge[len(edge) // 2]
        low, high = max(0, level - MAX_NOISE), min(255, level + MAX_NOISE)
        if _is_within(edge, low, high):
            content = _crop_border(grey, low, high)
            if MIN_CONTENT <= content.size / grey.size <= 1 - MIN_MARGIN:
                return content
    return grey


def _edges(grey: np.ndarray) -> list[bytes]:
    return [edge.tobytes() for edge in (grey[0], grey[-1], grey[:, 0], grey[:, -1])]


def _is_within(edge: bytes, low: int, high: int) -> bool:
    return len(edge.translate(None, bytes(range(low, high + 1)))) <= (1 - MIN_BORDER_SHARE) * len(edge)


def _crop_border(grey: np.ndarray, low: int, high: int) -> np.ndarray:
    """Cuts off the rows at the edges whose levels are `low` to `high`, then such columns of what remains."""
    if low == 0:  # a third of the time of inRange
        mask = cv2.threshold(grey, high, 255, cv2.THRESH_BINARY_INV)[1]
    elif high == 255:
        mask = cv2.threshold(grey, low - 1, 255, cv2.THRESH_BINARY)[1]
    else:
        mask = cv2.inRange(grey, low, high)
    rows = _inner_range(mask, 1)
    mask = mask[rows]
    return grey[rows, _inner_range(mask, 0)] if mask.size else grey[rows]


def _inner_range(mask: np.ndarray, axis: int) -> slice:
    shares = cv2.reduce(mask, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel()
    inner = np.flatnonzero(shares < 255 * MIN_BORDER_SHARE)
    return slice(inner[0], inner[-1] + 1) if len(inner) else slice(0, 0)
