"""Processes that store a candidate and promote it over whoever is champion. They load no Keras."""

import hashlib
import os
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import decision_samples
from forkserver_context import CONTEXT

from cxr_ml import settings as settings_module
from cxr_ml.errors import Refused
from cxr_ml.records import Model
from cxr_ml.registry import promotion
from cxr_ml.store import ObjectStore

WEIGHTS = 200_000  # bytes, so that writing them takes a while


def promote(settings, name):
    """Tries again while others are faster."""
    weights = hashlib.sha256(name.encode()).digest() * (WEIGHTS // 32)
    record = Model(
        model=name, architecture="light", dataset=3, dataset_sha256="d" * 64,
        artefact_sha256=hashlib.sha256(weights).hexdigest(), classes=("NORMAL", "COVID19", "PNEUMONIA"), image_size=256,
        weights="none", weights_sha256="", settings={}, epochs={}, seconds={}, images_per_second={}, code="",
        packages={}, hardware={}, likeness_sha256="", validation_sha256="", history_sha256="", operating_point=None,
    )  # fmt: skip
    ObjectStore(settings.store).put_uncommitted(f"models/{name}/model.keras", weights)
    ObjectStore(settings.store).put_if_absent(f"models/{name}/model.json", record.to_bytes())
    while True:
        champion = promotion.champion(ObjectStore(settings.store))
        beside = champion.model if champion else None
        decision = decision_samples.decision(settings, f"{name}-over-{beside}", name, beside)
        try:
            promotion.apply_decision(ObjectStore(settings.store), decision, by=name)
            return
        except Refused as refused:
            assert "is champion now" in str(refused), refused  # noqa: PT017


def _child(environment: dict[str, str], name: str, pipe: Connection) -> None:
    os.environ.update(environment)
    settings = settings_module.load()
    ObjectStore(settings.store).check()
    pipe.send("ready")
    pipe.recv()
    promote(settings, name)
    pipe.send("promoted")


def start(name: str) -> tuple[BaseProcess, Connection]:
    """Says `ready`, waits to be told something, says `promoted` when its candidate is."""
    environment = {n: v for n, v in os.environ.items() if n.startswith(("AWS_", "CXR_"))}
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_child, args=(environment, name, theirs))
    process.start()
    theirs.close()
    return process, ours
