"""The table of backbones, and where their weights are. It needs no Keras.

To add a backbone of keras.applications, add an entry to ARCHITECTURES: the form, the settings and the training read
it. If the `preprocess_input` of the network does not scale pixels to [-1, 1], the entry gives its factor and offset.
"""

import hashlib
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cxr_ml.errors import Refused
from cxr_ml.settings import TrainingSettings


class Architecture(NamedTuple):
    """How a backbone is built, and how its pretrained weights expect grey levels of 0 to 255 to be scaled."""

    application: str | None  # name in keras.applications; None: `architectures.build_light`
    pretrained: bool = True
    min_size: int = 32  # pixels a side of the smallest image it takes
    scale: float | list[float] = 1 / 127.5  # factor, or one per channel
    offset: float | list[float] = -1.0  # added afterwards


class WeightsFile(NamedTuple):
    """A file of pretrained weights."""

    path: Path
    sha256: str


# ImageNet's mean and standard deviation by channel: networks that came from PyTorch subtract and divide by them.
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


def check(settings: TrainingSettings, weights_dir: Path | None) -> None:
    """Checks that the architectures of the settings can be built for their image size, with their weights.

    Raises:
        Refused: an unknown architecture, images too small for one, or a file of weights that is missing.
    """
    for name in settings.architectures:
        find_weights(settings, weights_dir, name)
        if settings.image_size < (min_size := ARCHITECTURES[name].min_size):
            raise Refused(
                f"{name} needs images of at least {min_size} pixels. Received: image_size = {settings.image_size}. "
                "Set CXR_TRAINING__IMAGE_SIZE, or choose another architecture."
            )


def find_weights(settings: TrainingSettings, weights_dir: Path | None, architecture: str) -> WeightsFile | None:
    """Returns the file of a backbone's first weights; None where they come from no file.

    Raises:
        Refused: unknown architecture, or the folder that the settings name does not hold the file.
    """
    if architecture not in ARCHITECTURES:
        close = get_close_matches(architecture, ARCHITECTURES, 1)
        raise Refused(
            f"The architecture must be one of {sorted(ARCHITECTURES)}. Received: {architecture!r}"
            + (f". Was {close[0]} meant?" if close else "")
        )
    if not ARCHITECTURES[architecture].pretrained or settings.weights == "none" or weights_dir is None:
        return None
    path = weights_dir / f"{architecture}_notop.weights.h5"
    if not path.is_file():
        files = sorted(p.name for p in weights_dir.glob("*.h5"))
        raise Refused(f"CXR_WEIGHTS_DIR must hold {path.name}. Received: {weights_dir}, there: {files}")
    stat = path.stat()
    return WeightsFile(path, _hash_file(path, stat.st_mtime_ns, stat.st_size))


@lru_cache
def _hash_file(path: Path, modified_ns: int, size: int) -> str:  # a file that changed is hashed again
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
