"""Stores a candidate and promotes it over whoever is champion, trying again while others are faster. Loads no Keras.

Arguments: name of the candidate. Says `ready`, waits for a line on standard input, says `promoted` when it is.
"""

import hashlib
import sys

from cxr_ml import settings as settings_module
from cxr_ml import store
from cxr_ml.errors import Refused
from cxr_ml.records import Check, Decision, Model
from cxr_ml.release import registry

WEIGHTS = 200_000  # bytes, so that writing them takes a while


def promote(settings, name):
    weights = hashlib.sha256(name.encode()).digest() * (WEIGHTS // 32)
    record = Model(
        model=name, architecture="light", dataset=3, dataset_sha256="d" * 64,
        artefact_sha256=hashlib.sha256(weights).hexdigest(), classes=("NORMAL", "COVID19", "PNEUMONIA"), image_size=256,
        weights="none", weights_sha256="", settings={}, epochs={}, seconds={},
    )  # fmt: skip
    store.put_uncommitted(settings, f"models/{name}/model.keras", weights)
    store.put_if_absent(settings, f"models/{name}/model.json", record.to_bytes())
    check = Check(name="macro F1", observed=0.95, limit="≥ 0.85", passed=True, reason="macro F1 is 0.950.")
    while True:
        champion = registry.champion(settings)
        beside = champion.model if champion else None
        decision = Decision(
            run=f"{name}-over-{beside}", model=name, dataset=3, champion=beside, candidates=(name,), promote=True,
            checks=(check,), reason="Because.",
        )  # fmt: skip
        try:
            registry.conclude(settings, decision, by=name)
            return
        except Refused as refused:
            assert "is champion now" in str(refused), refused


if __name__ == "__main__":
    settings = settings_module.load()
    assert "keras" not in sys.modules
    store.check(settings)
    print("ready", flush=True)
    sys.stdin.readline()
    promote(settings, sys.argv[1])
    print("promoted", flush=True)
