"""The backbones by name, and what is known of each before Keras is loaded. To add one: a line in ARCHITECTURES.

What a network's `preprocess_input` does to pixels is named there as a factor and an offset, if it is not scaling to
[-1, 1].
"""

import hashlib
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cxr_ml.errors import Refused
from cxr_ml.settings import Settings


class Architecture(NamedTuple):
    """How a backbone is built, whether pretrained weights exist for it, and how they want grey levels 0 to 255."""

    application: str | None  # name in keras.applications; None: `architectures.light`
    pretrained: bool = True
    min_size: int = 32  # pixels a side of the smallest image it takes
    scale: float | list[float] = 1 / 127.5  # factor, or one per channel
    offset: float | list[float] = -1.0  # added afterwards


# Mean and deviation of ImageNet's channels, which networks that came from PyTorch subtract and divide by.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

ARCHITECTURES = {
    "inception_v3": Architecture("InceptionV3", min_size=75),
    "resnet101_v2": Architecture("ResNet101V2"),
    "mobilenet_v2": Architecture("MobileNetV2"),
    "densenet121": Architecture(
        "DenseNet121",
        scale=[1 / (255 * deviation) for deviation in _DEVIATION],
        offset=[-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)],
    ),
    "light": Architecture(None, pretrained=False),
}


def check(settings: Settings) -> None:
    """Makes sure that the architectures of the settings can be built, with the weights and images they ask for.

    Raises:
        Refused: an unknown architecture, images too small for one, or a file of weights that is missing.
    """
    for name in settings.architectures:
        weights_file(settings, name)
        if settings.image_size < (least := ARCHITECTURES[name].min_size):
            raise Refused(
                f"{name} needs images of at least {least} pixels. Received: image_size = {settings.image_size}. "
                "Set CXR_IMAGE_SIZE, or choose another architecture."
            )


def weights_file(settings: Settings, architecture: str) -> tuple[Path, str] | None:
    """The file that a backbone's first weights are read from, and its SHA-256; None where they come from no file.

    Raises:
        Refused: unknown architecture, or the folder that the settings name does not hold the file.
    """
    if architecture not in ARCHITECTURES:
        near = get_close_matches(architecture, ARCHITECTURES, 1)
        raise Refused(
            f"The architecture must be one of {sorted(ARCHITECTURES)}. Received: {architecture!r}"
            + (f". Was {near[0]} meant?" if near else "")
        )
    if not ARCHITECTURES[architecture].pretrained or settings.weights == "none" or settings.weights_dir is None:
        return None
    path = settings.weights_dir / f"{architecture}_notop.weights.h5"
    if not path.is_file():
        there = sorted(p.name for p in settings.weights_dir.glob("*.h5"))
        raise Refused(f"CXR_WEIGHTS_DIR must hold {path.name}. Received: {settings.weights_dir}, there: {there}")
    now = path.stat()
    return path, _sha256(path, now.st_mtime_ns, now.st_size)


@lru_cache
def _sha256(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
