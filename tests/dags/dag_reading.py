"""A DAG file read as Airflow's dag-processor does, in processes of their own: Airflow keeps global state."""

import json
import os
import subprocess
import sys
from pathlib import Path

from local.state import REPOSITORY

HEAVY = {
    "boto3", "cv2", "great_expectations", "keras", "matplotlib", "mlflow", "numpy", "pandas", "PIL", "pyarrow", "scipy",
    "sklearn", "tensorflow",
}  # fmt: skip


def read_dag(name: str, home: Path, *environments: dict[str, str]) -> list[dict]:
    """What dag_facts.py finds in a file of dags/, with the settings' defaults and the variables of each on top."""
    env = {n: v for n, v in os.environ.items() if not n.startswith(("CXR_", "AIRFLOW"))}
    env |= {"AIRFLOW_HOME": str(home), "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'dags'}"}
    script = Path(__file__).with_name("dag_facts.py")
    command = [sys.executable, str(script), str(REPOSITORY / "dags" / f"{name}.py"), json.dumps(environments)]
    # In an empty folder: no cxr.toml of this checkout's.
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.partition("FACTS")[2])
