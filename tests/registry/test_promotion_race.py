"""Twenty processes promote at once on a real S3 server, and some are killed: the registry stays what it promises."""

import hashlib
import random
import subprocess
import sys
import time

import promoting
import pytest
from test_promotion import apply, put_model

from cxr_ml.records import HistoryEntry, Model
from cxr_ml.registry import promotion
from cxr_ml.store import ObjectStore

pytestmark = pytest.mark.slow

PROCESSES, KILLED = 20, 8


def pointed(settings) -> int:
    """Number of the entry that the pointer names; 0 where there is none."""
    champion = promotion.champion(ObjectStore(settings.store))
    return champion.history if champion else 0


def look(settings) -> int:
    """What must hold at any moment. How many entries there are."""
    champion = promotion.champion(ObjectStore(settings.store))
    entries = promotion.history(ObjectStore(settings.store))  # read after the pointer: what it names must be there
    assert [e.number for e in entries] == list(range(1, len(entries) + 1))
    if champion is None:
        return len(entries)
    entry = entries[champion.history - 1]
    assert (entry.model, entry.version) == (champion.model, champion.version)
    record = ObjectStore(settings.store).load(f"models/{champion.model}/model.json", Model)
    weights = ObjectStore(settings.store).get(f"models/{champion.model}/model.keras")
    assert champion.artefact_sha256 == record.artefact_sha256 == hashlib.sha256(weights).hexdigest()
    return len(entries)


def chain(entries: list[HistoryEntry]) -> list[tuple[int, str | None]]:
    return [(e.version, e.previous) for e in entries]


def test_the_registry_loads_no_deep_learning_framework():
    code = "import sys; from cxr_ml.registry import promotion; assert 'keras' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_twenty_promotions_at_once_with_deaths_leave_no_hole_and_one_champion(store, settings):
    names = [f"candidate-{n:02}" for n in range(PROCESSES)]
    started = {name: promoting.start(name) for name in names}
    processes = {name: process for name, (process, _) in started.items()}
    pipes = {name: pipe for name, (_, pipe) in started.items()}
    try:
        assert all(pipe.recv() == "ready" for pipe in pipes.values())
        # Each of these dies once so many others are promoted: early and late, whatever the machine's speed.
        deaths = {name: random.randrange(PROCESSES - KILLED) for name in random.sample(names, KILLED)}
        for pipe in pipes.values():
            pipe.send("go")
        pointers, lengths = [], []
        while any(process.is_alive() for process in processes.values()):
            lengths.append(look(settings))
            for name, promoted in deaths.items():
                if lengths[-1] >= promoted:
                    processes[name].kill()
            for _ in range(20):
                pointers.append(pointed(settings))
                time.sleep(0.01)  # leaves the cores to the others
    finally:
        for process in processes.values():
            process.kill()
            process.join()
    killed = [name for name, process in processes.items() if process.exitcode != 0]
    assert set(killed) <= set(deaths) and killed, "nobody died: kill earlier"
    assert all(pipes[name].recv() == "promoted" for name in names if name not in killed)
    assert pointers == sorted(pointers) and lengths == sorted(lengths), "pointer or history went backwards"

    entries = promotion.history(store)
    promoted = [e.model for e in entries]
    assert {e.action for e in entries} == {"promoted"}
    assert len(promoted) == len(set(promoted)) and set(names) - set(killed) <= set(promoted)
    assert chain(entries) == list(enumerate([None, *promoted[:-1]], 1))
    assert all(e.decision.champion == e.previous for e in entries)

    # The last one to write may have been killed before it moved the pointer; whoever comes next does it.
    refused = apply(settings, "later", put_model(settings, "later"), None, (), False)
    assert refused.action == "refused"
    champion = promotion.champion(store)
    assert (champion.model, champion.version, champion.history) == (promoted[-1], len(promoted), len(promoted))
    look(settings)
