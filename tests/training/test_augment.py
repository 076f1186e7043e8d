"""Augmentation: the study's ranges, all used and none exceeded; the same seed, the same views."""

import cv2
import numpy as np
import pytest
from keras.src.legacy.preprocessing.image import ImageDataGenerator

from cxr_ml.training import augment
from cxr_ml.training.augment import augment_images

SIZE = 100
STILL = {"ROTATION": 0.0, "SHEAR": 0.0, "SHIFT": 0.0, "ZOOM": (1.0, 1.0), "BRIGHTNESS": (1.0, 1.0)}
CENTRE = (SIZE - 1) / 2


@pytest.fixture
def only(monkeypatch):
    """Switches every change off but the named ones; the flip stays."""

    def switch(*names: str) -> None:
        for name, value in STILL.items():
            if name not in names:
                monkeypatch.setattr(augment, name, value)

    return switch


def dots(*places: tuple[int, int], n: int = 400) -> np.ndarray:
    """N times a black image with soft white dots, 9 px wide, at the (x, y) places."""
    image = np.zeros((SIZE, SIZE), np.uint8)
    for place in places:
        cv2.circle(image, place, 4, 255, -1)
    return np.repeat(cv2.GaussianBlur(image, (3, 3), 0)[None, ..., None], n, axis=0)


def centres(views: np.ndarray) -> np.ndarray:
    """Centre of brightness of each view, float (n, 2) as x, y."""
    weight = views[..., 0].astype(float)
    total = weight.sum(axis=(1, 2))
    grid = np.arange(SIZE)
    return np.stack([(weight.sum(axis=1) @ grid) / total, (weight.sum(axis=2) @ grid) / total], axis=1)


