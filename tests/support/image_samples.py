"""Small pictures in files of every kind, and what is expected of bad ones."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cxr_ml.imaging import formats, measure
from cxr_ml.settings import Settings

SETTINGS = Settings()


def film(height=200, width=160, seed=0):
    """A smooth grey picture with some grain, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    wave = sum(
        rng.uniform(10, 25) * np.cos(2 * np.pi * (a * x + b * y) + rng.uniform(0, 6))
        for a, b in rng.uniform(0, 4, (6, 2))
    )
    return np.clip(120 + wave + rng.normal(0, 3, (height, width)), 5, 235).astype(np.uint8)


def encoded(picture, format="PNG", **options):
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind, payload):
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(width, height, bits=8, colour=0, data=b""):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def refused(data, settings=SETTINGS):
    with pytest.raises(formats.BadImage) as caught:
        measure.measure_image(data, settings.images)
    assert "Received: " in str(caught.value)
    return caught.value.code


JPEG = encoded(film(), "JPEG", quality=90)


PNG = encoded(film())
LARGE_JPEGS = {
    f"{mode}{' progressive' if progressive else ''}": encoded(
        Image.fromarray(film(1700, 1300)).convert(mode), "JPEG", quality=85, progressive=progressive
    )
    for mode in ("L", "RGB")
    for progressive in (False, True)
}
