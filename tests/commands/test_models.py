"""`cxr-ml models`: what there is, what differs, what was tampered with, and what is swept."""

import hashlib
import json
import re

import pytest
import report_samples as samples
import store_samples as stored
from cli_calls import answer, call

from cxr_ml import layout
from cxr_ml.errors import Refused
from cxr_ml.evaluation import stored_evaluations, stored_explanations
from cxr_ml.records import Evaluation, Model
from cxr_ml.registry import promotion, prune, queries
from cxr_ml.store import ObjectStore
from cxr_ml.training import artifact_check

FAIR = ((84, 3, 3), (0, 88, 2), (2, 2, 86))
POOR = ((60, 20, 10), (10, 70, 10), (5, 5, 80))


@pytest.fixture(scope="module")
def house(lasting):
    """A dataset, a champion before, a champion, a refused candidate, and one that another was preferred to.

    For tests that change nothing.
    """
    data = stored.put_dataset(lasting)
    first = stored.put_model(lasting, "first", data, FAIR)
    stored.run(lasting, "run-1", [first])
    beside = stored.evaluate("first", data, FAIR)
    stored.put_model(lasting, "second", data, stored.BEST, beside, settings={"seed": 7, "batch_size": 128})
    stored.put_model(lasting, "other", data, FAIR, beside, architecture="resnet101_v2")
    stored.run(lasting, "run-2", ["second", "other"])
    beside = stored.evaluate("second", data, stored.BEST)
    stored.put_model(lasting, "poor", data, POOR, beside)
    stored.run(lasting, "run-3", ["poor"], by="bob")
    stored.put_model(lasting, "fresh", data, FAIR)
    return lasting


@pytest.fixture(scope="module")
def objects(house):
    return snapshot(house)


@pytest.fixture
def own_house(objects, store, settings):
    """The same in a store of the test's own, which it may change."""
    for key, data in objects.items():
        store.put_if_absent(key, data)
    return settings


def snapshot(settings):
    return {key: ObjectStore(settings.store).get(key) for key in ObjectStore(settings.store).keys("")}


def overwrite(settings, key, data):
    ObjectStore(settings.store).remove(key)
    assert ObjectStore(settings.store).put_if_absent(key, data)


def test_every_model_is_listed_with_what_became_of_it(house):
    rows = {row["model"]: row for row in answer("models", "list")}
    assert {name: (row["outcome"], row["versions"], row["champion"]) for name, row in rows.items()} == {
        "first": ("promoted", [1], False),
        "second": ("promoted", [2], True),
        "other": ("not_chosen", [], False),
        "poor": ("refused", [], False),
        "fresh": ("undecided", [], False),
    }
    assert rows["poor"]["recalls"]["NORMAL"] == pytest.approx(60 / 90)
    assert rows["second"]["macro_f1"] == pytest.approx(samples.metrics(stored.BEST).macro_f1)
    status, out, _ = call("models", "list")
    assert status == 0 and "v2 (now)" in " ".join(out.split())


def test_the_newest_model_is_listed_first(store, settings, monkeypatch):
    data = stored.put_dataset(settings)
    for name in ("a", "b", "c"):
        stored.put_model(settings, name, data)
    times = {"a": "2026-01-05T03:00:00", "b": "2026-01-19T03:00:00", "c": "2026-01-12T03:00:00"}
    monkeypatch.setattr(ObjectStore, "last_modified", lambda _, key: times[key.split("/")[1]])
    assert [row["model"] for row in queries.models(store)] == ["b", "c", "a"]


def test_a_model_without_an_evaluation_is_listed_as_not_evaluated(store):
    record = samples.model().model_copy(update={"model": "bare"})
    store.put_if_absent("models/bare/model.json", record.to_bytes())
    (row,) = answer("models", "list")
    assert (row["macro_f1"], row["recalls"], row["outcome"]) == (None, None, "undecided")
    assert "not evaluated" in " ".join(call("models", "list")[1].split())
    assert answer("models", "show", "bare")["evaluation"] is None


