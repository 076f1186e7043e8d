"""What a run decides: once, on what is stored."""

import hashlib

import pytest
import report_samples as samples
from run_samples import BETTER, DATASET, MODELS, RUN, concluded, evaluation

from cxr_ml import pipeline, store
from cxr_ml.errors import Refused
from cxr_ml.evaluation import stored_evaluations
from cxr_ml.records import Champion
from cxr_ml.registry import gate, promotion


def test_the_gate_decides_on_what_is_stored(filled):
    decision = pipeline.decide(filled, RUN, MODELS, {"macro_f1_floor": "0.85 → 0.8"})
    assert decision.promote and decision.model == MODELS[0] and decision.candidates == tuple(MODELS)
    assert (decision.run, decision.dataset, decision.champion) == (RUN, 3, None)
    assert decision.overrides == {"macro_f1_floor": "0.85 → 0.8"}
    assert promotion.load_decision(filled, RUN) == decision


def test_a_run_is_decided_once_even_if_the_floors_change_between_two_tries(filled):
    first = pipeline.decide(filled, RUN, MODELS)
    stricter = filled.model_copy(update={"macro_f1_floor": 0.999})
    assert pipeline.decide(stricter, RUN, MODELS) == first
    assert not pipeline.decide(stricter, "another", MODELS).promote


def test_a_run_that_was_decided_on_other_candidates_is_refused(filled):
    pipeline.decide(filled, RUN, MODELS)
    with pytest.raises(Refused, match="A run is decided once"):
        pipeline.decide(filled, RUN, MODELS[:1])


def test_candidates_that_were_not_evaluated_beside_the_champion_of_now_are_refused(filled):
    concluded(filled)
    with pytest.raises(Refused, match=f"evaluation-d3-beside-{MODELS[0]}"):
        pipeline.decide(filled, "next", MODELS[1:])


def test_a_champion_that_could_not_be_evaluated_is_a_refusal_and_no_error(filled):
    concluded(filled)
    problem = {"beside": MODELS[0], "champion_problem": f"The champion {MODELS[0]} could not be evaluated: it is gone."}
    stored_evaluations.save(filled, evaluation("mobilenet_v2", samples.GOOD).model_copy(update=problem))
    decision = pipeline.decide(filled, "next", MODELS[1:])
    assert not decision.promote and "it is gone" in decision.reason
    assert promotion.apply_decision(filled, decision, "ann").action == "refused"


def test_a_decision_keeps_to_the_evaluation_that_it_was_made_on_when_a_later_one_has_the_champion(filled):
    concluded(filled)
    problem = {"beside": MODELS[0], "champion_problem": "It is gone."}
    stored_evaluations.save(filled, evaluation("mobilenet_v2", samples.GOOD).model_copy(update=problem))
    decision = pipeline.decide(filled, "next", MODELS[1:])
    stored_evaluations.save(
        filled, evaluation("mobilenet_v2", samples.GOOD, champion=evaluation("inception_v3", BETTER))
    )
    assert stored_evaluations.load(filled, 3, MODELS[1], MODELS[0]).champion_problem == ""
    assert stored_evaluations.load_decided(filled, decision, MODELS[1]).champion_problem == "It is gone."


def test_the_next_run_meets_the_champion(filled):
    concluded(filled)
    champion = evaluation("inception_v3", BETTER)
    stored_evaluations.save(filled, evaluation("mobilenet_v2", samples.GOOD, champion=champion))
    decision = pipeline.decide(filled, "next", MODELS[1:])
    assert decision.champion == MODELS[0] and not decision.promote
    assert "macro F1 against champion" in [c.name for c in decision.checks if not c.passed]


def test_the_stored_decision_is_what_the_gate_said(filled):
    found = [stored_evaluations.load(filled, 3, name, None) for name in MODELS]
    records = {name: promotion.load_model_record(filled, name) for name in MODELS}
    said = pipeline.decide(filled, RUN, MODELS)
    assert said.model_copy(update={"evaluation_sha256": {}}) == gate.decide(filled, RUN, DATASET, found, records, None)


def test_the_decision_holds_the_hash_of_each_evaluation_that_it_was_made_on(filled):
    held = pipeline.decide(filled, RUN, MODELS).evaluation_sha256
    stored = {name: store.get(filled, f"models/{name}/evaluation.json") for name in MODELS}
    assert held == {name: hashlib.sha256(data).hexdigest() for name, data in stored.items()}


def test_the_gate_stays_shut_where_the_pointer_names_another_file_than_was_evaluated(filled):
    concluded(filled)
    stored_evaluations.save(filled, evaluation("mobilenet_v2", champion=evaluation("inception_v3", BETTER)))
    pointer, etag = store.find_record(filled, "registry/champion.json", Champion)
    tampered = pointer.model_copy(update={"artefact_sha256": "0" * 64})
    assert store.swap(filled, "registry/champion.json", tampered.to_bytes(), etag)
    decision = pipeline.decide(filled, "next", MODELS[1:])
    assert "evaluated these files" in [c.name for c in decision.checks if not c.passed]


def test_a_run_without_a_decision_is_refused_by_name(filled):
    with pytest.raises(Refused, match=r"reports/unknown/decision\.json"):
        promotion.load_decision(filled, "unknown")
