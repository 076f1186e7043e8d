"""Writes a seeded synthetic drop with the shape, the classes and the defects of published ones."""

import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from cxr_ml.errors import Refused
from cxr_ml.imaging import phantoms
from cxr_ml.imaging.decode import decode_grey

MIN_PER_CLASS = 4  # images per class that still leave every defect an original to be made from


def _encode(image: np.ndarray, suffix: str, quality: int = 95) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    return cv2.imencode(suffix, image, options)[1].tobytes()


def _image_file(seed: int, label: str, number: int) -> tuple[str, bytes]:
    """Suffix and bytes of one image; they depend on nothing but the arguments."""
    rng = np.random.default_rng([seed, phantoms.LABELS.index(label), number])
    image = phantoms.draw_phantom(label, rng)
    if label == phantoms.TUBERCULOSIS and number % 2:
        image = phantoms.add_white_box(image, rng)
    suffix = ".jpeg" if rng.random() < 0.5 else ".png"
    return suffix, _encode(image, suffix)


class _DropWriter:
    """Writes images into class folders, named by a running number."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def write(self, split: str, label: str, suffix: str, data: bytes) -> None:
        self.count += 1
        path = self.folder / split / label / f"phantom-{self.count:05d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _write_images(writer: _DropWriter, seed: int, images_per_class: int, shuffle_labels: bool) -> None:
    test_images = -(-3 * images_per_class // 10)
    for split, numbers in (("test", range(test_images)), ("train", range(test_images, images_per_class))):
        folders = [label for label in phantoms.TRAINED for _ in numbers]
        if shuffle_labels:
            folders = np.random.default_rng([seed, len(numbers)]).permutation(folders).tolist()
        folders += [phantoms.TUBERCULOSIS for _ in numbers]
        images = [(label, number) for label in phantoms.LABELS for number in numbers]
        # NumPy and OpenCV release the interpreter's lock; more threads than cores take 40 % longer.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            files = pool.map(lambda image: _image_file(seed, *image), images)
            for folder, (suffix, data) in zip(folders, files, strict=True):
                writer.write(split, folder, suffix, data)


def _write_defects(writer: _DropWriter, seed: int) -> None:
    rngs = [np.random.default_rng([seed, len(phantoms.LABELS), number]) for number in range(3)]
    extra = [phantoms.draw_phantom("NORMAL", rng) for rng in rngs]
    jpeg = _encode(extra[0], ".jpeg")
    writer.write("train", "NORMAL", ".jpeg", jpeg[: len(jpeg) * 6 // 10])
    writer.write("train", "COVID19", ".png", b"<html><body>404: the image is no longer here</body></html>\n")
    thumbnail = cv2.resize(extra[1], (64, 64), interpolation=cv2.INTER_AREA)
    writer.write("train", "PNEUMONIA", ".png", _encode(thumbnail, ".png"))
    originals = sorted((writer.folder / "train" / "NORMAL").glob("phantom-*"))
    writer.write("train", "NORMAL", originals[0].suffix, originals[0].read_bytes())
    resized = cv2.resize(decode_grey(originals[1].read_bytes()), (320, 320))
    writer.write("train", "NORMAL", ".jpeg", _encode(resized, ".jpeg", quality=80))
    for label in ("NORMAL", "PNEUMONIA"):
        writer.write("train", label, ".png", _encode(extra[2], ".png"))


def write_drop(folder: Path, seed: int, images_per_class: int = 300, shuffle_labels: bool = False) -> dict[str, int]:
    """Writes a drop of phantoms: PNG and JPEG files in class folders below train/ (70 %) and test/ (30 %).

    Beside `images_per_class` images of each of `phantoms.LABELS` there are seven defective files, all below train/: a
    truncated JPEG, a web page named .png, a 64 × 64 thumbnail, an exact copy, a resized and re-encoded copy, and one
    image under both NORMAL and PNEUMONIA. Every second TURBERCULOSIS image has a solid white box over or beside the
    film.

    Args:
        folder: where the drop appears, whole or not at all.
        seed: the same seed writes the same bytes.
        images_per_class: at least MIN_PER_CLASS.
        shuffle_labels: the same images, but NORMAL, COVID19 and PNEUMONIA dealt to the three folders at random, within
            each split: a spoiled drop, from which nothing can be learnt.

    Returns:
        Images per class folder, and "defects": the defective files.

    Raises:
        Refused: the folder holds something already, or a number is out of range.
    """
    if images_per_class < MIN_PER_CLASS:
        raise Refused(f"images_per_class must be at least {MIN_PER_CLASS}. Received: {images_per_class}")
    if seed < 0:
        raise Refused(f"The seed must not be negative. Received: {seed}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"A drop is never overwritten: name a folder that is new or empty. Received: {str(folder)!r}")
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir(parents=True)
    try:
        writer = _DropWriter(partial)
        _write_images(writer, seed, images_per_class, shuffle_labels)
        images = writer.count
        _write_defects(writer, seed)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return dict.fromkeys(phantoms.LABELS, images_per_class) | {"defects": writer.count - images}
