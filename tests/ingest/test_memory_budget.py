"""Memory does not grow with a drop by the kilobyte: listing, labels and verdicts of many rows stay below a peak."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import memory

pytestmark = pytest.mark.slow
LISTED, JUDGED = 50_000, 25_000


def test_an_archive_of_50_000_files_is_listed_and_its_table_matched_below_a_peak(settings):
    """Measured: 281 MB, 85 of them for the drop; a kilobyte more for each file would break the limit."""
    memory.write_zip(Path(settings.inbox.path), LISTED)
    assert memory.peak(memory.LABELS.format(drop="listed.zip"))[0] < 330


def test_judging_25_000_rows_stays_below_its_peak(settings):
    """Measured: 483 MB; three kilobytes more for each row break the limit."""
    memory.write_shards(settings, "drop-00000000", JUDGED)
    assert memory.peak(memory.JUDGE.format(batch="drop-00000000"))[0] < 550
