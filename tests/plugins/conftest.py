"""Lets tests import the console; Airflow gets a home of its own, so that it writes nothing into the user's."""

import atexit
import importlib.util
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
for room in ("data", "release"):
    sys.path.insert(0, str(REPOSITORY / "tests" / room))

# The fixture with which a drop's few files are judged quickly lies with the tests of the data room.
_spec = importlib.util.spec_from_file_location("data_conftest", REPOSITORY / "tests" / "data" / "conftest.py")
_data = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_data)
handful = _data.handful
