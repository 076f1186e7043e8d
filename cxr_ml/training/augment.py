"""The study's augmentation: every geometric change in one affine warp, then brightness. Grey uint8 in and out.

The study drew its views with Keras's `ImageDataGenerator`. Drawn here are the same parameters from the same ranges, and
composed in the same order about the same centre, so that the same parameters give the same picture.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np

# Ranges of the study: ±5° rotation, ±5° shear, ±15 % shifts, 90–110 % zoom, 80–120 % brightness, horizontal flip.
ROTATION = 5.0  # degrees
SHEAR = 5.0  # degrees
SHIFT = 0.15  # share of the side
ZOOM = (0.9, 1.1)  # per axis; above 1 the film becomes smaller, as in Keras
BRIGHTNESS = (0.8, 1.2)
VERSION = 2  # of what a seed draws; views and features of another version are other ones


class Changes(NamedTuple):
    """What is done to each of n images; the names are those of Keras's `get_random_transform`."""

    theta: np.ndarray  # degrees, (n,)
    shear: np.ndarray  # degrees, (n,)
    shift: np.ndarray  # pixels along x and y, (n, 2); Keras's tx and ty
    zoom: np.ndarray  # along x and y, (n, 2); Keras's zx and zy
    flip: np.ndarray  # whether left and right change sides, bool (n,)
    brightness: np.ndarray  # factor, (n,)


def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One random view of each image; what lies outside the film becomes black.

    Args:
        images: uint8 (n, size, size, 1).
        rng: source of all randomness.

    Returns:
        uint8 of the same shape.
    """
    return apply(images, draw(len(images), images.shape[1], rng))


def draw(n: int, size: int, rng: np.random.Generator) -> Changes:
    """Random changes for n images of `size` pixels, each parameter uniform over its range."""
    return Changes(
        theta=rng.uniform(-ROTATION, ROTATION, n),
        shear=rng.uniform(-SHEAR, SHEAR, n),
        shift=rng.uniform(-SHIFT, SHIFT, (n, 2)) * size,
        zoom=rng.uniform(*ZOOM, (n, 2)),
        flip=rng.random(n) < 0.5,
        brightness=rng.uniform(*BRIGHTNESS, n),
    )


def apply(images: np.ndarray, changes: Changes) -> np.ndarray:
    """The views that these changes make of uint8 images (n, size, size, 1); uint8 of the same shape.

    Equal to `ImageDataGenerator.apply_transform` with `fill_mode="constant"`, but that Keras rounds down what it
    interpolated, and that it cuts the film off at the centre of its outermost pixels, where this one fades it out.
    """
    n, size = len(images), images.shape[1]
    warps = _warps(changes, size)
    views = np.empty_like(images)

    def part(which: range) -> None:
        for i in which:
            view = cv2.warpAffine(
                images[i, ..., 0], warps[i], (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderValue=0
            )
            # Keras's brightness is Pillow's, which rounds down; OpenCV rounds to the nearest.
            views[i, ..., 0] = cv2.convertScaleAbs(view, alpha=changes.brightness[i], beta=-0.4999)

    threads = min(os.cpu_count() or 1, n) or 1
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, [range(start, n, threads) for start in range(threads)]))
    return views


def _warps(changes: Changes, size: int) -> np.ndarray:
    """From a pixel (x, y) of each view to where it lies in its image, float64 (n, 2, 3).

    As in keras.src.legacy.preprocessing.image.apply_affine_transform: rotation · shift · shear · zoom about the centre
    of the picture, applied to what the flip left.
    """
    theta, shear = np.deg2rad(changes.theta), np.deg2rad(changes.shear)
    rotation = _matrices([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    lean = _matrices([[np.ones_like(shear), -np.sin(shear)], [np.zeros_like(shear), np.cos(shear)]])
    linear = rotation @ lean * changes.zoom[:, None, :]
    centre = np.full(2, (size - 1) / 2)
    offset = centre - linear @ centre + (rotation @ changes.shift[..., None])[..., 0]
    mirror = np.where(changes.flip, -1.0, 1.0)
    offset += np.where(changes.flip, size - 1, 0)[:, None] * linear[:, :, 0]
    linear[:, :, 0] *= mirror[:, None]
    return np.concatenate([linear, offset[..., None]], axis=2)


def _matrices(rows: list[list[np.ndarray]]) -> np.ndarray:
    return np.moveaxis(np.array(rows), -1, 0)
