"""Disguises of a film: how scanners, software and uploads change sharpness, resolution, grey levels and encoding.

Sources of chest films differ in these, and a model that leans on them knows the source, not the disease. Training draws
them from wide ranges; evaluation holds a model to fixed ones, which are never drawn exactly.
"""

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from PIL import Image, ImageFilter

# Each is drawn for a share SOME of the views. Lengths are in pixels of a picture of 256 × 256, and grow with it.
SOME = 0.5
BLUR = (0.3, 1.6)  # px, sigma of a Gaussian
SHARPEN_RADIUS = (0.7, 3.0)  # px, sigma of the Gaussian that an unsharp mask takes away
SHARPEN_AMOUNT = (0.3, 2.5)  # of the difference that an unsharp mask adds
GAMMA = (0.7, 1.4)  # exponent on grey levels in [0, 1]
CONTRAST = (0.7, 1.3)  # factor around the mean grey
NOISE = (1.0, 8.0)  # grey levels, sigma
RESOLUTION = (0.4, 0.9)  # of the side, to which the picture is shrunk and enlarged again
QUALITY = (40, 95)  # of JPEG
VERSION = 1  # of what a seed draws; views and features of another version are other ones


def disguise(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One random disguise of each image: blurred or sharpened, other grey levels, noise, lower resolution, JPEG.

    Args:
        images: uint8 (n, size, size, 1).
        rng: source of all randomness.

    Returns:
        uint8 of the same shape.
    """
    if not len(images):
        return images.copy()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(_one, images[..., 0], rng.spawn(len(images)))))[..., None]


def _one(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = grey.shape[0]
    px = size / 256
    view = grey.astype(np.float32)
    edge = rng.random()
    if edge < SOME / 2:
        view = cv2.GaussianBlur(view, (0, 0), rng.uniform(*BLUR) * px)
    elif edge < 1.5 * SOME:
        around = cv2.GaussianBlur(view, (0, 0), rng.uniform(*SHARPEN_RADIUS) * px)
        view += rng.uniform(*SHARPEN_AMOUNT) * (view - around)
    if rng.random() < SOME:
        view = 255 * (np.clip(view, 0, 255) / 255) ** rng.uniform(*GAMMA)
    if rng.random() < SOME:
        mean = view.mean()
        view = mean + rng.uniform(*CONTRAST) * (view - mean)
    if rng.random() < SOME:
        side = round(rng.uniform(*RESOLUTION) * size)
        view = cv2.resize(view, (side, side), interpolation=cv2.INTER_AREA)
        view = cv2.resize(view, (size, size), interpolation=cv2.INTER_LINEAR)
    if rng.random() < SOME:
        view += rng.standard_normal(view.shape, np.float32) * rng.uniform(*NOISE)
    view = np.clip(np.rint(view), 0, 255).astype(np.uint8)
    if rng.random() < SOME:
        quality = int(rng.integers(QUALITY[0], QUALITY[1] + 1))
        view = cv2.imdecode(cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)
    return view


def shrunk(images: np.ndarray) -> np.ndarray:
    """Each image at 7/8 of its side (224 of 256), encoded as JPEG 75, and enlarged again; uint8, same shape."""
    return _each(images, _shrunk)


def _shrunk(picture: Image.Image) -> Image.Image:
    side = picture.width
    small = picture.resize((side * 7 // 8, side * 7 // 8), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=75)
    return Image.open(file).resize((side, side), Image.Resampling.BILINEAR)


def sharpened(images: np.ndarray) -> np.ndarray:
    """Each image after an unsharp mask of 150 %, its radius 2 px of 256; uint8, same shape."""
    mask = ImageFilter.UnsharpMask(radius=2 * images.shape[1] / 256, percent=150)
    return _each(images, lambda picture: picture.filter(mask))


def _each(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(change(Image.fromarray(image[..., 0]))) for image in images])[..., None]


# Disguises that every evaluation holds a model to, beside the images as they are.
FIXED = {"shrunk": shrunk, "sharpened": sharpened}
