"""Keeps from standard error what TensorFlow says while it is loaded and what tells a user nothing; all else stays."""

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

# Said before TF_CPP_MIN_LOG_LEVEL is obeyed. Whether there is a GPU that should have been found,
# `model.devices.warn_of_idle_gpu` tells.
_CHATTER = (
    r"^WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR$",
    r"cudart_stub\.cc:[0-9]+\] Could not find cuda drivers",
    r"cuda_platform\.cc:[0-9]+\] failed call to cuInit",
)


def silence_tensorflow() -> None:
    """Lets TensorFlow, once it is imported, tell errors only; whoever set TF_CPP_MIN_LOG_LEVEL to 0 or 1 hears all."""
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
    """A block of which standard error is told without the lines of chatter, when it ends.

    By a process of its own: what is said last by a process that breaks down has to be told as well.
    """
    grep = shutil.which("grep")
    try:
        told = os.dup(2)
    except OSError:  # it is closed
        grep = None
    if grep is None:
        yield
        return
    command = [grep, "-a", "-v", "-E", "|".join(_CHATTER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=told, bufsize=0) as sieve:
        os.dup2(sieve.stdin.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(told, 2)
            os.close(told)
