"""One image file: refuse it or measure it, with one look at its header and one decode. Pure functions on bytes."""

import hashlib

import cv2
import numpy as np

from cxr_ml.imaging.borders import borders, content
from cxr_ml.imaging.decode import SMALL, Opened, decode_grey, luma, open_image, shrink, squares
from cxr_ml.imaging.formats import BadImage, clean
from cxr_ml.imaging.white_box import white_box
from cxr_ml.settings import Settings

__all__ = [
    "BadImage",
    "clean",
    "decode_grey",
    "fine_hash",
    "inner_hash",
    "measure_and_decode",
    "measure_image",
    "open_image",
    "perceptual_hash",
    "ring",
    "shrink",
    "square",
]  # fmt: skip

RING = 4  # px, width of the border ring of the picture at 32×32 that the probe for shortcuts sees
_FRAME = np.ones((32, 32), bool)
_FRAME[RING:-RING, RING:-RING] = False


def measure_image(data: bytes, settings: Settings) -> tuple[dict[str, str | int | float], bytes]:
    """Measurements of one PNG or JPEG file, and its bytes without metadata, which are what is decoded and stored.

    All is measured on what `shrink` makes of the picture for SMALL, large JPEGs from a decode at 1/2, 1/4 or 1/8 of
    their size, so fine grain of a large picture counts in no figure. Grey levels run from 0 to 255 as those of
    `decode_grey`, whatever the bit depth: `mean` and `std` are theirs, `p01` and `p99` the percentiles at 128×128.
    `saturation` is sum(max - min) / sum(max) over the pixels' RGB: 0 for grey film, towards 1 for a strong cast.
    `sharpness` is the variance of the Laplacian of the picture at 256×256. `phash`, `fine_hash`, `inner_hash` and
    `ring` are described at `perceptual_hash` and at the functions of their names.

    Returns:
        (sha256 of the clean bytes, format, bytes of the file, width, height, mode, bits, mean, std, p01, p99,
        saturation, sharpness, black_border, white_border, white_box, phash, fine_hash, inner_hash, ring), clean
        bytes

    Raises:
        BadImage: with the reason as its code. Limits of settings are checked before any pixel is decoded.
    """
    opened = open_image(data, settings, SMALL)
    return _measures(opened, len(data)), opened.clean


def measure_and_decode(data: bytes, settings: Settings) -> tuple[dict[str, str | int | float], np.ndarray]:
    """Measurements as `measure` gives them, and `decode_grey` of what would be stored; most files are decoded once.

    Raises:
        BadImage: as `measure`.
    """
    opened = open_image(data, settings, SMALL)
    whole = opened.pixels.shape[:2] == (opened.height, opened.width)
    return _measures(opened, len(data)), luma(opened.pixels) if whole else decode_grey(opened.clean)


def _measures(opened: Opened, size: int) -> dict[str, str | int | float]:
    small = _small(opened)
    grey, darkest, brightest = _channels(small)
    mean, std = (figure.item() for figure in cv2.meanStdDev(grey))
    black_border, white_border = borders(grey)
    middle = square(grey, 256)
    half = square(middle, 128)
    p01, p99 = _percentiles(half)
    tiny = square(square(half, 64), 32)
    return {
        "sha256": hashlib.sha256(opened.clean).hexdigest(),
        "format": opened.format,
        "bytes": size,
        "width": opened.width,
        "height": opened.height,
        "mode": opened.mode,
        "bits": opened.bits,
        "mean": mean,
        "std": std,
        "p01": p01,
        "p99": p99,
        "saturation": _saturation(darkest, brightest),
        "sharpness": _sharpness(middle),
        "black_border": black_border,
        "white_border": white_border,
        "white_box": white_box(darkest),
        "phash": perceptual_hash(tiny),
        "fine_hash": fine_hash(tiny),
        "inner_hash": inner_hash(grey),
        "ring": ring(tiny),
    }


