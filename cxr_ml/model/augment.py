"""The study's augmentation: every geometric change in one affine warp, then brightness. Grey uint8 in and out."""

import cv2
import numpy as np

# Ranges of the study: ±5° rotation, ±5° shear, ±15 % shifts, 90–110 % zoom, 80–120 % brightness, horizontal flip.
ROTATION = 5.0  # degrees
SHEAR = 5.0  # degrees
SHIFT = 0.15  # share of the side
ZOOM = (0.9, 1.1)  # per axis
BRIGHTNESS = (0.8, 1.2)


def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One random view of each image; what lies outside the film becomes black.

    Args:
        images: uint8 (n, size, size, 1).
        rng: source of all randomness.

    Returns:
        uint8 of the same shape.
    """
    n, size = len(images), images.shape[1]
    angle = np.deg2rad(rng.uniform(-ROTATION, ROTATION, n))
    shear = np.deg2rad(rng.uniform(-SHEAR, SHEAR, n))
    shift = rng.uniform(-SHIFT, SHIFT, (n, 2)) * size
    zoom = rng.uniform(*ZOOM, (n, 2))
    flip = np.where(rng.random(n) < 0.5, -1.0, 1.0)
    gain = rng.uniform(*BRIGHTNESS, n)
    linear = np.empty((n, 2, 2))
    linear[:, 0, 0] = np.cos(angle) * zoom[:, 0] * flip
    linear[:, 0, 1] = -np.sin(angle + shear) * zoom[:, 1]
    linear[:, 1, 0] = np.sin(angle) * zoom[:, 0] * flip
    linear[:, 1, 1] = np.cos(angle + shear) * zoom[:, 1]
    centre = np.array([(size - 1) / 2, (size - 1) / 2])
    offset = centre + shift - linear @ centre
    views = np.empty_like(images)
    for i in range(n):
        warp = np.column_stack([linear[i], offset[i]])
        view = cv2.warpAffine(images[i, ..., 0], warp, (size, size), flags=cv2.INTER_LINEAR, borderValue=0)
        views[i, ..., 0] = cv2.convertScaleAbs(view, alpha=gain[i])
    return views
