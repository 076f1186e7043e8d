"""Processes that start from one that has loaded the library but never used it: half a second instead of ten.

There is one such process for all tests of a worker, whichever module asks first, so that what it loads is said once.
"""

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["cxr_ml.registry.promotion", "cxr_ml.training.train"])