def test_without_models_the_list_says_so(settings):
    assert call("models", "list")[:2] == (0, "No model yet.\n") and answer("models", "list") == []
    assert call("models", "history")[:2] == (0, "Nothing has happened yet.\n")


def test_a_model_is_shown_by_name_or_version_with_its_decision_and_evaluation(house):
    found = answer("models", "show", "second")
    assert answer("models", "show", "v2") == answer("models", "show", "2") == found
    assert found["model"]["model"] == "second" and found["versions"] == [2] and found["champion"]
    assert found["decision"]["run"] == "run-2" and found["decision"]["promote"]
    assert found["evaluation"]["champion"]["model"] == "first"
    assert [e["action"] for e in found["entries"]] == ["promoted"] and found["swept"] is None
    status, out, _ = call("models", "show", "v2")
    assert status == 0 and "gate: open" in out and "v2 (now)" in out


def test_a_candidate_that_was_not_chosen_shows_the_decision_for_the_other(house):
    found = answer("models", "show", "other")
    assert (found["outcome"], found["decision"]["model"], found["entries"]) == ("not_chosen", "second", [])


def test_a_name_that_is_no_model_and_no_version_is_refused(house):
    for name in ("nobody", "v9", "0", "", "../registry", "v"):
        for command in (("show", name), ("compare", "first", name), ("verify", name)):
            status, _, err = call("models", *command)
            assert status == 2 and "A model or a champion version such as v1 was expected." in err


def test_the_history_tells_what_who_when_and_why(own_house):
    promotion.rollback(ObjectStore(own_house.store), None, "eve", "Misses [too] much.")
    entries = answer("models", "history")
    assert [(e["number"], e["action"], e["model"], e["version"], e["by"]) for e in entries] == [
        (1, "promoted", "first", 1, "ann"),
        (2, "promoted", "second", 2, "ann"),
        (3, "refused", "poor", None, "bob"),
        (4, "rolled_back", "first", 3, "eve"),
    ]
    assert "[too]" in call("models", "history")[1] and entries[3]["why"] == "Misses [too] much."


def test_two_models_are_compared_on_the_same_images_also_where_only_the_one_stood_beside_the_other(house):
    found = answer("models", "compare", "first", "poor")
    assert found["same_images"] and found["datasets"] == [1, 1]
    rows = {row["name"]: row for row in found["figures"]}
    macro = rows["macro F1"]
    assert macro["difference"] == pytest.approx(samples.metrics(POOR).macro_f1 - samples.metrics(FAIR).macro_f1)
    assert rows["recall NORMAL"]["values"] == [pytest.approx(84 / 90), pytest.approx(60 / 90)]
    assert {"accuracy", "precision COVID19", "F1 PNEUMONIA", "macro F1, shrunk", "AUC NORMAL"} <= set(rows)
    assert found["settings"] == []
    differing = {row["name"]: row["values"] for row in answer("models", "compare", "v1", "v2")["settings"]}
    assert differing == {"seed": [0, 7], "head_learning_rate": [0.001, None], "fine_tune_learning_rate": [1e-5, None]}
    assert "Both were evaluated on the test images of dataset 1" in call("models", "compare", "v1", "v2")[1]


def test_a_champion_is_compared_on_the_later_images_of_the_candidate_that_it_stood_beside(own_house):
    later = stored.put_dataset(own_house, 2)
    stored.put_model(own_house, "new", later, FAIR, stored.evaluate("second", later, POOR))
    found = answer("models", "compare", "second", "new")
    assert found["same_images"] and found["datasets"] == [2, 2]
    assert {r["name"]: r for r in found["figures"]}["recall NORMAL"]["values"][0] == pytest.approx(60 / 90)


def test_models_of_different_images_are_compared_with_a_plain_warning(own_house):
    later = stored.put_dataset(own_house, 2)
    stored.put_model(own_house, "new", later, FAIR)
    found = answer("models", "compare", "poor", "new")
    assert not found["same_images"] and found["datasets"] == [1, 2]
    assert "Not the same test images" in call("models", "compare", "poor", "new")[1]


