"""Writes films with Grad-CAM over them into a folder: never outside it, never over what is there."""

import io
import re
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from cxr_ml.errors import Refused
from cxr_ml.evaluation import gradcam


def write(folder: Path, file: str, film: np.ndarray, heat: np.ndarray) -> str:
    """Draws the heat over a film and writes it as a PNG.

    Args:
        folder: made where it does not exist.
        file: path of the image, of whose name letters, digits, '.', '_' and '-' are kept; "" for one without.
        film: uint8 (height, width).
        heat: float (h, w), 0 to 1.

    Returns:
        Path of the PNG: `<name>.png`, or `<name>-2.png` and so on where another picture has that name already.

    Raises:
        Refused: the folder cannot be written to.
    """
    buffer = io.BytesIO()
    Image.fromarray(gradcam.overlay(film, heat)).save(buffer, "PNG")
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", PurePath(file).stem).strip("._-")[:100] or "image"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        while True:
            number += 1
            path = folder / (f"{name}.png" if number == 1 else f"{name}-{number}.png")
            try:
                with path.open("xb") as out:  # never through a link, and never over a file
                    out.write(buffer.getvalue())
            except FileExistsError:
                if not path.is_file() or path.read_bytes() != buffer.getvalue():
                    continue
            return str(path)
    except OSError as error:
        raise Refused(f"A folder that can be written to was expected. Received: {folder}: {error}") from None
