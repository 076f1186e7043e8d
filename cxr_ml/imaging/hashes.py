"""Perceptual hashes by which copies of a film are recognised, and the border ring that the shortcut probe sees."""

import cv2
import numpy as np

from cxr_ml.imaging.borders import crop_margin

RING_WIDTH = 4  # px of the picture at 32×32
_RING = np.ones((32, 32), bool)
_RING[RING_WIDTH:-RING_WIDTH, RING_WIDTH:-RING_WIDTH] = False


def resize_square(grey: np.ndarray, side: int) -> np.ndarray:
    """Returns the picture stretched to side × side px, averaged where it shrinks."""
    if grey.shape == (side, side):
        return grey
    if side < min(grey.shape) and max(grey.shape) <= 2 * side:
        # Averaging 2 × 2 px of the picture at twice the side takes a third of the time of uneven averages.
        grey = cv2.resize(grey, (2 * side, 2 * side), interpolation=cv2.INTER_LINEAR)
    interpolation = cv2.INTER_AREA if min(grey.shape) >= side else cv2.INTER_LINEAR
    return cv2.resize(grey, (side, side), interpolation=interpolation)


def perceptual_hash(grey: np.ndarray) -> str:
    """Returns a 64-bit DCT hash as 16 hex digits: the signs of the 8×8 coefficients of frequency 1 to 8, at 32×32.

    Signs do not change with brightness and contrast; mirroring inverts exactly those of odd horizontal frequency.

    Args:
        grey: uint8 [height, width].

    Example:
        >>> film = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
        >>> perceptual_hash(film) == perceptual_hash(film // 2 + 40)
        True
    """
    bits = cv2.dct(resize_square(grey, 32).astype(np.float32))[1:9, 1:9] > 0
    return np.packbits(bits).tobytes().hex()


def fine_hash(grey: np.ndarray) -> str:
    """Returns a 1024-bit hash as 256 hex digits: whether each pixel at 32×32 is brighter than its surroundings.

    The surroundings are a Gaussian of 1 px. The hash distinguishes chest films whose large shapes agree.

    Args:
        grey: uint8 [height, width].
    """
    small = resize_square(grey, 32).astype(np.float32)
    return np.packbits(small > cv2.GaussianBlur(small, (0, 0), 1.0)).tobytes().hex()


def inner_hash(grey: np.ndarray) -> str:
    """Returns `perceptual_hash` followed by `fine_hash` of the picture inside its plain margin.

    It recognises a picture that was padded, and one whose padding was cut off.

    Args:
        grey: uint8 [height, width].

    Returns:
        272 hex digits; "" where there is no margin, or nothing but a blank inside it.
    """
    content = crop_margin(grey)
    if content.size == grey.size:
        return ""
    tiny = resize_square(resize_square(np.ascontiguousarray(content), 256), 32)
    fine = fine_hash(tiny)
    return perceptual_hash(tiny) + fine if int(fine, 16) else ""


def border_ring(grey: np.ndarray) -> str:
    """Returns the outermost RING_WIDTH px of the picture at 32×32: its framing, without the lungs.

    Returns:
        448 grey levels as 896 hex digits.
    """
    return resize_square(grey, 32)[_RING].tobytes().hex()
