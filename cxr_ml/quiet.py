"""Filters from standard error what TensorFlow prints while it is loaded and is of no use; all else stays."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

# Printed before TF_CPP_MIN_LOG_LEVEL is obeyed. `warn_of_idle_gpu` in training warns of a GPU that is not used.
_CHATTER = (
    r"^WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR$",
    r"cudart_stub\.cc:[0-9]+\] Could not find cuda drivers",
    r"cuda_platform\.cc:[0-9]+\] failed call to cuInit",
)


def silence_tensorflow() -> None:
    """Lets TensorFlow print errors only, once it is imported, unless TF_CPP_MIN_LOG_LEVEL is set to 0 or 1."""
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") not in ("0", "1") and "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds TensorFlow as the others do, and has it loaded within `without_chatter`."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec and spec.loader:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with without_chatter():
                    load(module)
                    # Looks for GPUs now, which is when it complains; an error comes again where they are used.
                    with suppress(RuntimeError):
                        module.config.list_physical_devices()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextmanager
def without_chatter() -> Iterator[None]:
    """Filters the lines of chatter out of standard error within a block.

    In a process of its own, so that the last words of a process that crashes are shown as well.
    """
    grep = shutil.which("grep")
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed
        grep = None
    if grep is None:
        yield
        return
    command = [grep, "-a", "-v", "-E", "|".join(_CHATTER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stderr, bufsize=0) as sieve:
        os.dup2(sieve.stdin.fileno(), 2)  # type: ignore[union-attr]  # PIPE makes it a file
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
