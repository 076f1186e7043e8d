"""The study's augmentation: all geometric transforms in one affine warp, then brightness. Grey uint8 in and out.

The study used Keras's `ImageDataGenerator`. The same parameters are drawn here from the same ranges and composed in the
same order about the same centre, so the same parameters give the same picture.
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
ZOOM = (0.9, 1.1)  # factor per axis; above 1 the picture becomes smaller, as in Keras
BRIGHTNESS = (0.8, 1.2)  # factor
VERSION = 2  # raise it if a seed draws other views: stored features of an older version are then not used


class Transforms(NamedTuple):
    """Parameters of a transform for each of n images, named as in Keras's `get_random_transform`."""

    theta: np.ndarray  # degrees, (n,)
    shear: np.ndarray  # degrees, (n,)
    shift: np.ndarray  # pixels along x and y, (n, 2); Keras's tx and ty
    zoom: np.ndarray  # along x and y, (n, 2); Keras's zx and zy
    flip: np.ndarray  # whether the image is mirrored left to right, bool (n,)
    brightness: np.ndarray  # factor, (n,)


def augment_images(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns one random view of each image; what lies outside the image becomes black.

    Args:
        images: uint8 (n, size, size, 1).
        rng: source of all randomness.

    Returns:
        uint8 of the same shape.

    Example:
        >>> images = np.full((2, 64, 64, 1), 128, np.uint8)
        >>> views = augment_images(images, np.random.default_rng(0))
        >>> views.shape, views.dtype
        ((2, 64, 64, 1), dtype('uint8'))
    """
    return apply_transforms(images, draw_transforms(len(images), images.shape[1], rng))


def draw_transforms(n: int, size: int, rng: np.random.Generator) -> Transforms:
    """Returns random transforms for n images of `size` pixels, each parameter uniform over its range."""
    return Transforms(
        theta=rng.uniform(-ROTATION, ROTATION, n),
        shear=rng.uniform(-SHEAR, SHEAR, n),
        shift=rng.uniform(-SHIFT, SHIFT, (n, 2)) * size,
        zoom=rng.uniform(*ZOOM, (n, 2)),
        flip=rng.random(n) < 0.5,
        brightness=rng.uniform(*BRIGHTNESS, n),
    )


def apply_transforms(images: np.ndarray, transforms: Transforms) -> np.ndarray:
    """Returns transformed images.

    As `ImageDataGenerator.apply_transform` with `fill_mode="constant"`, with two differences: Keras rounds interpolated
    values down, and it cuts the image off at the centre of its outermost pixels, where this function fades it out.

    Args:
        images: uint8 (n, size, size, 1).
        transforms: one per image.

    Returns:
        uint8 of the same shape.
    """
    n, size = len(images), images.shape[1]
    warps = _compute_warps(transforms, size)
    views = np.empty_like(images)

    def warp(rows: range) -> None:
        for i in rows:
            view = cv2.warpAffine(
                images[i, ..., 0], warps[i], (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderValue=0
            )
            # Keras's brightness is Pillow's, which rounds down; OpenCV rounds to the nearest.
            views[i, ..., 0] = cv2.convertScaleAbs(view, alpha=transforms.brightness[i], beta=-0.4999)

    threads = min(os.cpu_count() or 1, n) or 1
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(warp, [range(start, n, threads) for start in range(threads)]))
    return views


def _compute_warps(transforms: Transforms, size: int) -> np.ndarray:
    """Returns the affine maps from pixels (x, y) of the views to those of the images, float64 (n, 2, 3).

    As in keras.src.legacy.preprocessing.image.apply_affine_transform: rotation · shift · shear · zoom about the centre
    of the image, after the flip.
    """
    theta, shear = np.deg2rad(transforms.theta), np.deg2rad(transforms.shear)
    rotation = _stack_matrices([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    shearing = _stack_matrices([[np.ones_like(shear), -np.sin(shear)], [np.zeros_like(shear), np.cos(shear)]])
    linear = rotation @ shearing * transforms.zoom[:, None, :]
    centre = np.full(2, (size - 1) / 2)
    offset = centre - linear @ centre + (rotation @ transforms.shift[..., None])[..., 0]
    mirror = np.where(transforms.flip, -1.0, 1.0)
    offset += np.where(transforms.flip, size - 1, 0)[:, None] * linear[:, :, 0]
    linear[:, :, 0] *= mirror[:, None]
    return np.concatenate([linear, offset[..., None]], axis=2)


def _stack_matrices(rows: list[list[np.ndarray]]) -> np.ndarray:
    return np.moveaxis(np.array(rows), -1, 0)
