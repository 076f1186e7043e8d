"""Examples of refused files, by reason. They show X-rays: on pages of the store, never in a mail."""

from collections.abc import Sequence
from typing import NamedTuple

from cxr_ml import layout
from cxr_ml.records import Batch
from cxr_ml.settings import ValidationSettings
from cxr_ml.store import ObjectStore
from cxr_ml.validation import committed_batches, reasons

MAX_REASONS = 8  # of a run that are shown with examples, the most frequent
MAX_EXAMPLES = 4  # of a reason


class Example(NamedTuple):
    """A refused file."""

    file: str  # path in the drop
    label: str  # "" where it is not known
    thumbnail: bytes  # JPEG; b"" where the file is no image


class Refusal(NamedTuple):
    """A reason with some of the files that were refused for it."""

    code: str
    meaning: str  # of the first example, in plain words
    files: int
    examples: list[Example]


def find_examples(store: ObjectStore, settings: ValidationSettings, batches: Sequence[Batch]) -> list[Refusal]:
    """Returns the most frequent reasons for which files of a run were refused, each with its first files.

    Args:
        store: the object store.
        settings: the suites.
        batches: those of the run.
    """
    counts: dict[str, int] = {}
    for batch in batches:
        for code, files in batch.reasons.items():
            counts[code] = counts.get(code, 0) + files
    codes = sorted(counts, key=lambda code: (-counts[code], code))[:MAX_REASONS]
    examples: dict[str, list[Example]] = {code: [] for code in codes}
    meanings: dict[str, str] = {}
    for batch in batches:
        for _, row in committed_batches.read_refused(store, batch.batch).to_pandas().iterrows():
            for code in row["reasons"]:
                if code not in examples or len(examples[code]) == MAX_EXAMPLES:
                    continue
                rejected = batch.rejected_classes.get(row["label"], "")
                meanings.setdefault(code, reasons.explain(code, row, rejected, settings))
                thumbnail = store.get_or_none(layout.thumbnail(row["sha256"])) if row["sha256"] else None
                examples[code].append(Example(row["file"], row["label"], thumbnail[0] if thumbnail else b""))
            if all(len(e) == min(MAX_EXAMPLES, counts[code]) for code, e in examples.items()):
                break
    return [Refusal(code, meanings.get(code, ""), counts[code], examples[code]) for code in codes]
