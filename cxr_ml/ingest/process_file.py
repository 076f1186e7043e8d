"""What is done with one file, in a process of its own: read it, measure it, store it. No table is needed for that."""

from contextlib import ExitStack
from threading import Semaphore
from typing import Any

import numpy as np

from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.imaging import decode, formats, measure
from cxr_ml.imaging.formats import is_dicom, read_header, stored_format
from cxr_ml.ingest import deidentify, inbox, memory_budget
from cxr_ml.settings import Settings

_LOOKS = 8  # images in a row that were not in the store, after which it is no longer asked before it is written to
_missed = 0
_looking = Semaphore(_LOOKS)  # so that a few answers tell all threads
CRASHED = {"unread": ["crashes_decoder"]}  # what is said of a file that crashes the process it is measured in


def image_key(sha256: str, format: str) -> str:
    """Key of an image in the store; `format` as measured: png, jpeg or dicom."""
    return f"images/{sha256[:2]}/{sha256}.{stored_format(format)}"


def stored_grey(settings: Settings, sha256: str, format: str) -> np.ndarray:
    """Grey picture of a stored image, as `decode.decode_grey` gives it.

    Raises:
        Refused: the store has no such image.
    """
    return decode.decode_grey(store.get(settings, image_key(sha256, format)))


def copy(settings: Settings, job: tuple[inbox.Entry, dict[str, Any]]) -> dict[str, Any]:
    """Puts one file of a drop into the store, free of metadata.

    Args:
        settings: the limits, and where the store is.
        job: the file, and what the drop says of it, a row of `labels.read_labels`.

    Returns:
        The row with what the file's header says of the patient, replaced by a hash, and with what
        `measure.measure_image` says of it, or, with the codes of what is wrong with it under `unread`, its `bytes`.

    Raises:
        Refused: the file is not as it was listed, or names a patient where no salt is set.
    """
    entry, row = job
    with memory_budget.for_file(_held(settings, entry)), ExitStack() as sending:
        try:
            data = inbox.read(settings, entry)
            row = deidentify.from_header(settings, row, data)
            measured, clean = _measured(settings, data, sending)
        except formats.BadImage as error:
            return row | {"bytes": max(0, entry.size), "unread": [error.code]}
        kind = stored_format(measured["format"])
        _put(settings, image_key(measured["sha256"], measured["format"]), clean, f"image/{kind}")
    return row | measured


def measure_file(settings: Settings, entry: inbox.Entry) -> dict[str, Any]:
    """What `copy` finds in a file, which is put nowhere."""
    with memory_budget.for_file(_held(settings, entry)):
        try:
            return _measured(settings, inbox.read(settings, entry))[0]
        except formats.BadImage as error:
            code = error.code
        except (Refused, OSError):  # it changes at this moment, or its disk is broken
            code = "unreadable"
        return {"bytes": max(0, entry.size), "unread": [code]}


def _held(settings: Settings, entry: inbox.Entry) -> int:
    """Bytes of a file that will be in memory: of one that is refused by its size or kind, none."""
    return max(0, entry.size) if entry.size <= settings.max_file_bytes else 0


def _measured(settings: Settings, data: bytes, sending: ExitStack | None = None) -> tuple[dict[str, Any], bytes]:
    count = pixels(data)
    # What is too large is refused by its header, before it is decoded.
    with memory_budget.for_pixels(count if count <= settings.max_pixels else 0):
        found = measure.measure_image(data, settings)
        if sending:
            # Before the next picture is decoded: what waits to be sent, of a DICOM far more than was read, piles up.
            sending.enter_context(memory_budget.for_sending(len(found[1])))
        return found


def pixels(data: bytes) -> int:
    """Pixels of the picture in a file, by its header; 0 where it has none."""
    if is_dicom(data):
        from cxr_ml.imaging import dicom  # pydicom takes 0.2 s to import

        return dicom.pixels(data)
    try:
        header = read_header(data)
    except formats.BadImage:
        return 0  # `measure.measure_image` says the same, before it decodes
    return header.width * header.height


def _put(settings: Settings, key: str, data: bytes, content_type: str) -> None:
    # To write what is there costs an upload for nothing, to ask for what is not there a request for nothing. A shard
    # that was interrupted begins with images that are there; a new one has few. So what came last tells what to do.
    global _missed
    with _looking:
        if _missed < _LOOKS:
            if store.exists(settings, key):
                _missed = 0
                return
            _missed += 1
    if not store.put_if_absent(settings, key, data, content_type):
        _missed = 0