def test_a_model_that_was_never_evaluated_is_not_compared(own_house):
    record = samples.model().model_copy(update={"model": "bare"})
    ObjectStore(own_house.store).put_if_absent("models/bare/model.json", record.to_bytes())
    status, _, err = call("models", "compare", "first", "bare")
    assert status == 2 and "bare, which was never evaluated" in err


# Verify


def differing(name="v2"):
    status, out, err = call("models", "verify", name, "--json")
    assert status == 1, err
    found = {step["name"]: " ".join(step["differs"]) for step in json.loads(out) if step["differs"]}
    status, out, _ = call("models", "verify", name)
    assert status == 1 and out.count("DIFFERS") == len(found)
    return found


def test_a_store_that_nobody_touched_is_verified_to_the_last_image(house):
    for name in ("v1", "v2", "other", "poor", "fresh"):
        steps = answer("models", "verify", name)
        assert [s["differs"] for s in steps] == [[]] * len(steps)
        assert {"registry/champion.json", "registry/history/", "datasets/1/manifest.parquet", "images/"} <= {
            s["name"] for s in steps
        }
        assert steps[-1]["said"].startswith("6 images, each")


def test_a_pointer_that_was_moved_by_hand_is_named(own_house):
    pointer = promotion.champion(ObjectStore(own_house.store))
    changed = pointer.model_copy(update={"model": "poor"})
    overwrite(own_house, "registry/champion.json", changed.to_bytes())
    assert (
        "names version 2, poor, of history entry 2; the last that the history made is version 2, second"
        in (differing()["registry/champion.json"])
    )
    changed = pointer.model_copy(update={"artefact_sha256": "0" * 64})
    overwrite(own_house, "registry/champion.json", changed.to_bytes())
    assert f"artefact_sha256 is {'0' * 64}" in differing()["registry/champion.json"]
    overwrite(own_house, "registry/champion.json", b'{"version": 2}')
    assert "registry/champion.json does not hold a Champion record" in differing()["what comes next"]
    ObjectStore(own_house.store).remove("registry/champion.json")
    assert "version 2, second, was expected; there is no pointer" in differing()["registry/champion.json"]


def test_a_history_with_a_hole_or_another_story_is_named(own_house):
    second = promotion.history(ObjectStore(own_house.store))[1]
    overwrite(own_house, "registry/history/00002.json", second.model_copy(update={"previous": "poor"}).to_bytes())
    assert "00002.json says that poor was champion before; it was first" in differing()["registry/history/"]
    overwrite(own_house, "registry/history/00002.json", second.model_copy(update={"version": 5}).to_bytes())
    assert "makes version 5; it was expected to make 2" in differing("second")["registry/history/"]
    ObjectStore(own_house.store).remove("registry/history/00002.json")
    assert "entry 2 was expected, and registry/history/00003.json" in differing("second")["registry/history/"]


def test_a_decision_that_is_not_the_one_carried_out_is_named_field_by_field(own_house):
    decision = promotion.load_decision(ObjectStore(own_house.store), "run-3")
    changed = decision.model_copy(update={"promote": True, "reason": "Trust me."})
    overwrite(own_house, "reports/run-3/decision.json", changed.to_bytes())
    said = differing("poor")["reports/run-3/decision.json"]
    assert "promote of reports" in said and "reason of reports" in said and "checks of" not in said


def test_a_promotion_of_what_did_not_pass_is_named(own_house):
    entry = promotion.history(ObjectStore(own_house.store))[1]
    checks = (entry.decision.checks[0].model_copy(update={"passed": False}), *entry.decision.checks[1:])
    decision = entry.decision.model_copy(update={"checks": checks})
    overwrite(own_house, "registry/history/00002.json", entry.model_copy(update={"decision": decision}).to_bytes())
    overwrite(own_house, "reports/run-2/decision.json", decision.to_bytes())
    said = differing()["reports/run-2/decision.json"]
    assert f"it was promoted, although not every check passed: {checks[0].name}" in said


