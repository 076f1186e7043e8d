"""Image corruptions, as scanners, software and uploads make them: of sharpness, resolution, grey levels and encoding.

The sources of chest X-rays differ in these, and a model that relies on them recognises the source, not the disease.
Training draws corruptions from wide ranges (the setting `training.corrupted_share`); evaluation tests a model with
the two fixed ones.
"""

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from PIL import Image, ImageFilter

# Lengths are in pixels of a picture of 256 × 256, and scale with it.
PROBABILITY = 0.5  # of each corruption
BLUR = (0.3, 1.6)  # px, sigma of a Gaussian
SHARPEN_RADIUS = (0.7, 3.0)  # px, sigma of the Gaussian that an unsharp mask takes away
SHARPEN_AMOUNT = (0.3, 2.5)  # of the difference that an unsharp mask adds
GAMMA = (0.7, 1.4)  # exponent on grey levels in [0, 1]
CONTRAST = (0.7, 1.3)  # factor around the mean grey
NOISE = (1.0, 8.0)  # grey levels, sigma
RESOLUTION = (0.4, 0.9)  # of the side, to which the picture is shrunk and enlarged again
QUALITY = (40, 95)  # of JPEG
VERSION = 1  # raise it if a seed draws other corruptions: stored features of an older version are then not used


def corrupt_images(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns each image blurred or sharpened, with other grey levels, noise, lower resolution, JPEG, each at random.

    Args:
        images: uint8 (n, size, size, 1).
        rng: source of all randomness.

    Returns:
        uint8 of the same shape.
    """
    if not len(images):
        return images.copy()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(_corrupt, images[..., 0], rng.spawn(len(images)))))[..., None]


def _corrupt(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = grey.shape[0]
    px = size / 256
    view: np.ndarray = grey.astype(np.float32)
    edge = rng.random()
    if edge < PROBABILITY / 2:
        view = cv2.GaussianBlur(view, (0, 0), rng.uniform(*BLUR) * px)
    elif edge < 1.5 * PROBABILITY:
        blurred = cv2.GaussianBlur(view, (0, 0), rng.uniform(*SHARPEN_RADIUS) * px)
        view += rng.uniform(*SHARPEN_AMOUNT) * (view - blurred)
    if rng.random() < PROBABILITY:
        view = 255 * (np.clip(view, 0, 255) / 255) ** rng.uniform(*GAMMA)
    if rng.random() < PROBABILITY:
        mean = view.mean()
        view = mean + rng.uniform(*CONTRAST) * (view - mean)
    if rng.random() < PROBABILITY:
        side = round(rng.uniform(*RESOLUTION) * size)
        view = cv2.resize(view, (side, side), interpolation=cv2.INTER_AREA)
        view = cv2.resize(view, (size, size), interpolation=cv2.INTER_LINEAR)
    if rng.random() < PROBABILITY:
        view += rng.standard_normal(view.shape, np.float32) * rng.uniform(*NOISE)
    view = np.clip(np.rint(view), 0, 255).astype(np.uint8)
    if rng.random() < PROBABILITY:
        quality = int(rng.integers(QUALITY[0], QUALITY[1] + 1))
        file = cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        view = cv2.imdecode(file, cv2.IMREAD_GRAYSCALE)  # type: ignore[assignment] # None only for a broken file
    return view


def shrink_images(images: np.ndarray) -> np.ndarray:
    """Returns images shrunk to 7/8 of their side (256 to 224), stored as JPEG 75, and enlarged; uint8, same shape."""
    return _change_pictures(images, _shrink)


def _shrink(picture: Image.Image) -> Image.Image:
    side = picture.width
    small = picture.resize((side * 7 // 8, side * 7 // 8), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=75)
    return Image.open(file).resize((side, side), Image.Resampling.BILINEAR)


def sharpen_images(images: np.ndarray) -> np.ndarray:
    """Returns images after an unsharp mask of 150 % with a radius of 2 px of 256; uint8, same shape."""
    mask = ImageFilter.UnsharpMask(radius=2 * images.shape[1] / 256, percent=150)
    return _change_pictures(images, lambda picture: picture.filter(mask))


def _change_pictures(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(change(Image.fromarray(image[..., 0]))) for image in images])[..., None]


# The corruptions with which every evaluation tests a model, beside the images as they are.
FIXED = {"shrunk": shrink_images, "sharpened": sharpen_images}
