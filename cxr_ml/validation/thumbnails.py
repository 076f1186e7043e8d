"""Small pictures of refused images, for whoever looks at what was refused."""

import io
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import cv2
import pandas as pd
from PIL import Image

from cxr_ml import layout
from cxr_ml.imaging import decode
from cxr_ml.ingest import memory_budget, process_file, tables
from cxr_ml.settings import ImageSettings
from cxr_ml.store import ObjectStore

SIDE = 256  # px, long side
QUALITY = 80  # JPEG


def make(data: bytes, settings: ImageSettings) -> bytes:
    """JPEG of a stored image, at most SIDE px a side, in its colours and free of metadata; the same image, same bytes.

    Raises:
        BadImage: the image cannot be decoded.
    """
    opened = decode.decode_image(data, settings, 2 * SIDE)  # never smaller than SIDE, if the image is not
    pixels = opened.pixels
    scale = min(1.0, SIDE / max(opened.height, opened.width))
    size = max(1, round(opened.width * scale)), max(1, round(opened.height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def write(store: ObjectStore, settings: ImageSettings, frame: pd.DataFrame) -> None:
    """Stores a thumbnail of each row's image and of the one that it repeats or contradicts, which have none yet.

    Args:
        store: the object store.
        settings: those of [images].
        frame: sha256, format, duplicate_of; "" where there is no image.
    """
    rows = frame.loc[frame["sha256"] != ""]
    wanted = {s: process_file.image_key(s, f) for s, f in zip(rows["sha256"], rows["format"], strict=True)}
    wanted |= dict.fromkeys(set(frame["duplicate_of"]) - {"", *wanted}, "")

    def one(sha256: str, image: str) -> None:
        if not image:  # of another batch, perhaps, and its format is not known here
            if store.exists(layout.thumbnail(sha256)):
                return
            image = next(store.keys(process_file.image_key(sha256, "").removesuffix(".")))
        data = store.get(image)
        if process_file.count_pixels(data) > memory_budget.LARGE_PIXELS:
            with one_at_a_time:
                small = make(data, settings)
                tables.release_memory()
        else:
            small = make(data, settings)
        store.put_if_absent(layout.thumbnail(sha256), small, "image/jpeg")

    tables.release_memory()
    one_at_a_time = Lock()
    with ThreadPoolExecutor(memory_budget.count_workers()) as pool:  # each holds a file of up to max_file_bytes
        list(pool.map(one, wanted, wanted.values()))
