"""The measurements of a batch become verdicts, by Great Expectations' suites; humans may rule otherwise.

In: `batches/<batch>/ingested/…`. Out: `batches/<batch>/measurements.parquet`, Data Docs, `batch.json`; `rulings/…`.
Holds: nothing passes that could not be evaluated; every refusal has a reason code; a committed batch never changes.
"""

import logging

# While it is imported, Great Expectations says a hundred times at INFO what it does not register, in every task log.
logging.getLogger("great_expectations").setLevel(logging.WARNING)
