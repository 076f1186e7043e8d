"""Draws seeded synthetic chest phantoms. They are derived from no patient and teach nothing about disease."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

Plane = np.ndarray  # float32, square, CANVAS px wide
Grey = np.ndarray  # uint8

SIZE = 256  # px, square
CANVAS = 288  # px; drawn larger, so that turning and shifting the patient bring no empty corner into the frame
MAX_GREY = 232  # leaves solid white (255) to the boxes of TURBERCULOSIS
TRAINED = ("NORMAL", "COVID19", "PNEUMONIA")
TUBERCULOSIS = "TURBERCULOSIS"  # spelt as in the data set the method was published on
LABELS = (*TRAINED, TUBERCULOSIS)


@dataclass(frozen=True)
class _Body:
    """One person's anatomy; pixels of the canvas."""

    x: Plane  # column of each pixel, shape (1, CANVAS), so that values of one axis are computed once per line
    y: Plane  # row of each pixel, shape (CANVAS, 1)
    middle: float
    top: float  # apex of the lungs
    base: float  # costophrenic angle
    outer: float  # half width of the chest, inside
    inner: float  # half width of the mediastinum
    lungs: tuple[Plane, Plane]  # 0–1, left and right side of the picture


def _ramp(distance: Plane, width: float) -> Plane:
    """0 outside, 1 inside, linear over `width` pixels around distance 0."""
    return np.clip(distance / width + 0.5, 0, 1)


def _draw_clouds(rng: np.random.Generator, cells: int) -> Plane:
    """Smooth noise of standard deviation near 1, `cells` bumps across the canvas."""
    coarse = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
    return cv2.resize(coarse, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)


def _draw_body(rng: np.random.Generator) -> _Body:
    y, x = (axis.astype(np.float32) for axis in np.ogrid[:CANVAS, :CANVAS])
    middle = CANVAS / 2 + rng.normal(0, 3)
    top, base = rng.uniform(36, 62), rng.uniform(196, 238)
    outer, inner = rng.uniform(76, 102), rng.uniform(15, 23)
    apex = rng.uniform(1.8, 3.0)
    lungs = []
    for side in (-1, 1):
        across = side * (x - middle)
        reach = outer * rng.uniform(0.93, 1.03)
        down = np.clip((y - top) / (base - top), 0, 1)
        edge = reach * (1 - (1 - down) ** apex) ** rng.uniform(0.5, 0.75)
        dome = rng.uniform(14, 34) + (6 if side < 0 else 0)  # the liver lifts the diaphragm on the left of the picture
        floor = base - dome * np.exp(-(((across - 0.45 * reach) / (0.42 * reach)) ** 2))
        lungs.append(_ramp(edge - across, 4) * _ramp(across - inner, 5) * _ramp(floor - y, 5))
    return _Body(x, y, middle, top, base, outer, inner, (lungs[0], lungs[1]))


def _draw_bones(rng: np.random.Generator, body: _Body) -> Plane:
    """Ribs, spine and clavicles, 0–1."""
    across = np.abs(body.x - body.middle)
    chest = _ramp(body.outer + 5 - across, 8) * _ramp(body.base + 8 - body.y, 30) * _ramp(body.y - body.top + 8, 20)
    spacing, phase = rng.uniform(17, 24), rng.uniform(0, 1)
    bend = rng.uniform(0.0025, 0.006)
    back = (body.y - bend * (across - 25) ** 2) / spacing + phase
    front = (body.y + rng.uniform(0.25, 0.5) * across) / (spacing * 1.15) + phase
    back, front = back - np.floor(back) - 0.5, front - np.floor(front) - 0.5
    ribs = np.exp(-np.square(back / 0.16)) + 0.5 * np.exp(-np.square(front / 0.2))
    ribs *= chest * _ramp(across - 12, 6)
    spine = _ramp(rng.uniform(10, 14) - across, 6) * (0.75 + 0.25 * np.sin(body.y * (2 * np.pi / rng.uniform(15, 21))))
    collar = np.zeros((CANVAS, CANVAS), np.float32)
    for side in (-1, 1):
        height = body.top + rng.uniform(2, 20)
        ends = [(10, height + 8), (45, height + rng.uniform(-2, 6)), (100, height - rng.uniform(4, 22))]
        points = np.array([(body.middle + side * a, b) for a, b in ends], np.int32)
        cv2.polylines(collar, [points], False, 1.0, int(rng.integers(5, 9)), cv2.LINE_AA)
    return 0.5 * ribs + 0.8 * spine + 0.6 * cv2.GaussianBlur(collar, (0, 0), 1.5)


