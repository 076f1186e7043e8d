"""Explanations in the store. Apart from what makes them, so that a reader need not load a deep-learning framework."""

import hashlib

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.records import Explanation
from cxr_ml.store import ObjectStore


def save(store: ObjectStore, record: Explanation, sheets: dict[str, bytes]) -> None:
    """Writes the contact sheets of a model, then the record, which is the commit mark."""
    for place, label in enumerate(record.sheets):
        key = layout.contact_sheet(record.model, record.dataset, place)
        store.put_uncommitted(key, sheets[label], "image/png")
    store.put_if_absent(layout.explanation(record.model, record.dataset), record.to_bytes(), "application/json")


def load(store: ObjectStore, model: str, dataset: int) -> Explanation | None:
    """Returns where a model looked on the test images of a dataset; None where it was not explained."""
    key = layout.explanation(model, dataset)
    return store.load(key, Explanation) if store.exists(key) else None


def sheets(store: ObjectStore, record: Explanation) -> dict[str, bytes]:
    """Returns label -> contact sheet, a PNG that shows X-rays: for pages of the store, never for a mail.

    Raises:
        Refused: a sheet is gone, or not the one that was recorded.
    """
    pictures = {}
    for place, (label, expected) in enumerate(record.sheets.items()):
        key = layout.contact_sheet(record.model, record.dataset, place)
        pictures[label] = store.get(key)
        digest = hashlib.sha256(pictures[label]).hexdigest()
        if digest != expected:
            raise Refused(
                f"{key} is not the sheet that was recorded: expected SHA-256 {expected}. Received: {digest}. "
                "Somebody changed it; the model's other files may be changed, too."
            )
    return pictures