def tampered(settings, name="first"):
    """Weights, the record of them and the hash in the evaluation, all replaced to fit each other."""
    weights = b"weights that nobody judged"
    digest = hashlib.sha256(weights).hexdigest()
    for file, kind in (("model.json", Model), ("evaluation.json", Evaluation)):
        record = ObjectStore(settings.store).load(f"models/{name}/{file}", kind)
        overwrite(settings, f"models/{name}/{file}", record.model_copy(update={"artefact_sha256": digest}).to_bytes())
    overwrite(settings, f"models/{name}/model.keras", weights)


def test_a_past_champion_replaced_with_its_record_and_its_evaluation_is_named_and_not_rolled_back_to(own_house):
    tampered(own_house)
    assert (
        "The evaluation of first is not the one that run-1 was decided on" in differing("v1")["models/first/evaluation"]
    )
    with pytest.raises(
        Refused, match=r"evaluation of first is not the one that run-1 was.*The champion stays as it is"
    ):
        promotion.rollback(ObjectStore(own_house.store), "first", "eve", "Misses too much.")
    assert (
        promotion.champion(ObjectStore(own_house.store)).model == "second"
        and len(promotion.history(ObjectStore(own_house.store))) == 3
    )


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("model.keras", {"artefact_sha256": hashlib.sha256(b"weights that nobody judged").hexdigest()}),
        ("model.json", {"operating_point": None}),
    ],
)
def test_a_past_champion_that_is_not_what_its_evaluation_names_is_not_rolled_back_to(own_house, file, changes):
    record = ObjectStore(own_house.store).load("models/first/model.json", Model)
    overwrite(own_house, "models/first/model.json", record.model_copy(update=changes).to_bytes())
    if file == "model.keras":
        overwrite(own_house, "models/first/model.keras", b"weights that nobody judged")
    with pytest.raises(Refused, match=rf"models/first/{file} is not what run-1 was decided on.*The champion stays"):
        promotion.rollback(ObjectStore(own_house.store), "first", "eve", "Misses too much.")
    assert promotion.champion(ObjectStore(own_house.store)).model == "second"
    assert "models/first/model.json" in differing("first")


def test_faked_figures_are_named_also_those_of_a_decision_before_the_last(own_house):
    beside = stored.evaluate("second", stored.put_dataset(own_house), stored.BEST)
    stored_evaluations.save(
        ObjectStore(own_house.store), stored.evaluate("first", stored.put_dataset(own_house), FAIR, beside)
    )
    stored.run(own_house, "run-4", ["first"])
    found = ObjectStore(own_house.store).load("models/first/evaluation.json", Evaluation)
    faked = found.model_copy(update={"test": found.test.model_copy(update={"macro_f1": 0.999})})
    overwrite(own_house, "models/first/evaluation.json", faked.to_bytes())
    assert "is not the one that run-1 was decided on" in differing("first")["models/first/evaluation"]


def test_an_evaluation_that_no_decision_holds_a_hash_of_is_told_to_differ(own_house):
    entry = promotion.history(ObjectStore(own_house.store))[1]
    decision = entry.decision.model_copy(update={"evaluation_sha256": {}})
    overwrite(own_house, "registry/history/00002.json", entry.model_copy(update={"decision": decision}).to_bytes())
    overwrite(own_house, "reports/run-2/decision.json", decision.to_bytes())
    assert "expected SHA-256 recorded in the decision" in differing("second")["models/second/evaluation"]


def test_other_predictions_and_another_curve_are_named(own_house):
    files = {"models/second/predictions-d1.parquet", "models/second/history.csv"}
    for key in files:
        overwrite(own_house, key, b"other bytes")
    assert set(differing()) == files
    ObjectStore(own_house.store).remove("models/second/history.csv")
    assert differing()["models/second/history.csv"].startswith("it is missing; model.json records")