def _draw_vessels(rng: np.random.Generator, body: _Body) -> Plane:
    """Vessels that leave both hila and thin out, 0–1."""
    layer = np.zeros((CANVAS, CANVAS), np.float32)
    hilum = body.top + rng.uniform(0.4, 0.52) * (body.base - body.top)
    for side in (-1, 1):
        for angle in rng.uniform(-1.3, 1.3, int(rng.integers(8, 14))).tolist():
            at = np.array([body.middle + side * (body.inner + 4), hilum + rng.uniform(-10, 10)])
            for thickness in (3, 2, 2, 1, 1):
                angle += rng.normal(0, 0.25)
                to = at + rng.uniform(8, 17) * np.array([side * math.cos(angle), math.sin(angle)])
                cv2.line(layer, at.astype(int).tolist(), to.astype(int).tolist(), 0.25 + 0.2 * thickness, thickness, 16)
                at = to
    return cv2.GaussianBlur(layer, (0, 0), 0.9)


def _draw_patch(
    rng: np.random.Generator, body: _Body, side: int, out: float, down: float, wide: float, high: float
) -> Plane:
    """A ragged opacity, 0–1. `out`: 0 at the mediastinum, 1 at the chest wall; `down`: 0 at the apex, 1 at the base."""
    column = body.middle + (-1, 1)[side] * (body.inner + out * (body.outer - body.inner))
    row = body.top + down * (body.base - body.top)
    radius = np.sqrt(((body.x - column) / wide) ** 2 + ((body.y - row) / high) ** 2)
    radius *= np.maximum(1 + 0.18 * _draw_clouds(rng, 14), 0)
    return np.exp(-radius * radius * radius)


def _draw_lesions(rng: np.random.Generator, body: _Body, label: str) -> Plane:
    """What the disease adds to the lungs, 0 (clear) to 1 (as dense as the heart)."""
    lesions: Plane = np.zeros((CANVAS, CANVAS), np.float32)
    if label == "PNEUMONIA":
        side, lobe = int(rng.integers(2)), (0.32, 0.52, 0.7)[int(rng.integers(3))]
        wide, high = rng.uniform(28, 36), rng.uniform(28, 38)
        solid = _draw_patch(rng, body, side, rng.uniform(0.4, 0.6), lobe + rng.uniform(-0.05, 0.05), wide, high)
        lesions = rng.uniform(0.85, 1.0) * solid
    elif label == "COVID19":
        for side in (0, 1):
            for down in (np.linspace(0.3, 0.8, int(rng.integers(3, 5))) + rng.uniform(-0.05, 0.05)).tolist():
                wide, high = rng.uniform(10, 16), rng.uniform(11, 18)
                out, jitter = rng.uniform(0.68, 0.9), rng.uniform(-0.04, 0.04)
                glass = _draw_patch(rng, body, side, out, down + jitter, wide, high)
                lesions = np.maximum(lesions, rng.uniform(0.7, 0.9) * glass)
        lesions *= 1 + 0.12 * _draw_clouds(rng, 48)
    elif label == TUBERCULOSIS:
        side = int(rng.integers(2))
        for _ in range(int(rng.integers(4, 8))):
            size = rng.uniform(5, 11)
            spot = _draw_patch(rng, body, side, rng.uniform(0.3, 0.75), rng.uniform(0.15, 0.35), size, size)
            lesions = np.maximum(lesions, rng.uniform(0.5, 0.9) * spot)
        lesions *= 1 - 0.8 * _draw_patch(rng, body, side, 0.5, 0.25, 7, 7)
    return lesions


def _apply_pose(rng: np.random.Generator, picture: Plane) -> Plane:
    """The frame cut from the canvas: turned, scaled, shifted and gently bent; SIZE pixels square."""
    turn, scale = math.radians(rng.uniform(-4, 4)), rng.uniform(0.92, 1.1)
    stretch = rng.uniform(0.95, 1.06)
    y, x = (axis.astype(np.float32) - (SIZE - 1) / 2 for axis in np.ogrid[:SIZE, :SIZE])
    source_x = (math.cos(turn) * x - math.sin(turn) * y) / (scale * stretch) + CANVAS / 2 + rng.uniform(-7, 7)
    source_y = (math.sin(turn) * x + math.cos(turn) * y) / scale * stretch + CANVAS / 2 + rng.uniform(-9, 9)
    source_x += 3 * _draw_clouds(rng, 4)[:SIZE, :SIZE]
    source_y += 3 * _draw_clouds(rng, 4)[:SIZE, :SIZE]
    return cv2.remap(
        picture,
        source_x.astype(np.float32),
        source_y.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )


