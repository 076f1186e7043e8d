"""What a run decides: once, on what is stored."""

import hashlib

import pytest
import report_samples as samples
from run_samples import BETTER, DATASET, MODELS, RUN, concluded, evaluation

from cxr_ml import pipeline
from cxr_ml.errors import Refused
from cxr_ml.evaluation import stored_evaluations
from cxr_ml.records import Champion
from cxr_ml.registry import gate, promotion
from cxr_ml.store import ObjectStore


def test_the_gate_decides_on_what_is_stored(store, filled):
    decision = pipeline.decide(store, filled.gate, filled.classes, RUN, MODELS, {"macro_f1_floor": "0.85 → 0.8"})
    assert decision.promote and decision.model == MODELS[0] and decision.candidates == tuple(MODELS)
    assert (decision.run, decision.dataset, decision.champion) == (RUN, 3, None)
    assert decision.overrides == {"macro_f1_floor": "0.85 → 0.8"}
    assert promotion.load_decision(store, RUN) == decision


def test_a_run_is_decided_once_even_if_the_floors_change_between_two_tries(store, filled):
    first = pipeline.decide(store, filled.gate, filled.classes, RUN, MODELS)
    stricter = filled.replace(gate={"macro_f1_floor": 0.999})
    assert pipeline.decide(ObjectStore(stricter.store), stricter.gate, stricter.classes, RUN, MODELS) == first
    assert not pipeline.decide(ObjectStore(stricter.store), stricter.gate, stricter.classes, "another", MODELS).promote


def test_a_run_that_was_decided_on_other_candidates_is_refused(store, filled):
    pipeline.decide(store, filled.gate, filled.classes, RUN, MODELS)
    with pytest.raises(Refused, match="A run is decided once"):
        pipeline.decide(store, filled.gate, filled.classes, RUN, MODELS[:1])


def test_candidates_that_were_not_evaluated_beside_the_champion_of_now_are_refused(store, filled):
    concluded(filled)
    with pytest.raises(Refused, match=f"evaluation-d3-beside-{MODELS[0]}"):
        pipeline.decide(store, filled.gate, filled.classes, "next", MODELS[1:])


def test_a_champion_that_could_not_be_evaluated_is_a_refusal_and_no_error(store, filled):
    concluded(filled)
    problem = {"beside": MODELS[0], "champion_problem": f"The champion {MODELS[0]} could not be evaluated: it is gone."}
    stored_evaluations.save(store, evaluation("mobilenet_v2", samples.GOOD).model_copy(update=problem))
    decision = pipeline.decide(store, filled.gate, filled.classes, "next", MODELS[1:])
    assert not decision.promote and "it is gone" in decision.reason
    assert promotion.apply_decision(store, decision, "ann").action == "refused"


def test_a_decision_keeps_to_the_evaluation_that_it_was_made_on_when_a_later_one_has_the_champion(store, filled):
    concluded(filled)
    problem = {"beside": MODELS[0], "champion_problem": "It is gone."}
    stored_evaluations.save(store, evaluation("mobilenet_v2", samples.GOOD).model_copy(update=problem))
    decision = pipeline.decide(store, filled.gate, filled.classes, "next", MODELS[1:])
    stored_evaluations.save(
        store, evaluation("mobilenet_v2", samples.GOOD, champion=evaluation("inception_v3", BETTER))
    )
    assert stored_evaluations.load(store, 3, MODELS[1], MODELS[0]).champion_problem == ""
    assert stored_evaluations.load_decided(store, decision, MODELS[1]).champion_problem == "It is gone."


def test_the_next_run_meets_the_champion(store, filled):
    concluded(filled)
    champion = evaluation("inception_v3", BETTER)
    stored_evaluations.save(store, evaluation("mobilenet_v2", samples.GOOD, champion=champion))
    decision = pipeline.decide(store, filled.gate, filled.classes, "next", MODELS[1:])
    assert decision.champion == MODELS[0] and not decision.promote
    assert "macro F1 against champion" in [c.name for c in decision.checks if not c.passed]


def test_the_stored_decision_is_what_the_gate_said(store, filled):
    found = [stored_evaluations.load(store, 3, name, None) for name in MODELS]
    records = {name: promotion.load_model_record(store, name) for name in MODELS}
    said = pipeline.decide(store, filled.gate, filled.classes, RUN, MODELS)
    assert said.model_copy(update={"evaluation_sha256": {}}) == gate.decide(
        filled.gate, filled.classes, RUN, DATASET, found, records, None
    )


def test_the_decision_holds_the_hash_of_each_evaluation_that_it_was_made_on(store, filled):
    held = pipeline.decide(store, filled.gate, filled.classes, RUN, MODELS).evaluation_sha256
    stored = {name: store.get(f"models/{name}/evaluation.json") for name in MODELS}
    assert held == {name: hashlib.sha256(data).hexdigest() for name, data in stored.items()}


def test_the_gate_stays_shut_where_the_pointer_names_another_file_than_was_evaluated(store, filled):
    concluded(filled)
    stored_evaluations.save(store, evaluation("mobilenet_v2", champion=evaluation("inception_v3", BETTER)))
    pointer, etag = store.load_or_none("registry/champion.json", Champion)
    tampered = pointer.model_copy(update={"artefact_sha256": "0" * 64})
    assert store.swap("registry/champion.json", tampered.to_bytes(), etag)
    decision = pipeline.decide(store, filled.gate, filled.classes, "next", MODELS[1:])
    assert "evaluated these files" in [c.name for c in decision.checks if not c.passed]


def test_a_run_without_a_decision_is_refused_by_name(store, filled):
    with pytest.raises(Refused, match=r"reports/unknown/decision\.json"):
        promotion.load_decision(store, "unknown")
