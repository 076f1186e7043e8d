"""The pointer moves only for what passed; the history is only added to; every step can be repeated."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import report_samples as samples
from decision_samples import FAILED, PASSED, decision
from model_samples import overwrite

from cxr_ml.errors import Refused
from cxr_ml.registry import promotion
from cxr_ml.store import ObjectStore


def put_model(settings, name: str) -> str:
    weights = b"weights of " + name.encode()
    facts = {"model": name, "artefact_sha256": hashlib.sha256(weights).hexdigest()}
    record = samples.model().model_copy(update=facts)
    ObjectStore(settings.store).put_if_absent(f"models/{name}/model.keras", weights)
    ObjectStore(settings.store).put_if_absent(f"models/{name}/model.json", record.to_bytes())
    return name


def apply(settings, *about):
    return promotion.apply_decision(ObjectStore(settings.store), decision(settings, *about), "ann")


def promoted(settings, run: str, model: str, champion: str | None = None):
    return apply(settings, run, put_model(settings, model), champion)


def cut(*_):
    raise ConnectionError("the line was cut")


def test_there_is_no_champion_before_the_first_promotion(store):
    assert promotion.champion(store) is None and promotion.history(store) == []


def test_a_promotion_moves_the_pointer_and_is_told_by_the_history(store, settings):
    entry = promoted(settings, "run-1", "first")
    champion = promotion.champion(store)
    assert (champion.model, champion.version, champion.history) == ("first", 1, 1)
    assert champion.artefact_sha256 == hashlib.sha256(b"weights of first").hexdigest()
    assert promotion.history(store) == [entry]
    assert (entry.action, entry.by, entry.why, entry.previous, entry.run) == (
        "promoted", "ann", "Because.", None, "run-1",
    )  # fmt: skip


def test_a_decision_is_carried_out_once_however_often_it_is_asked_for(store, settings):
    first, again = promoted(settings, "run-1", "first"), promoted(settings, "run-1", "first")
    assert first == again and len(promotion.history(store)) == 1 and promotion.champion(store).version == 1


@pytest.mark.parametrize(
    ("checks", "promote"),
    [((PASSED, FAILED), True), ((FAILED,), False), ((), True), ((PASSED,), False)],
    ids=["a failed check", "refused", "no checks at all", "not to be promoted"],
)
def test_what_did_not_pass_every_check_is_never_promoted_whatever_the_decision_says(store, settings, checks, promote):
    put_model(settings, "first")
    entry = apply(settings, "run-1", "first", None, checks, promote)
    assert entry.action == "refused" and entry.version is None
    assert promotion.champion(store) is None


def test_a_refusal_leaves_the_champion_and_its_version(store, settings):
    promoted(settings, "run-1", "first")
    apply(settings, "run-2", put_model(settings, "second"), "first", (FAILED,), False)
    entry = promoted(settings, "run-3", "third", "first")
    assert [e.action for e in promotion.history(store)] == ["promoted", "refused", "promoted"]
    assert entry.version == 2 and entry.previous == "first" and promotion.champion(store).model == "third"


def test_repeating_a_run_that_died_before_it_moved_the_pointer_moves_it(store, settings, monkeypatch):
    put_model(settings, "first")
    with monkeypatch.context() as broken:
        broken.setattr(ObjectStore, "swap", cut)
        with pytest.raises(ConnectionError):
            apply(settings, "run-1", "first")
    assert promotion.champion(store) is None and len(promotion.history(store)) == 1
    apply(settings, "run-1", "first")
    assert promotion.champion(store).model == "first" and len(promotion.history(store)) == 1


def test_a_decision_against_a_champion_of_yesterday_is_refused(store, settings):
    promoted(settings, "run-1", "first")
    promoted(settings, "run-2", "second", "first")
    with pytest.raises(Refused, match=r"made against the champion first.*second is champion now"):
        promoted(settings, "run-3", "third", "first")
    assert promotion.champion(store).model == "second" and len(promotion.history(store)) == 2


def test_repeating_an_old_promotion_does_not_bring_the_old_champion_back(store, settings):
    promoted(settings, "run-1", "first")
    promoted(settings, "run-2", "second", "first")
    promoted(settings, "run-1", "first")
    assert promotion.champion(store).model == "second"


def test_a_model_without_its_artefact_does_not_become_champion(store, settings):
    record = samples.model().model_copy(update={"model": "hollow"})
    store.put_if_absent("models/hollow/model.json", record.to_bytes())
    with pytest.raises(Refused, match=r"hollow/model\.keras was expected\. Received: nothing"):
        apply(settings, "run-1", "hollow")
    assert promotion.champion(store) is None and promotion.history(store) == []


def test_weights_that_are_not_those_recorded_are_not_promoted_and_not_rolled_back_to(store, settings):
    promoted(settings, "run-1", "first")
    promoted(settings, "run-2", "second", "first")
    for name in (put_model(settings, "third"), "first"):
        store.remove(f"models/{name}/model.keras")
        store.put_if_absent(f"models/{name}/model.keras", b"garbage")
    with pytest.raises(Refused, match=r"third/model\.keras is not the file that model\.json records.*champion stays"):
        promoted(settings, "run-3", "third", "second")
    with pytest.raises(Refused, match=r"first/model\.keras is not the file that model\.json records.*champion stays"):
        promotion.rollback(store, None, "ann", "Misses too much.")
    assert promotion.champion(store).model == "second" and len(promotion.history(store)) == 2


@pytest.mark.parametrize("version", ["v2", "2"])
def test_a_rollback_goes_to_a_champion_version(store, settings, version):
    promoted(settings, "run-1", "first")
    promoted(settings, "run-2", "second", "first")
    promoted(settings, "run-3", "third", "second")
    assert promotion.rollback(store, version, "ann", "Misses too much.").model == "second"
    with pytest.raises(Refused, match="an earlier champion"):
        promotion.rollback(store, "v9", "ann", "Misses too much.")


def test_a_rollback_to_a_model_that_is_gone_is_refused_and_not_told_as_done(store, settings):
    promoted(settings, "run-1", "first")
    promoted(settings, "run-2", "second", "first")
    store.client.delete_object(Bucket=settings.store.bucket, Key="models/first/model.keras")
    with pytest.raises(Refused, match=r"first/model\.keras was expected\. Received: nothing.*The champion stays"):
        promotion.rollback(store, None, "ann", "Misses too much.")
    assert promotion.champion(store).model == "second" and len(promotion.history(store)) == 2


def test_what_a_human_did_not_approve_is_a_refusal_in_the_history(store, settings):
    put_model(settings, "first")
    entry = promotion.record_rejection(store, decision(settings, "run-1", "first"), "bob", "Not approved by bob.")
    assert (
        promotion.record_rejection(store, decision(settings, "run-1", "first"), "bob", "Not approved by bob.") == entry
    )
    assert (entry.action, entry.by, entry.why) == ("refused", "bob", "Not approved by bob.")
    assert promotion.champion(store) is None and promotion.history(store) == [entry]


def test_a_rollback_brings_back_the_champion_before_as_a_new_version(store, settings):
    promoted(settings, "run-1", "first")
    promoted(settings, "run-2", "second", "first")
    entry = promotion.rollback(store, None, "ann", "Misses too much.")
    assert (entry.action, entry.model, entry.previous, entry.version) == ("rolled_back", "first", "second", 3)
    champion = promotion.champion(store)
    assert (champion.model, champion.version) == ("first", 3)


@pytest.mark.parametrize(
    ("to", "why", "message"),
    [
        ("never", "a reason", "an earlier champion"),
        ("second", "a reason", "an earlier champion"),
        (None, " ", "reason"),
    ],
)
def test_a_rollback_needs_a_reason_and_an_earlier_champion(store, settings, to, why, message):
    promoted(settings, "run-1", "first")
    promoted(settings, "run-2", "second", "first")
    with pytest.raises(Refused, match=message):
        promotion.rollback(store, to, "ann", why)
    assert promotion.champion(store).model == "second" and len(promotion.history(store)) == 2


def test_a_second_rollback_does_not_bring_back_the_model_that_was_rolled_back_from(store, settings):
    promoted(settings, "run-1", "first")
    promoted(settings, "run-2", "second", "first")
    promoted(settings, "run-3", "third", "second")
    assert promotion.rollback(store, None, "ann", "Misses too much.").model == "second"
    assert promotion.rollback(store, None, "ann", "This one too.").model == "first"
    with pytest.raises(Refused, match=r"one of second, third\. Received: none, and first was promoted over no other"):
        promotion.rollback(store, None, "ann", "And this.")
    assert promotion.rollback(store, "third", "ann", "It was the data.").version == 6


def test_a_rollback_of_a_name_is_done_once_however_often_it_is_asked_for(store, settings):
    promoted(settings, "run-1", "first")
    promoted(settings, "run-2", "second", "first")
    entries = [promotion.rollback(store, None, "ann", "Misses too much.", "manual-1") for _ in range(3)]
    assert entries[0] == entries[1] == entries[2] and entries[0].run == "manual-1"
    assert promotion.champion(store).version == 3 and len(promotion.history(store)) == 3


def test_a_rollback_starts_from_the_history_where_the_pointer_lags_behind(store, settings, monkeypatch):
    promoted(settings, "run-1", "first")
    with monkeypatch.context() as broken:
        broken.setattr(ObjectStore, "swap", cut)
        with pytest.raises(ConnectionError):
            promoted(settings, "run-2", "second", "first")
    assert promotion.rollback(store, None, "ann", "Misses too much.").model == "first"
    assert [(e.model, e.version) for e in promotion.history(store)] == [("first", 1), ("second", 2), ("first", 3)]
    assert promotion.champion(store).version == 3


def test_of_two_rollbacks_from_one_champion_at_once_one_is_carried_out(store, settings, monkeypatch):
    promoted(settings, "run-1", "first")
    promoted(settings, "run-2", "second", "first")
    put = ObjectStore.put_if_absent

    def rolled_back_just_before(store, key, *rest):
        monkeypatch.setattr(ObjectStore, "put_if_absent", put)
        promotion.rollback(store, None, "bob", "Misses too much.")
        return put(store, key, *rest)

    monkeypatch.setattr(ObjectStore, "put_if_absent", rolled_back_just_before)
    with pytest.raises(Refused, match=r"against the champion second.*first is champion now\. Decide again"):
        promotion.rollback(store, None, "ann", "Misses too much.")
    assert [(e.action, e.by) for e in promotion.history(store)][2:] == [("rolled_back", "bob")]


@pytest.mark.parametrize("who", ["repairs", "refuses", "rejects", "sweeps"])
def test_every_action_repairs_a_pointer_that_was_left_behind(store, settings, monkeypatch, who):
    promoted(settings, "run-1", "first")
    with monkeypatch.context() as broken:
        broken.setattr(ObjectStore, "swap", cut)
        with pytest.raises(ConnectionError):
            promoted(settings, "run-2", "second", "first")
    assert promotion.champion(store).model == "first"
    put_model(settings, "third")
    {
        "repairs": lambda: promoted(settings, "run-1", "first"),
        "refuses": lambda: apply(settings, "run-3", "third", "second", (FAILED,)),
        "rejects": lambda: promotion.record_rejection(
            store, decision(settings, "run-3", "third", "second"), "bob", "No."
        ),
        "sweeps": lambda: promotion.record_deletion(store, "third", "ann", "Old."),
    }[who]()
    assert (promotion.champion(store).model, promotion.champion(store).version) == ("second", 2)


def test_what_was_swept_cannot_become_champion_and_no_champion_can_be_swept(store, settings):
    promoted(settings, "run-1", "first")
    promoted(settings, "run-2", "second", "first")
    entry = promotion.record_deletion(store, put_model(settings, "third"), "bob", "Beyond the newest 3.")
    assert (entry.action, entry.model, entry.version, entry.by) == ("swept", "third", None, "bob")
    with pytest.raises(Refused, match=r"weights of third were swept at .* by bob; the champion stays"):
        promoted(settings, "run-3", "third", "second")
    for name in ("first", "second"):
        with pytest.raises(Refused, match=f"present or past, are never swept. Received: {name}"):
            promotion.record_deletion(store, name, "bob", "Old.")
    assert promotion.champion(store).model == "second" and len(promotion.history(store)) == 3


def test_of_a_promotion_and_a_sweep_of_one_model_at_once_one_is_refused(store, settings, monkeypatch):
    promoted(settings, "run-1", "first")
    put_model(settings, "second")
    put = ObjectStore.put_if_absent

    def promoted_just_before(store, key, *rest):
        monkeypatch.setattr(ObjectStore, "put_if_absent", put)
        apply(settings, "run-2", "second", "first")
        return put(store, key, *rest)

    monkeypatch.setattr(ObjectStore, "put_if_absent", promoted_just_before)
    with pytest.raises(Refused, match="never swept"):
        promotion.record_deletion(store, "second", "bob", "Old.")
    assert [e.action for e in promotion.history(store)] == ["promoted", "promoted"]


def test_a_first_champion_cannot_be_rolled_back(store, settings):
    promoted(settings, "run-1", "first")
    with pytest.raises(Refused, match="an earlier champion"):
        promotion.rollback(store, None, "ann", "Misses too much.")


def test_refusals_of_many_runs_at_once_get_numbers_of_their_own(store, settings):
    put_model(settings, "first")

    def refuse(number: int) -> int:
        return apply(settings, f"run-{number}", "first", None, (FAILED,), False).number

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(refuse, range(8)))
    assert sorted(numbers) == list(range(1, 9))
    assert {e.run for e in promotion.history(store)} == {f"run-{n}" for n in range(8)}


def test_of_many_that_met_the_same_champion_exactly_one_is_promoted(store, settings):
    promoted(settings, "run-0", "first")
    names = [put_model(settings, f"candidate-{n}") for n in range(8)]

    def compete(name: str) -> str:
        try:
            return apply(settings, f"run-{name}", name, "first").action
        except Refused as refused:
            assert "made against the champion first" in str(refused)  # noqa: PT017
            return "too late"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(compete, names))
    assert sorted(outcomes) == ["promoted"] + ["too late"] * 7
    winner = names[outcomes.index("promoted")]
    champion = promotion.champion(store)
    assert (champion.model, champion.version, champion.history) == (winner, 2, 2)
    assert [(e.number, e.model, e.previous) for e in promotion.history(store)] == [
        (1, "first", None), (2, winner, "first"),
    ]  # fmt: skip


def test_one_decision_applied_by_several_at_once_is_one_entry(store, settings):
    put_model(settings, "first")
    with ThreadPoolExecutor(4) as pool:
        entries = list(pool.map(lambda _: apply(settings, "run-1", "first"), range(4)))
    assert promotion.history(store) == entries[:1] and len({e.number for e in entries}) == 1
    assert promotion.champion(store).version == 1


def test_a_rollback_between_look_and_write_is_seen_by_a_promotion(store, settings, monkeypatch):
    promoted(settings, "run-1", "first")
    promoted(settings, "run-2", "second", "first")
    put_model(settings, "third")
    put = ObjectStore.put_if_absent

    def rolled_back_just_before(store, key, *rest):
        if key == "registry/history/00003.json":
            monkeypatch.setattr(ObjectStore, "put_if_absent", put)
            promotion.rollback(store, None, "ann", "Misses too much.")
        return put(store, key, *rest)

    monkeypatch.setattr(ObjectStore, "put_if_absent", rolled_back_just_before)
    with pytest.raises(Refused, match=r"made against the champion second.*first is champion now"):
        apply(settings, "run-3", "third", "second")
    assert promotion.champion(store).model == "first"
    assert [e.action for e in promotion.history(store)] == ["promoted", "promoted", "rolled_back"]


def test_who_writes_the_pointer_late_does_not_move_it_back(store, settings, monkeypatch):
    promoted(settings, "run-1", "first")
    put_model(settings, "third")
    put = ObjectStore.put_if_absent

    def overtaken_just_after(store, key, *rest):
        done = put(store, key, *rest)
        if key == "registry/history/00002.json":
            monkeypatch.setattr(ObjectStore, "put_if_absent", put)
            apply(settings, "run-3", "third", "second")
        return done

    put_model(settings, "second")
    monkeypatch.setattr(ObjectStore, "put_if_absent", overtaken_just_after)
    apply(settings, "run-2", "second", "first")
    assert [e.model for e in promotion.history(store)] == ["first", "second", "third"]
    assert (promotion.champion(store).model, promotion.champion(store).history) == ("third", 3)


def test_the_next_run_repairs_a_pointer_that_a_dead_run_left_behind(store, settings, monkeypatch):
    promoted(settings, "run-1", "first")
    with monkeypatch.context() as broken:
        broken.setattr(ObjectStore, "swap", cut)
        with pytest.raises(ConnectionError):
            promoted(settings, "run-2", "second", "first")
    assert promotion.champion(store).model == "first"
    with pytest.raises(Refused, match="second is champion now"):
        promoted(settings, "run-3", "third", "first")
    assert promotion.champion(store).model == "second"
    assert promoted(settings, "run-4", "third", "second").version == 3


def test_a_promotion_needs_the_evaluation_that_the_decision_was_made_on(store, settings):
    unbound = decision(settings, "run-1", put_model(settings, "first")).model_copy(update={"evaluation_sha256": {}})
    with pytest.raises(Refused, match=r"evaluation of first is not the one that run-1 was decided on.*champion stays"):
        promotion.apply_decision(store, unbound, "ann")
    assert promotion.champion(store) is None and promotion.history(store) == []


def test_a_rollback_needs_the_evaluation_that_the_promotion_was_decided_on(store, settings):
    promoted(settings, "run-1", "first")
    promoted(settings, "run-2", "second", "first")
    entry = promotion.history(store)[0].model_copy(update={"decision": None})
    overwrite(settings, "registry/history/00001.json", entry.to_bytes())
    with pytest.raises(Refused, match=r"No promotion of first with a decision.*champion stays"):
        promotion.rollback(store, "first", "ann", "Misses too much.")
    assert promotion.champion(store).model == "second"


def test_history_entries_are_never_replaced_or_removed(store, settings):
    promoted(settings, "run-1", "first")
    seen = {}
    for step in (
        lambda: promoted(settings, "run-2", "second", "first"),
        lambda: promotion.rollback(store, "first", "ann", "Misses too much."),
        lambda: promotion.record_rejection(store, decision(settings, "run-3", "second", "first"), "bob", "No."),
        lambda: apply(settings, "run-4", "second", "first", (FAILED,)),
        lambda: promoted(settings, "run-2", "second", "first"),
    ):
        step()
        now = {key: store.get_or_none(key) for key in store.keys("registry/history/")}
        assert now | seen == now
        seen = now
    assert [e.action for e in promotion.history(store)] == [
        "promoted", "promoted", "rolled_back", "refused", "refused",
    ]  # fmt: skip


def test_a_dataset_counts_as_decided_once_a_run_concluded_on_it(store, settings):
    assert not promotion.was_decided(store, 3)
    apply(settings, "run-1", put_model(settings, "first"), None, (FAILED,))
    assert promotion.was_decided(store, 3) and not promotion.was_decided(store, 4)


@pytest.mark.parametrize(
    ("run", "slug"),
    [
        ("manual__2026-01-12T03:00:00+00:00", "manual-2026-01-12T03-00-00-00-00"),
        ("../../models/x", "models-x"),
        ("…", "run"),
        ("a" * 500, "a" * 120),
    ],
)
def test_the_name_of_a_run_is_made_fit_for_a_key(run, slug):
    assert promotion.slug(run) == slug