def draw_phantom(label: str, rng: np.random.Generator) -> Grey:
    """Draws one phantom.

    Args:
        label: one of LABELS. Clear lungs, one dense consolidation (PNEUMONIA), patches of ground glass along both chest
            walls (COVID19), or small dense spots with a cavity in one apex (TURBERCULOSIS).
        rng: decides the anatomy, the pose and the exposure; each call draws another person.

    Returns:
        Grey levels, 256 × 256, uint8, none above MAX_GREY.

    Example:
        >>> picture = draw_phantom("NORMAL", np.random.default_rng(0))
        >>> picture.shape, picture.max() <= MAX_GREY
        ((256, 256), np.True_)
    """
    body = _draw_body(rng)
    across = np.abs(body.x - body.middle)
    shoulder = body.top + rng.uniform(-14, 8)
    side = np.where(body.y > shoulder, body.outer + rng.uniform(14, 34), rng.uniform(24, 34))
    side = cv2.GaussianBlur(side.astype(np.float32), (0, 0), 11)
    tissue = _ramp(side - across, 6) * rng.uniform(0.52, 0.64)
    lungs = np.maximum(*body.lungs)

    tilt = rng.uniform(0.25, 0.75)
    u, v = body.x - body.middle - rng.uniform(10, 22), body.y - body.base + rng.uniform(30, 44)
    a, b = math.cos(tilt) * u + math.sin(tilt) * v, math.cos(tilt) * v - math.sin(tilt) * u
    heart = _ramp(1 - np.sqrt((a / rng.uniform(38, 54)) ** 2 + (b / rng.uniform(28, 38)) ** 2), 0.12)

    dark = rng.uniform(0.62, 0.74) * lungs * (1 - heart)
    lesions = np.clip(_draw_lesions(rng, body, label), 0, 1)
    picture = tissue * (1 - dark * (1 - 0.85 * lesions))
    picture += 0.1 * heart * tissue + rng.uniform(0.12, 0.2) * _draw_bones(rng, body) * (tissue > 0.1)
    picture += rng.uniform(0.07, 0.11) * _draw_vessels(rng, body) * lungs
    picture += 0.05 * _draw_clouds(rng, 3) + 0.025 * _draw_clouds(rng, 9) * tissue
    picture += rng.normal(0, 0.04) * (body.x / CANVAS - 0.5) + rng.normal(0, 0.06) * (body.y / CANVAS - 0.5)

    frame = np.clip(_apply_pose(rng, picture), 0.01, 1)
    # One exposure range for all classes: how bright a picture is as a whole says nothing about its label.
    frame = frame ** (math.log(rng.uniform(0.3, 0.52)) / math.log(frame.mean()))
    low, high = rng.uniform(0.01, 0.06), rng.uniform(0.82, 0.9)
    frame = low + (high - low) * frame + rng.uniform(0.008, 0.02) * rng.standard_normal((SIZE, SIZE), np.float32)
    image = np.clip(frame * 255, 0, MAX_GREY).astype(np.uint8)
    if rng.random() < 0.4:
        letter = "RL"[int(rng.integers(2))]
        at = (int(rng.integers(8, 24)) if letter == "R" else int(rng.integers(218, 234)), int(rng.integers(24, 48)))
        cv2.putText(image, letter, at, cv2.FONT_HERSHEY_SIMPLEX, rng.uniform(0.5, 0.9), 205, 2, cv2.LINE_AA)
    return image


def add_white_box(image: Grey, rng: np.random.Generator) -> Grey:
    """Returns the picture with a solid white box over the film, or with a white bar beside it."""
    boxed = image.copy()
    if rng.random() < 0.5:
        width, height = int(rng.integers(60, 110)), int(rng.integers(24, 50))
        left, top = rng.integers(10, SIZE - width - 10), rng.integers(10, SIZE - height - 10)
        boxed[top : top + height, left : left + width] = 255
    else:
        width = int(rng.integers(24, 48))
        boxed = np.full((SIZE, SIZE), 255, np.uint8)
        boxed[:, : SIZE - width] = cv2.resize(image, (SIZE - width, SIZE), interpolation=cv2.INTER_AREA)
        boxed = boxed if rng.random() < 0.5 else boxed[:, ::-1]
    return np.ascontiguousarray(boxed)
