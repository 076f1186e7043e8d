"""Refuses or measures one image file: its header is read once and it is decoded once. Pure functions on bytes."""

import hashlib
from typing import NamedTuple, TypedDict

import cv2
import numpy as np

from cxr_ml.imaging.borders import measure_borders
from cxr_ml.imaging.decode import MEASURED_SIDE, DecodedImage, decode_grey, decode_image, shrink, shrink_grid, to_grey
from cxr_ml.imaging.hashes import border_ring, fine_hash, inner_hash, perceptual_hash, resize_square
from cxr_ml.imaging.white_box import measure_white_box
from cxr_ml.settings import ImageSettings


class Measurements(TypedDict):
    """What is measured of one picture. All but the first seven are taken from the picture shrunk to MEASURED_SIDE."""

    sha256: str  # of the stored bytes
    format: str  # png, jpeg or dicom
    bytes: int  # of the file
    width: int  # px
    height: int  # px
    mode: str  # Pillow's; of DICOM the photometric interpretation
    bits: int  # per sample
    mean: float  # grey level, 0-255
    std: float  # grey levels
    p01: float  # percentiles of grey at 128×128
    p99: float
    saturation: float  # sum(max - min) / sum(max) of the pixels' RGB: 0 for grey film, towards 1 for a strong cast
    sharpness: float  # variance of the Laplacian at 256×256
    black_border: float  # share of the frame
    white_border: float
    white_box: float  # share of the area of the largest solid white box
    phash: str  # `perceptual_hash`
    fine_hash: str
    inner_hash: str
    ring: str  # `border_ring`


class MeasuredImage(NamedTuple):
    """The measurements of a file, and its bytes without metadata, which are what is stored."""

    measurements: Measurements
    clean: bytes


class MeasuredPixels(NamedTuple):
    """The measurements of a file, and its picture, uint8 [height, width]."""

    measurements: Measurements
    grey: np.ndarray


def measure_image(data: bytes, settings: ImageSettings) -> MeasuredImage:
    """Measures one PNG, JPEG or DICOM file.

    Large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, so fine grain of a large picture counts in no figure. Grey
    levels run from 0 to 255 whatever the bit depth, as those of `decode_grey`.

    Args:
        data: a whole file.
        settings: max_file_bytes, max_pixels.

    Raises:
        BadImage: with the reason as its code. Limits are checked before any pixel is decoded.

    Example:
        >>> file = cv2.imencode(".png", np.full((300, 200), 90, np.uint8))[1].tobytes()
        >>> measurements, clean = measure_image(file, ImageSettings())
        >>> measurements["width"], measurements["height"], measurements["mean"], measurements["white_box"]
        (200, 300, 90.0, 0.0)
    """
    image = decode_image(data, settings, MEASURED_SIDE)
    return MeasuredImage(_measure(image, len(data)), image.clean)


def measure_and_decode(data: bytes, settings: ImageSettings) -> MeasuredPixels:
    """Measures a file as `measure_image` and returns `decode_grey` of what would be stored; most are decoded once.

    Raises:
        BadImage: as `measure_image`.
    """
    image = decode_image(data, settings, MEASURED_SIDE)
    grey = to_grey(image.pixels) if image.is_full_size else decode_grey(image.clean)
    return MeasuredPixels(_measure(image, len(data)), grey)


def _measure(image: DecodedImage, file_bytes: int) -> Measurements:
    grey, darkest, brightest = _split_channels(_shrink_rest(image))
    mean, std = (figure.item() for figure in cv2.meanStdDev(grey))
    black_border, white_border = measure_borders(grey)
    medium = resize_square(grey, 256)
    half = resize_square(medium, 128)
    p01, p99 = _percentiles(half)
    tiny = resize_square(resize_square(half, 64), 32)
    return {
        "sha256": hashlib.sha256(image.clean).hexdigest(),
        "format": image.format,
        "bytes": file_bytes,
        "width": image.width,
        "height": image.height,
        "mode": image.mode,
        "bits": image.bits,
        "mean": mean,
        "std": std,
        "p01": p01,
        "p99": p99,
        "saturation": _saturation(darkest, brightest),
        "sharpness": _sharpness(medium),
        "black_border": black_border,
        "white_border": white_border,
        "white_box": measure_white_box(darkest),
        "phash": perceptual_hash(tiny),
        "fine_hash": fine_hash(tiny),
        "inner_hash": inner_hash(grey),
        "ring": border_ring(tiny),
    }


def _shrink_rest(image: DecodedImage) -> np.ndarray:
    """`shrink` to MEASURED_SIDE, with the same result in size where the decoder has done a part of it."""
    pixels = image.pixels
    if image.is_full_size:
        return shrink(pixels, MEASURED_SIDE)
    factor, rows, columns = shrink_grid(image.height, image.width, MEASURED_SIDE)
    done = round(image.width / pixels.shape[1]) if columns > rows else round(image.height / pixels.shape[0])
    pixels = pixels[: -(-rows * factor // done), : -(-columns * factor // done)]
    if pixels.shape[:2] == (rows, columns):
        return np.ascontiguousarray(pixels)
    # Below a factor of 2 linear interpolation skips no pixel, and it is five times as fast as the average.
    interpolation = cv2.INTER_LINEAR if factor < 2 * done else cv2.INTER_AREA
    return cv2.resize(pixels, (columns, rows), interpolation=interpolation)


def _split_channels(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey, the darkest and the brightest colour channel of each pixel; the same array three times without colour."""
    if pixels.ndim == 2:
        return pixels, pixels, pixels
    height, width, _ = pixels.shape
    planes = np.empty((3, height, width), np.uint8)
    red, green, blue = cv2.split(pixels, list(planes))  # half the time of new arrays
    if not cv2.norm(planes[:2].reshape(-1, width), planes[1:].reshape(-1, width), cv2.NORM_INF):
        return red, red, red
    return to_grey(pixels), cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)


def _percentiles(grey: np.ndarray) -> tuple[float, float]:
    """The grey levels that 1 % and 99 % of the pixels do not exceed."""
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel()
    p01, p99 = counts.cumsum().searchsorted((0.01 * grey.size, 0.99 * grey.size)).tolist()
    return float(p01), float(p99)


def _saturation(darkest: np.ndarray, brightest: np.ndarray) -> float:
    if darkest is brightest:
        return 0.0
    total = cv2.sumElems(brightest)[0]
    return cv2.sumElems(brightest - darkest)[0] / total if total else 0.0


def _sharpness(grey: np.ndarray) -> float:
    """Variance of the Laplacian, as mean of the squares less square of the mean: exact on whole numbers, and fast."""
    edges = cv2.Laplacian(grey, cv2.CV_16S)
    return max(0.0, cv2.norm(edges, cv2.NORM_L2SQR) / edges.size - (cv2.sumElems(edges)[0] / edges.size) ** 2)