def _small(opened: Opened) -> np.ndarray:
    """`shrink` of the picture to SMALL, in the same size where the decoder has done a part of it."""
    pixels = opened.pixels
    if pixels.shape[:2] == (opened.height, opened.width):
        return shrink(pixels, SMALL)
    k, rows, columns = squares(opened.height, opened.width, SMALL)
    done = round(opened.width / pixels.shape[1]) if columns > rows else round(opened.height / pixels.shape[0])
    pixels = pixels[: -(-rows * k // done), : -(-columns * k // done)]
    if pixels.shape[:2] == (rows, columns):
        return np.ascontiguousarray(pixels)
    # Below a factor of 2 no pixel is passed over, and this way is five times as fast as the average.
    way = cv2.INTER_LINEAR if k < 2 * done else cv2.INTER_AREA
    return cv2.resize(pixels, (columns, rows), interpolation=way)


def square(grey: np.ndarray, side: int) -> np.ndarray:
    """The picture stretched to side × side px, averaged where it shrinks."""
    if grey.shape == (side, side):
        return grey
    if side < min(grey.shape) and max(grey.shape) <= 2 * side:
        # Averages over 2 × 2 px of a picture laid out at twice the side: a third of the time of uneven averages.
        grey = cv2.resize(grey, (2 * side, 2 * side), interpolation=cv2.INTER_LINEAR)
    way = cv2.INTER_AREA if min(grey.shape) >= side else cv2.INTER_LINEAR
    return cv2.resize(grey, (side, side), interpolation=way)


def perceptual_hash(grey: np.ndarray) -> str:
    """64-bit DCT hash as 16 hex digits: the signs of the 8×8 coefficients of frequency 1 to 8 each way, at 32×32.

    Signs do not change with brightness and contrast, and mirroring turns exactly those of odd horizontal frequency.
    """
    bits = cv2.dct(square(grey, 32).astype(np.float32))[1:9, 1:9] > 0
    return np.packbits(bits).tobytes().hex()


def fine_hash(grey: np.ndarray) -> str:
    """1024-bit hash as 256 hex digits: for each pixel at 32×32, row by row, whether it is brighter than around it.

    Around it: a Gaussian of 1 px. Finer than `perceptual_hash`, it tells apart chest films whose large shapes agree.
    """
    small = square(grey, 32).astype(np.float32)
    return np.packbits(small > cv2.GaussianBlur(small, (0, 0), 1.0)).tobytes().hex()


def inner_hash(grey: np.ndarray) -> str:
    """`perceptual_hash` and then `fine_hash` of the `content`; "" where there is no margin around it, or it is blank.

    So a picture that was padded is known again, and one whose padding was cut off.
    """
    inner = content(grey)
    if inner.size == grey.size:
        return ""
    tiny = square(square(np.ascontiguousarray(inner), 256), 32)
    fine = fine_hash(tiny)
    return perceptual_hash(tiny) + fine if int(fine, 16) else ""


def ring(grey: np.ndarray) -> str:
    """The outermost RING px of the picture at 32×32: how it was framed, no lungs. 448 grey levels as 896 hex digits."""
    return square(grey, 32)[_FRAME].tobytes().hex()


def _channels(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey, the darkest and the brightest colour channel of each pixel; one array thrice where there is no colour."""
    if pixels.ndim == 2:
        return pixels, pixels, pixels
    height, width, _ = pixels.shape
    planes = np.empty((3, height, width), np.uint8)
    red, green, blue = cv2.split(pixels, list(planes))  # half the time of new arrays
    if not cv2.norm(planes[:2].reshape(-1, width), planes[1:].reshape(-1, width), cv2.NORM_INF):
        return red, red, red
    return luma(pixels), cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)


def _percentiles(grey: np.ndarray) -> tuple[float, float]:
    """The grey levels of which 1 % and 99 % of the pixels are no brighter."""
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel()
    p01, p99 = counts.cumsum().searchsorted((0.01 * grey.size, 0.99 * grey.size)).tolist()
    return float(p01), float(p99)


def _saturation(darkest: np.ndarray, brightest: np.ndarray) -> float:
    if darkest is brightest:
        return 0.0
    total = cv2.sumElems(brightest)[0]
    return cv2.sumElems(brightest - darkest)[0] / total if total else 0.0


def _sharpness(square: np.ndarray) -> float:
    """Variance of the Laplacian, as mean of the squares less square of the mean: exact on whole numbers, and fast."""
    edges = cv2.Laplacian(square, cv2.CV_16S)
    return max(0.0, cv2.norm(edges, cv2.NORM_L2SQR) / edges.size - (cv2.sumElems(edges)[0] / edges.size) ** 2)
