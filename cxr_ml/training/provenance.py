"""Describes what a model was made by: the code, the packages, the machine."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cxr_ml
from cxr_ml.ingest import memory_budget

PACKAGES = (
    "cxr-ml", "keras", "kornia-rs", "numpy", "opencv-python-headless", "pandas", "pillow", "scikit-learn", "scipy",
    "simplejpeg", "tensorflow",
)  # fmt: skip


def describe_code() -> str:
    """Returns the git commit of the installed source, with "+changes" if files differ; else the package's version.

    In a container image or a wheel there is no git, so it never fails.
    """
    folder = Path(cxr_ml.__file__).parent

    def git(*arguments: str) -> str:
        # Without the GIT_DIR that a hook may have set.
        env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        process = subprocess.run(
            ["git", "-C", str(folder), *arguments],  # noqa: S607 - wherever the user has it
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
            env=env,
        )
        return process.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # fails if the package is installed in another checkout
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return f"commit {git('rev-parse', 'HEAD')}" + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return f"version {cxr_ml.__version__}"


def list_packages() -> dict[str, str]:
    """Returns the versions of Python and of the packages that influence the result of a training."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def describe_hardware() -> dict[str, str | int]:
    """Returns the processor, the cores that this process may use, the memory (GiB), the GPUs and the system."""
    import keras  # takes seconds, and describe_code() needs none of it

    gpus = keras.distribution.list_devices("gpu")
    names = []
    if gpus and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        details = [tf.config.experimental.get_device_details(d) for d in tf.config.list_physical_devices("GPU")]
        names = [str(d.get("device_name", "unknown")) for d in details]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _processor(),
        "cores": memory_budget.count_cores(),
        "memory_gib": round(memory),
        "gpus": ", ".join(names or gpus),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        for row in Path("/proc/cpuinfo").read_text().splitlines():
            if row.startswith("model name"):
                return row.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or "unknown"
