"""Stored records carry the version of their schema, and one of another version is refused."""

import json

import pytest
import report_samples as samples

from cxr_ml.errors import Refused
from cxr_ml.records import Champion, Record, StoredRecord

CHAMPION = Champion(version=1, model="light-d1-0a1b2c3d", artefact_sha256="a" * 64, history=1)


def test_a_stored_record_carries_schema_version_1():
    assert json.loads(CHAMPION.to_bytes())["schema_version"] == 1
    assert json.loads(samples.run().to_bytes())["schema_version"] == 1


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_record_of_another_schema_version_is_refused_with_a_sentence_that_says_so(store, version):
    data = CHAMPION.model_dump(mode="json") | {"schema_version": version}
    store.put_if_absent("registry/champion.json", json.dumps(data).encode())
    with pytest.raises(
        Refused, match=r"(?s)registry/champion\.json .*schema_version 1 was expected\. Received: .*new store"
    ):
        store.load_or_none("registry/champion.json", Champion)


def test_every_record_that_is_stored_as_an_object_has_a_schema_version():
    parts = {kind.__name__ for kind in Record.__subclasses__()} - {"StoredRecord"}
    assert {"Batch", "Dataset", "Model", "Evaluation", "Decision", "Champion", "HistoryEntry", "Run"} <= {
        kind.__name__ for kind in StoredRecord.__subclasses__()
    }
    assert "Check" in parts and "Metrics" in parts