def grey(level: int, n: int = 400) -> np.ndarray:
    return np.full((n, SIZE, SIZE, 1), level, np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def reference() -> ImageDataGenerator:
    """What the study used, with its ranges."""
    return ImageDataGenerator(
        rotation_range=5, shear_range=5, width_shift_range=0.15, height_shift_range=0.15, zoom_range=0.1,
        brightness_range=(0.8, 1.2), horizontal_flip=True, fill_mode="constant", cval=0,
    )  # fmt: skip


def drawn_by(reference: ImageDataGenerator, n: int) -> list[dict[str, float]]:
    np.random.seed(3)
    return [reference.get_random_transform((SIZE, SIZE, 1)) for _ in range(n)]


def as_changes(drawn: list[dict[str, float]]) -> augment.Transforms:
    def column(*names: str) -> np.ndarray:
        return np.array([[one[name] for name in names] for one in drawn], float)

    return augment.Transforms(
        column("theta")[:, 0], column("shear")[:, 0], column("tx", "ty"), column("zx", "zy"),
        column("flip_horizontal")[:, 0] > 0, column("brightness")[:, 0],
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Please import `affine_transform`")
def test_the_same_parameters_give_the_pixels_that_keras_gives(reference):
    drawn = drawn_by(reference, 60)
    coarse = rng(2).integers(0, 256, (60, 25, 25), dtype=np.uint8)
    images = np.stack([cv2.resize(c, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)[..., None] for c in coarse])
    theirs = np.stack([reference.apply_transform(x.astype(np.float32), d) for x, d in zip(images, drawn, strict=True)])
    apart = abs(augment.apply_transforms(images, as_changes(drawn)).astype(float) - theirs)
    # Keras rounds down after each of two steps: half a grey level on average, two at most.
    inner = apart[:, 25:75, 25:75]
    assert inner.max() <= 2 and inner.mean() < 0.6
    # Only along the film's edge, one pixel wide, is the difference larger.
    assert (apart > 2).mean(axis=(1, 2, 3)).max() < 0.04


def test_parameters_are_distributed_as_those_that_keras_draws(reference):
    theirs, ours = as_changes(drawn_by(reference, 4000)), augment.draw_transforms(4000, SIZE, rng())
    for name, one, other in zip(augment.Transforms._fields, ours, theirs, strict=True):
        assert one.shape == other.shape, name
        one, other = one.reshape(4000, -1).astype(float), other.reshape(4000, -1).astype(float)
        width = np.ptp(other, axis=0)
        for moment in (np.mean, np.std, np.min, np.max):
            np.testing.assert_allclose(moment(one, axis=0) / width, moment(other, axis=0) / width, atol=0.03)
        if one.shape[1] == 2:
            assert abs(np.corrcoef(one.T)[0, 1]) < 0.06, f"{name}: the axes are independent"


def test_the_ranges_are_those_of_the_study():
    assert (augment.ROTATION, augment.SHEAR, augment.SHIFT) == (5.0, 5.0, 0.15)
    assert (augment.ZOOM, augment.BRIGHTNESS) == ((0.9, 1.1), (0.8, 1.2))


@pytest.mark.parametrize("n", [0, 1, 5])
def test_views_have_the_shape_and_type_of_the_images(n):
    images = rng().integers(0, 256, (n, 32, 32, 1), dtype=np.uint8)
    before = images.copy()
    views = augment_images(images, rng())
    assert views.shape == images.shape and views.dtype == np.uint8
    np.testing.assert_array_equal(images, before)


def test_the_same_seed_gives_the_same_views_and_another_seed_others():
    images = rng(1).integers(0, 256, (6, 48, 48, 1), dtype=np.uint8)
    np.testing.assert_array_equal(augment_images(images, rng(5)), augment_images(images, rng(5)))
    assert (augment_images(images, rng(5)) != augment_images(images, rng(6))).any()


def test_each_image_gets_a_view_of_its_own():
    views = augment_images(dots((30, 30), n=20), rng())
    assert len({view.tobytes() for view in views}) == 20


def test_a_frozen_memory_map_of_images_can_be_read(tmp_path):
    np.save(tmp_path / "images.npy", dots((30, 30), n=3))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    np.testing.assert_array_equal(augment_images(images, rng()), augment_images(np.array(images), rng()))


def test_with_everything_off_half_are_the_image_itself_and_half_its_mirror_image(only):
    only()
    images = dots((30, 40), (60, 20))
    views = augment_images(images, rng())
    same = (views == images).all(axis=(1, 2, 3))
    mirrored = (views == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 0.4 < same.mean() < 0.6


def test_shifts_reach_15_percent_each_way_and_no_further(only):
    only("SHIFT")
    moved = centres(augment_images(dots((50, 50)), rng())) - CENTRE
    assert abs(moved).max() <= 15.6, "15 px, and the half pixel by which the dot is off the centre"
    assert (moved.max(axis=0) > 13).all() and (moved.min(axis=0) < -13).all()
    assert abs(moved.mean(axis=0)).max() < 1.5


def test_rotations_reach_5_degrees_both_ways_about_the_centre_and_no_further(only):
    only("ROTATION")
    bar = dots(*((x, y) for x in range(10, 91, 5) for y in (49, 50)))
    angles = []
    for view in augment_images(bar, rng())[..., 0].astype(float):
        ys, xs = np.nonzero(view > 60)
        slope = np.polyfit(xs, ys, 1, w=view[ys, xs])[0]
        angles.append(np.rad2deg(np.arctan(slope)))
        assert abs(ys.mean() - CENTRE) < 1.5
    assert 4.5 < max(angles) < 5.3 and -5.3 < min(angles) < -4.5


def test_shear_leans_what_stands_upright_by_up_to_5_degrees_and_nothing_else(only):
    only("SHEAR")
    upright = dots(*((x, y) for y in range(10, 91, 5) for x in (49, 50)))
    lying = dots(*((x, y) for x in range(10, 91, 5) for y in (49, 50)))
    leans = []
    for view in augment_images(upright, rng())[..., 0].astype(float):
        ys, xs = np.nonzero(view > 60)
        leans.append(np.rad2deg(np.arctan(np.polyfit(ys, xs, 1, w=view[ys, xs])[0])))
    assert 4.3 < max(leans) < 5.3 and -5.3 < min(leans) < -4.3
    assert np.ptp(centres(augment_images(lying, rng()))[:, 1]) < 0.3


@pytest.mark.parametrize("axis", [0, 1])
def test_the_film_is_drawn_out_or_in_along_each_axis_by_what_keras_calls_a_zoom_of_110_to_90_percent(only, axis):
    only("ZOOM")
    apart = (40, 0) if axis == 0 else (0, 40)
    low, high = (50 - apart[0], 50 - apart[1]), (50 + apart[0], 50 + apart[1])
    one, other = augment_images(dots(low), rng(3)), augment_images(dots(high), rng(3))
    spans = abs(centres(one) - centres(other))[:, axis] / 80
    # 1 / 1.1 to 1 / 0.9; where it pushes a dot's rim out of the frame its centre is drawn in a little.
    assert 0.905 < spans.min() < 0.92 and 1.08 < spans.max() < 1.12
    assert 0.98 < spans.mean() < 1.03


def test_the_two_axes_are_zoomed_independently(only):
    only("ZOOM")
    spans = []
    for axis in (0, 1):
        place = (80, 50) if axis == 0 else (50, 80)
        spans.append(abs(centres(augment_images(dots(place), rng(3)))[:, axis] - CENTRE))
    assert abs(np.corrcoef(spans)[0, 1]) < 0.2


def test_brightness_is_scaled_by_80_to_120_percent(only):
    only("BRIGHTNESS")
    levels = augment_images(grey(100), rng())[:, 50, 50, 0] / 100
    assert 0.8 <= levels.min() < 0.81 and 1.19 <= levels.max() <= 1.2
    assert abs(levels.mean() - 1) < 0.02


def test_what_becomes_brighter_than_white_is_white_and_never_wraps_round(only):
    only("BRIGHTNESS")
    levels = augment_images(grey(250), rng())[:, 50, 50, 0]
    assert levels.min() >= 200 and levels.max() == 255


def test_what_lies_outside_the_film_is_black():
    views = augment_images(grey(200), rng())
    border = np.concatenate([views[:, 0, :, 0].ravel(), views[:, -1, :, 0].ravel()])
    assert (border == 0).mean() > 0.2, "shifted films leave a margin"
    # A margin is black, the film at least 0.8 × 200: only the line between them is mixed.
    mixed = (views > 0) & (views < 159)
    assert mixed.mean() < 0.03
    assert (views[:, 50, 50, 0] >= 159).all()


def test_all_changes_together_stay_within_what_they_may_do_together():
    moved = abs(centres(augment_images(dots((50, 50)), rng())) - CENTRE)
    # 15 px and what rotation brings over from the other axis, drawn out by 1 / 0.9; half a pixel off the centre.
    assert 14 < moved.max() < (15 + 15 * np.sin(np.deg2rad(5))) / 0.9 + 0.7