def test_a_contact_sheet_that_was_changed_is_named(own_house):
    model = ObjectStore(own_house.store).load("models/second/model.json", Model)
    sheets = {label: f"sheet of {label}".encode() for label in samples.CLASSES}
    facts = {"dataset": 1, "dataset_sha256": model.dataset_sha256, "artefact_sha256": model.artefact_sha256}
    facts["sheets"] = {label: hashlib.sha256(png).hexdigest() for label, png in sheets.items()}
    stored_explanations.save(
        ObjectStore(own_house.store), samples.explanation("second").model_copy(update=facts), sheets
    )
    steps = {s["name"]: s["said"] for s in answer("models", "verify", "second")}
    assert steps["models/second/explanation-d1"].startswith("its 3 contact sheets")
    overwrite(own_house, "models/second/explanation-d1-1.png", b"another sheet")
    assert "explanation-d1-1.png is not the sheet that was recorded" in differing()["models/second/explanation-d1"]


def test_other_weights_a_record_of_others_and_no_weights_are_named(own_house):
    key = "models/second/model.keras"
    overwrite(own_house, key, b"other weights")
    assert f"{key} is not the file that model.json records" in differing()[key]
    ObjectStore(own_house.store).remove(key)
    assert "nobody swept it" in differing()[key]
    record = ObjectStore(own_house.store).load("models/second/model.json", Model)
    overwrite(own_house, key, b"weights of second")
    changed = record.model_copy(update={"artefact_sha256": "1" * 64})
    overwrite(own_house, "models/second/model.json", changed.to_bytes())
    assert set(differing()) == {
        "registry/champion.json", key, "models/second/evaluation", "models/second/model.json",
    }  # fmt: skip


def test_other_predictions_of_the_training_process_and_another_likeness_are_named(own_house):
    files = {"models/second/validation.npy", "models/second/likeness.npz"}
    for key in files:
        overwrite(own_house, key, b"other bytes")
    assert set(differing()) == files


def test_an_evaluation_of_other_images_is_named(own_house):
    digest = stored.put_dataset(own_house).manifest_sha256
    data = ObjectStore(own_house.store).get("models/poor/evaluation.json").replace(digest.encode(), b"f" * 64)
    overwrite(own_house, "models/poor/evaluation.json", data)
    assert "is not the one that run-3 was decided on" in differing("poor")["models/poor/evaluation"]


def test_another_dataset_record_or_manifest_is_named(own_house):
    record = stored.put_dataset(own_house)
    other = record.model_copy(update={"manifest_sha256": "2" * 64})
    overwrite(own_house, "datasets/1/dataset.json", other.to_bytes())
    found = differing()
    assert "manifest_sha256 is " + "2" * 64 in found["datasets/1/dataset.json"]
    overwrite(own_house, "datasets/1/dataset.json", record.to_bytes())
    overwrite(own_house, "datasets/1/manifest.parquet", b"another table")
    assert "datasets/1/manifest.parquet was changed" in differing()["what comes next"]


def test_an_image_with_other_bytes_and_one_that_is_missing_are_named(own_house):
    one, two = list(ObjectStore(own_house.store).keys("images/"))[:2]
    overwrite(own_house, one, b"another film")
    ObjectStore(own_house.store).remove(two)
    found = differing("first")
    assert set(found) == {"images/"}
    assert f"{one} holds other bytes" in found["images/"] and f"{two} is missing" in found["images/"]


def test_of_many_differences_a_person_is_shown_some_and_a_machine_all(store, settings):
    data = stored.put_dataset(settings, images_per_class=9)
    stored.put_model(settings, "first", data)
    for key in list(store.keys("images/")):
        store.remove(key)
    out = call("models", "verify", "first")[1]
    assert out.count("is missing") == 20 and "and 7 more; --json names them" in out
    assert differing("first")["images/"].count("is missing") == 27


# Prune


