"""Ingests one file, in a process of its own: reads it, measures it, stores it. Light to import: no tables."""

from contextlib import ExitStack
from threading import Semaphore
from typing import Any

import numpy as np

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.imaging import decode, formats, measure
from cxr_ml.ingest import deidentify, memory_budget
from cxr_ml.ingest.drop_files import read_file
from cxr_ml.ingest.drop_index import Entry
from cxr_ml.settings import ImageSettings, Settings
from cxr_ml.store import ObjectStore

_MAX_MISSES = 8  # images in a row that the store did not have, after which it is written to without asking
_misses = 0
_asking = Semaphore(_MAX_MISSES)  # so that a few answers serve all threads
CRASHED = {"unread": ["crashes_decoder"]}  # result of a file that crashes the process it is measured in

Job = tuple[Entry, dict[str, Any]]  # a file, and its row of `labels.read_labels`


def image_key(sha256: str, format: str) -> str:
    """Returns the key of an image in the store; `format` as measured: png, jpeg or dicom."""
    return layout.image(sha256, formats.stored_format(format))


def load_grey(store: ObjectStore, sha256: str, format: str) -> np.ndarray:
    """Loads a stored image and decodes it with `decode.decode_grey`.

    Raises:
        Refused: the store has no such image.
    """
    return decode.decode_grey(store.get(image_key(sha256, format)))


def ingest_file(store: ObjectStore, settings: Settings, job: Job) -> dict[str, Any]:
    """Measures one file of a drop and puts it into the store, without metadata.

    Args:
        store: the object store.
        settings: the limits, and where the store is.
        job: the file and its labels.

    Returns:
        The row, completed by the file's header (the patient replaced by a hash) and by its measurements or, if it
        cannot be read, by its `bytes` and the reason under `unread`.

    Raises:
        Refused: the file is not as it was listed, or names a patient where no salt is set.
    """
    entry, row = job
    with memory_budget.reserve_for_file(_bytes_in_memory(settings.images, entry)), ExitStack() as sending:
        try:
            data = read_file(store, settings.images, entry)
            row = deidentify.apply_header(settings.inbox, row, data)
            measurements, clean = _measure(settings.images, data, sending)
        except formats.BadImage as error:
            return row | {"bytes": max(0, entry.size), "unread": [error.code]}
        key = image_key(measurements["sha256"], measurements["format"])
        _put_image(store, key, clean, f"image/{formats.stored_format(measurements['format'])}")
    return row | measurements


def measure_file(store: ObjectStore, settings: ImageSettings, entry: Entry) -> dict[str, Any]:
    """Measures a file as `ingest_file` does, without storing it."""
    with memory_budget.reserve_for_file(_bytes_in_memory(settings, entry)):
        try:
            return {**_measure(settings, read_file(store, settings, entry)).measurements}
        except formats.BadImage as error:
            code = error.code
        except (Refused, OSError):  # it changed meanwhile, or its disk is broken
            code = "unreadable"
        return {"bytes": max(0, entry.size), "unread": [code]}


def _bytes_in_memory(settings: ImageSettings, entry: Entry) -> int:
    """Bytes of a file that will be in memory; none of one that is refused by its size or kind."""
    return max(0, entry.size) if entry.size <= settings.max_file_bytes else 0


def _measure(settings: ImageSettings, data: bytes, sending: ExitStack | None = None) -> measure.MeasuredImage:
    pixels = count_pixels(data)
    # A picture that is too large is refused by its header, before it is decoded.
    with memory_budget.reserve_for_pixels(pixels if pixels <= settings.max_pixels else 0):
        measured = measure.measure_image(data, settings)
        if sending:
            # Before the next picture is decoded, or files that wait to be sent would pile up; DICOM grows when stored.
            sending.enter_context(memory_budget.reserve_for_sending(len(measured.clean)))
        return measured


def count_pixels(data: bytes) -> int:
    """Returns the pixels of the picture in a file, by its header; 0 where it has none."""
    if formats.is_dicom(data):
        from cxr_ml.imaging import dicom  # pydicom takes 0.2 s to import

        return dicom.count_pixels(data)
    try:
        header = formats.read_header(data)
    except formats.BadImage:
        return 0  # `measure.measure_image` refuses it too, before it decodes
    return header.width * header.height


def _put_image(store: ObjectStore, key: str, data: bytes, content_type: str) -> None:
    # Writing an existing image wastes an upload, asking for a new one wastes a request. An interrupted shard begins
    # with existing images, a new shard has few of them; so the last answers decide whether to ask.
    global _misses
    with _asking:
        if _misses < _MAX_MISSES:
            if store.exists(key):
                _misses = 0
                return
            _misses += 1
    if not store.put_if_absent(key, data, content_type):
        _misses = 0
