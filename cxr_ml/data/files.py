"""What is done with one file, in a process of its own: read it, measure it, store it. No table is needed for that."""

from pathlib import Path
from typing import Any

from cxr_ml import store
from cxr_ml.data import drops, images, room
from cxr_ml.data.containers import look
from cxr_ml.settings import Settings

_LOOKS = 8  # images in a row that were not in the store, after which it is no longer asked before it is written to
_missed = 0
CRASHED = {"unread": ["crashes_decoder"]}  # what is said of a file that crashes the process it is measured in


def image_key(sha256: str, extension: str) -> str:
    """Key of an image in the store."""
    return f"images/{sha256[:2]}/{sha256}.{extension}"


def copy(settings: Settings, entry: drops.Entry) -> dict[str, Any]:
    """Puts one file of a drop into the store, free of metadata.

    Returns:
        What `images.measure` says of it, or, with the codes of what is wrong with it under `unread`, its `bytes`.

    Raises:
        Refused: the file is not as it was listed, or must not be read.
    """
    if code := _unfit(settings, entry):
        return {"bytes": max(0, entry.size), "unread": [code]}
    with room.for_file(entry.size):
        try:
            measured, clean = _measured(settings, drops.read(settings, entry))
        except images.BadImage as error:
            return {"bytes": entry.size, "unread": [error.code]}
        _put(settings, image_key(measured["sha256"], measured["format"]), clean, f"image/{measured['format']}")
    return measured


def measure(settings: Settings, entry: drops.Entry) -> dict[str, Any]:
    """What `copy` returns, of a local file, without a store; `not_readable` where the file cannot be read."""
    if code := _unfit(settings, entry):
        return {"bytes": max(0, entry.size), "unread": [code]}
    with room.for_file(entry.size):
        try:
            return _measured(settings, Path(entry.path).read_bytes())[0]
        except images.BadImage as error:
            return {"bytes": entry.size, "unread": [error.code]}
        except OSError:
            return {"bytes": entry.size, "unread": ["not_readable"]}


def _unfit(settings: Settings, entry: drops.Entry) -> str:
    if entry.size < 0:
        return "symlink"
    return "too_large" if entry.size > settings.max_file_bytes else ""


def _measured(settings: Settings, data: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        header = look(data)
        pixels = header.width * header.height
    except images.BadImage:
        pixels = 0  # `images.measure` says the same, before it decodes
    if pixels > settings.max_pixels:
        pixels = 0  # likewise
    with room.for_pixels(pixels):
        return images.measure(data, settings)


def _put(settings: Settings, key: str, data: bytes, content_type: str) -> None:
    # To write what is there costs an upload for nothing, to ask for what is not there a request for nothing. A shard
    # that was interrupted begins with images that are there; a new one has few. So what came last tells what to do.
    global _missed
    if _missed < _LOOKS:
        if store.exists(settings, key):
            _missed = 0
            return
        _missed += 1
    if not store.put_if_absent(settings, key, data, content_type):
        _missed = 0
