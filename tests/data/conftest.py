"""Settings for the tests of ingest, validation and dataset."""

import pytest
from drop_samples import loosened
from quick_judging import handful  # noqa: F401 - a fixture

from cxr_ml.settings import Settings


@pytest.fixture
def small(settings, tmp_path) -> Settings:
    """Settings under which a dozen images are a dataset."""
    least = {"min_value": 1}
    loose = loosened(
        settings, tmp_path / "suites", smallest_class=least, test_support_min=least, validation_support_min=least
    )
    # A hint to train still leaves a share to validation; this one leaves none, so that counts are known.
    return loose.model_copy(update={"validation_fraction": 1e-9})
