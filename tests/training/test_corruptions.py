"""Disguises change how a film was recorded, not what it shows."""

import cv2
import numpy as np
import pytest

from cxr_ml.training import corruptions


def films(n: int = 24, size: int = 128) -> np.ndarray:
    """Smooth shapes with fine grain, like lungs with vessels; uint8 (n, size, size, 1)."""
    rng = np.random.default_rng(3)
    coarse = [cv2.GaussianBlur(rng.uniform(0, 255, (size, size)), (0, 0), size / 10) for _ in range(n)]
    stretched = [(c - c.min()) / (c.max() - c.min()) * 180 + 30 for c in coarse]
    return np.stack([np.clip(s + rng.normal(0, 6, s.shape), 0, 255) for s in stretched])[..., None].astype(np.uint8)


def detail(images: np.ndarray) -> float:
    return float(np.mean([cv2.Laplacian(i[..., 0], cv2.CV_32F).var() for i in images]))


def test_the_same_seed_gives_the_same_disguises_and_another_one_others():
    first, again, other = (corruptions.corrupt_images(films(), np.random.default_rng(s)) for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_disguises_keep_the_shape_and_leave_what_is_shown_where_it_was():
    before = films()
    after = corruptions.corrupt_images(before, np.random.default_rng(0))
    assert after.shape == before.shape and after.dtype == np.uint8
    for film, view in zip(before, after, strict=True):
        assert np.corrcoef(cv2.blur(film, (9, 9)).ravel(), cv2.blur(view, (9, 9)).ravel())[0, 1] > 0.95


def test_some_views_are_softer_and_some_are_crisper_than_the_film():
    before = films()
    after = corruptions.corrupt_images(before, np.random.default_rng(0))
    ratios = [detail(after[i : i + 1]) / detail(before[i : i + 1]) for i in range(len(before))]
    assert min(ratios) < 0.5 and max(ratios) > 2


def test_no_images_have_no_disguises():
    assert corruptions.corrupt_images(films()[:0], np.random.default_rng(0)).shape == (0, 128, 128, 1)


@pytest.mark.parametrize("name", corruptions.FIXED)
def test_a_fixed_disguise_is_always_the_same_and_changes_every_image(name):
    before = films()
    after = corruptions.FIXED[name](before)
    assert after.shape == before.shape and after.dtype == np.uint8
    assert (after == corruptions.FIXED[name](before)).all()
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


def test_sharpening_adds_detail_and_shrinking_takes_it_away():
    before = films()
    assert detail(corruptions.sharpen_images(before)) > 2 * detail(before)
    assert detail(corruptions.shrink_images(before)) < 0.8 * detail(before)
