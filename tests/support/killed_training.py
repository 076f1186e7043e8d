"""Trainings in processes of their own that are killed at a chosen moment, as the kernel or a power cut would do it."""

import functools
import os
import signal

from forkserver_context import CONTEXT
from shallow_network import build_shallow

from cxr_ml.settings import Settings
from cxr_ml.store import ObjectStore
from cxr_ml.training import architectures, batching, inputs, train


def let_light_be_pretrained() -> None:
    """The light network with weights from a file, so that its head is trained on stored features."""
    entry = architectures.ARCHITECTURES["light"]
    architectures.ARCHITECTURES["light"] = entry._replace(pretrained=True)


def _die_at(owner: object, name: str, number: int, after: bool) -> None:
    """SIGKILL for this process at the `number`-th call of a function, before it begins or after it has ended."""
    real, calls = getattr(owner, name), []

    @functools.wraps(real)
    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = real(*args, **kwargs)
        if len(calls) == number and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, name, counted)


def _child(environment: dict[str, str], settings: Settings, pretrained: bool, moment: tuple[str, int] | None) -> None:
    os.environ.update(environment)
    architectures.build_light = build_shallow
    if pretrained:
        let_light_be_pretrained()
    if moment:
        what, number = moment
        owner, name, after = {
            "before write": (ObjectStore, "put_if_absent", False),
            "after write": (ObjectStore, "put_if_absent", True),
            "before removal": (ObjectStore, "remove", False),
            "in a batch of the head": (batching.ShuffledRows, "__getitem__", False),
            "in a batch": (inputs.AugmentedBatches, "__getitem__", False),
        }[what]
        _die_at(owner, name, number, after)
    train.train_model(ObjectStore(settings.store), settings, 1, "light")


def train_in_a_process(settings: Settings, pretrained: bool, moment: tuple[str, int] | None = None) -> int:
    """Trains the light network on dataset 1; the exit code: 0, or -9 where it was killed."""
    environment = {n: v for n, v in os.environ.items() if n.startswith(("AWS_", "CXR_"))}
    process = CONTEXT.Process(target=_child, args=(environment, settings, pretrained, moment))
    process.start()
    process.join()
    return process.exitcode