def test_only_weights_of_old_refused_candidates_are_swept_and_all_evidence_stays(own_house):
    before = snapshot(own_house)
    assert answer("models", "prune", "--keep", 0) == {"models": ["poor", "other"], "deleted": False}
    assert answer("models", "prune", "--keep", 1) == {"models": ["other"], "deleted": False}
    assert answer("models", "prune", "--keep", 2) == {"models": [], "deleted": False}
    out = call("models", "prune", "--keep", 1)[1]
    assert "Would be deleted, with --yes: models/other/model.keras" in out and snapshot(own_house) == before
    assert answer("models", "prune", "--keep", 1, "--yes") == {"models": ["other"], "deleted": True}
    after = snapshot(own_house)
    assert set(before) - set(after) == {"models/other/model.keras"}
    assert set(after) - set(before) == {"models/other/swept.json", "registry/history/00004.json"}
    assert all(after[key] == data for key, data in before.items() if key in after)
    assert answer("models", "prune", "--keep", 1) == {"models": [], "deleted": False}


def test_what_was_swept_is_told_by_whom_and_when_wherever_one_asks(own_house):
    prune.delete_weights(ObjectStore(own_house.store), "other", "bob", "Beyond the 1 refused candidates judged last.")
    entry = promotion.history(ObjectStore(own_house.store))[-1]
    said = f"swept at {entry.at} by bob"
    assert said in " ".join(call("models", "show", "other")[1].split())
    assert answer("models", "show", "other")["swept"]["by"] == "bob"
    assert "weights swept" in " ".join(call("models", "list")[1].split())
    assert answer("models", "history")[-1]["action"] == "swept"
    steps = {s["name"]: s for s in answer("models", "verify", "other")}
    assert said in steps["models/other/model.keras"]["said"]
    with pytest.raises(Refused, match=f"{re.escape(said)}.*train with another seed"):
        artifact_check.read(
            ObjectStore(own_house.store), ObjectStore(own_house.store).load("models/other/model.json", Model)
        )


def test_no_candidate_whose_decision_waits_for_a_human_is_swept(own_house):
    data = stored.put_dataset(own_house)
    beside = stored.evaluate("second", data, stored.BEST)
    stored.put_model(own_house, "waits", data, POOR, beside)
    stored.run(own_house, "run-4", ["waits"])
    assert "waits" in prune.candidates(ObjectStore(own_house.store), 0)
    decision = promotion.load_decision(ObjectStore(own_house.store), "run-4").model_copy(update={"run": "run-5"})
    ObjectStore(own_house.store).put_if_absent("reports/run-5/decision.json", decision.to_bytes())
    assert prune.candidates(ObjectStore(own_house.store), 0) == ["poor", "other"]


def test_a_champion_that_was_rolled_back_from_keeps_its_weights(own_house):
    promotion.rollback(ObjectStore(own_house.store), None, "ann", "Misses too much.")
    assert prune.candidates(ObjectStore(own_house.store), 0) == ["poor", "other"]
    for name in ("first", "second"):
        with pytest.raises(Refused, match="never swept"):
            prune.delete_weights(ObjectStore(own_house.store), name, "bob", "Old.")
        assert ObjectStore(own_house.store).exists(layout.model_weights(name))


@pytest.mark.parametrize("dies_at", ["put_if_absent", "remove"])
def test_a_sweep_that_dies_leaves_a_true_state_and_is_ended_by_the_next(own_house, monkeypatch, dies_at):
    real = getattr(ObjectStore, dies_at)

    def dies(store, key, *rest):
        if key.startswith("models/other/"):
            raise ConnectionError("the line was cut")
        return real(store, key, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(ObjectStore, dies_at, dies)
        with pytest.raises(ConnectionError):
            prune.delete_weights(ObjectStore(own_house.store), "other", "bob", "Old.")
    assert ObjectStore(own_house.store).exists(layout.model_weights("other"))
    assert promotion.history(ObjectStore(own_house.store))[-1].action == "swept"
    assert prune.candidates(ObjectStore(own_house.store), 5) == ["other"]
    prune.delete_weights(ObjectStore(own_house.store), "other", "eve", "Old.")
    assert not ObjectStore(own_house.store).exists(layout.model_weights("other"))
    assert [e.by for e in promotion.history(ObjectStore(own_house.store)) if e.action == "swept"] == ["bob"]
    assert artifact_check.swept(ObjectStore(own_house.store), "other").by == "bob"
