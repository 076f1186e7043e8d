"""Examples of what was refused, by reason. They show X-rays: on pages of the store, never in a mail."""

from collections.abc import Sequence
from typing import NamedTuple

from cxr_ml import store
from cxr_ml.records import Batch
from cxr_ml.settings import Settings
from cxr_ml.validation import reasons, thumbnails

REASONS = 8  # of a run that are shown with examples, the most frequent
EACH = 4  # examples of a reason


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


def find(settings: Settings, found: Sequence[Batch]) -> list[Refusal]:
    """The most frequent reasons of some batches, each with its first files.

    Args:
        settings: the store and the suites.
        found: the batches; those of a run.
    """
    counts: dict[str, int] = {}
    for batch in found:
        for code, files in batch.reasons.items():
            counts[code] = counts.get(code, 0) + files
    wanted = sorted(counts, key=lambda code: (-counts[code], code))[:REASONS]
    examples: dict[str, list[Example]] = {code: [] for code in wanted}
    meanings: dict[str, str] = {}
    for batch in found:
        for _, row in committed_batches.read_refused(settings, batch.batch).to_pandas().iterrows():
            for code in row["reasons"]:
                if code not in examples or len(examples[code]) == EACH:
                    continue
                rejected = batch.rejected_classes.get(row["label"], "")
                meanings.setdefault(code, reasons.explain(code, row, rejected, settings))
                picture = store.find(settings, thumbnails.key(row["sha256"])) if row["sha256"] else None
                examples[code].append(Example(row["file"], row["label"], picture[0] if picture else b""))
            if all(len(e) == min(EACH, counts[code]) for code, e in examples.items()):
                break
    return [Refusal(code, meanings.get(code, ""), counts[code], examples[code]) for code in wanted]
