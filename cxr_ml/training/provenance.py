"""What made a model, beside its data and settings: the code, the packages, the machine."""

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


def code() -> str:
    """The git commit of the installed source, with "+changes" where files differ from it; else the package's version.

    Never fails: in an image or a wheel there is no git.
    """
    folder = Path(cxr_ml.__file__).parent

    def git(*arguments: str) -> str:
        # Not whatever GIT_DIR a hook may have set; ls-files, because a virtual environment may lie in another checkout.
        env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True, env=env
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return f"commit {git('rev-parse', 'HEAD')}" + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return f"version {cxr_ml.__version__}"


def packages() -> dict[str, str]:
    """Package -> version, of those that decide what a training gives, and of Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware() -> dict[str, str | int]:
    """The processor, the cores that this process may use, the memory in GiB, and the GPUs that Keras sees."""
    import keras  # takes seconds, which who only asks for the code need not wait

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
