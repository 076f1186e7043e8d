"""Whether the suites in expectations/ can be used: Great Expectations is asked once, this machine remembers."""

import hashlib
from importlib.metadata import version
from pathlib import Path

import cxr_ml
from cxr_ml.ingest.tables import COLUMNS
from cxr_ml.settings import ValidationSettings

SUITES = ("images", "classes", "dataset")
# `_digest` of the suites as they are shipped, which the tests try; where it is another one, they are tried like any.
SHIPPED = "ba44ea07da40d02e090d3609880474ea"


def check_suites(settings: ValidationSettings, cache_dir: Path) -> None:
    """Makes sure that the three suites can be used, so that one that cannot be is told before any work.

    To import Great Expectations takes seconds, so suites that passed leave a mark in `cache_dir`, named by all that the
    answer depends on; a suite that is refused leaves none. Those that are shipped have passed in the tests.

    Raises:
        Refused: with file and line.
    """
    digest = _digest(settings.expectations)
    mark = cache_dir / f"suites-{digest}.checked"
    if digest == SHIPPED or mark.is_file():
        return
    from cxr_ml.validation import verdicts  # takes seconds to import

    verdicts.try_suites(settings.expectations)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _digest(folder: Path) -> str:
    facts = [version("great-expectations"), cxr_ml.__version__, repr(COLUMNS)]
    digest = hashlib.sha256("\n".join(facts).encode())
    for path in (folder / f"{name}.json" for name in SUITES):
        data = path.read_bytes() if path.is_file() else b""
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]
