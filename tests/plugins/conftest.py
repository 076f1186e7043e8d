"""Lets tests import the console; Airflow gets a home of its own, so that it writes nothing into the user's."""

import atexit
import os
import shutil
import sys
import tempfile

from local.state import REPOSITORY

# Before the first import of Airflow, which reads it once.
if "airflow" not in sys.modules:
    os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-")
    atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)
sys.path.insert(0, str(REPOSITORY / "plugins"))
