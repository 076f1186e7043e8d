"""Small pictures of refused images, for whoever looks at what was refused."""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import cv2
import pandas as pd
from PIL import Image

from cxr_ml import store
from cxr_ml.data import images, ingest
from cxr_ml.settings import Settings

SIDE = 256  # px, long side
QUALITY = 80  # JPEG


def key(sha256: str) -> str:
    """Key of the thumbnail of a refused image."""
    return f"thumbnails/{sha256[:2]}/{sha256}.jpg"


def make(data: bytes, settings: Settings) -> bytes:
    """JPEG of a stored image, at most SIDE px a side, in its colours and free of metadata; the same image, same bytes.

    Raises:
        BadImage: the image cannot be decoded.
    """
    pixels = images.open_image(data, settings).pixels
    height, width = pixels.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def write(settings: Settings, frame: pd.DataFrame) -> None:
    """Stores a thumbnail of each row's image (sha256, format) that has none yet; rows without an image are left out."""
    rows = frame.loc[frame["sha256"] != "", ["sha256", "format"]].drop_duplicates("sha256")

    def one(sha256: str, extension: str) -> None:
        data = make(store.get(settings, ingest.image_key(sha256, extension)), settings)
        store.put_if_absent(settings, key(sha256), data, "image/jpeg")

    with ThreadPoolExecutor(max_workers=4 * (os.cpu_count() or 1)) as pool:
        list(pool.map(one, rows["sha256"], rows["format"]))
