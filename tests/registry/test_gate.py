"""Every check can shut the gate on its own, and what was not evaluated shuts it too."""

import math

import pytest
import report_samples as samples
from settings_samples import changed

from cxr_ml.errors import Refused
from cxr_ml.records import Champion, Decision, Evaluation
from cxr_ml.registry import gate
from cxr_ml.settings import Settings

SETTINGS = Settings()
PERFECT = ((90, 0, 0), (0, 90, 0), (0, 0, 90))
CHAMPION = samples.evaluation("resnet101_v2", samples.POOR)


def candidate(test=PERFECT, champion: Evaluation | None = CHAMPION, **changes) -> Evaluation:
    return samples.evaluation("inception_v3", test, champion=champion).model_copy(update=changes)


def decide(*evaluations: Evaluation, champion: str | None = CHAMPION.model, pointed="a" * 64, **settings) -> Decision:
    used = changed(SETTINGS, **settings)
    named = [*evaluations, *(e.champion for e in evaluations if e.champion)]
    records = {e.model: samples.model(e.architecture) for e in named}
    pointer = champion and Champion(version=1, model=champion, artefact_sha256=pointed, history=1)
    return gate.decide(used.gate, used.classes, "run-1", samples.dataset(), evaluations, records, pointer)


def failed(decision: Decision) -> list[str]:
    assert not decision.promote
    return [c.name for c in decision.checks if not c.passed]


def with_metric(label: str, **values) -> Evaluation:
    found = candidate()
    classes = found.test.classes | {label: found.test.classes[label].model_copy(update=values)}
    return found.model_copy(update={"test": found.test.model_copy(update={"classes": classes})})


def test_a_candidate_that_meets_every_floor_and_beats_the_champion_is_promoted():
    decision = decide(candidate())
    assert decision.promote and all(c.passed for c in decision.checks)
    assert {c.name for c in decision.checks} == {
        "evaluated on this dataset", "evaluated these files", "reloaded artefact",
        "test images NORMAL", "test images COVID19", "test images PNEUMONIA",
        "recall COVID19", "recall PNEUMONIA", "recall NORMAL", "F1 COVID19", "F1 PNEUMONIA", "macro F1",
        "macro F1 lost in disguise", "balanced accuracy, lungs hidden",
        "recall COVID19 against champion", "recall PNEUMONIA against champion", "macro F1 against champion",
    }  # fmt: skip


def test_the_first_candidate_needs_no_champion():
    decision = decide(candidate(champion=None), champion=None)
    assert decision.promote and decision.champion is None and "no champion yet" in decision.reason


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"recall_floors": SETTINGS.gate.recall_floors | {"COVID19": 1.01}}, "recall COVID19"),
        ({"recall_floors": SETTINGS.gate.recall_floors | {"PNEUMONIA": 1.01}}, "recall PNEUMONIA"),
        ({"recall_floors": SETTINGS.gate.recall_floors | {"NORMAL": 1.01}}, "recall NORMAL"),
        ({"f1_floors": SETTINGS.gate.f1_floors | {"COVID19": 1.01}}, "F1 COVID19"),
        ({"f1_floors": SETTINGS.gate.f1_floors | {"PNEUMONIA": 1.01}}, "F1 PNEUMONIA"),
        ({"macro_f1_floor": 1.01}, "macro F1"),
    ],
)
def test_one_missed_floor_shuts_the_gate(changes, check):
    assert failed(decide(candidate(), **changes)) == [check]


@pytest.mark.parametrize("label", samples.CLASSES)
def test_too_few_test_images_of_one_class_shut_the_gate(label):
    assert failed(decide(with_metric(label, support=29))) == [f"test images {label}"]
    assert decide(with_metric(label, support=30)).promote


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("label", "metric", "checks"),
    [
        ("COVID19", "recall", ["recall COVID19"]),
        ("PNEUMONIA", "recall", ["recall PNEUMONIA"]),
        ("NORMAL", "recall", ["recall NORMAL"]),
        ("COVID19", "f1", ["F1 COVID19"]),
        ("PNEUMONIA", "f1", ["F1 PNEUMONIA"]),
    ],
)
def test_a_metric_that_is_no_number_shuts_the_gate_and_is_shown_as_not_evaluated(label, metric, checks, value):
    decision = decide(with_metric(label, **{metric: value}))
    assert failed(decision) == checks
    assert all(c.observed is None and "could not be evaluated" in c.reason for c in decision.checks if not c.passed)


def test_a_macro_f1_on_validation_that_is_no_number_shuts_the_gate():
    found = candidate()
    found = found.model_copy(update={"validation": found.validation.model_copy(update={"macro_f1": math.nan})})
    assert failed(decide(found)) == ["macro F1 on validation"]


def test_what_is_missing_what_is_no_number_and_an_empty_class_have_their_own_words():
    reasons = {c.name: c.reason for c in decide(with_metric("COVID19", recall=math.nan, support=0)).checks}
    assert reasons["recall COVID19"] == "recall COVID19 could not be evaluated: it is not a number."
    assert reasons["test images COVID19"] == "test images COVID19 is 0, below the floor 30."
    found = candidate()
    rest = {label: of for label, of in found.test.classes.items() if label != "COVID19"}
    found = found.model_copy(update={"test": found.test.model_copy(update={"classes": rest})})
    assert "recall COVID19 could not be evaluated: it is missing." in [c.reason for c in decide(found).checks]


def test_a_macro_f1_that_is_no_number_shuts_the_gate():
    found = candidate()
    found = found.model_copy(update={"test": found.test.model_copy(update={"macro_f1": math.nan})})
    assert failed(decide(found)) == ["macro F1", "macro F1 lost in disguise", "macro F1 against champion"]


@pytest.mark.parametrize("label", samples.CLASSES)
def test_a_class_that_was_not_evaluated_shuts_the_gate(label):
    found = candidate()
    classes = {k: v for k, v in found.test.classes.items() if k != label}
    found = found.model_copy(update={"test": found.test.model_copy(update={"classes": classes})})
    assert {f"test images {label}", f"recall {label}"} <= set(failed(decide(found)))


def test_an_evaluation_on_another_dataset_shuts_the_gate():
    assert failed(decide(candidate(dataset_sha256="0" * 64))) == ["evaluated on this dataset"]


def test_a_champion_evaluated_on_another_dataset_shuts_the_gate():
    stale = CHAMPION.model_copy(update={"dataset_sha256": "0" * 64})
    assert failed(decide(candidate(champion=stale))) == ["evaluated on this dataset"]


def test_a_champion_that_was_not_evaluated_shuts_the_gate():
    assert failed(decide(candidate(champion=None))) == ["champion"]


def test_the_evaluation_of_another_model_does_not_stand_in_for_the_champion():
    assert failed(decide(candidate(), champion="inception_v3-d1-00000000")) == ["champion"]


def test_the_champion_cannot_be_promoted_over_itself():
    own = samples.evaluation("resnet101_v2", PERFECT)
    found = own.model_copy(update={"champion": own})
    assert failed(decide(found, champion=own.model)) == ["champion"]


@pytest.mark.parametrize("settings", [{"recall_floors": {"COVID19": 0.9, "PNEUMONIA": 0.9}}, {"f1_floors": {}}])
def test_a_missing_floor_shuts_the_gate(settings):
    assert failed(decide(candidate(), **settings)) == ["floors"]


def test_a_floor_for_a_class_that_does_not_exist_shuts_the_gate():
    floors = SETTINGS.gate.recall_floors | {"COVID-19": 0.99}
    assert set(failed(decide(candidate(), recall_floors=floors))) == {"recall COVID-19", "floors"}


def test_a_floor_that_is_no_number_shuts_the_gate():
    floors = SETTINGS.gate.recall_floors | {"NORMAL": math.nan}
    assert failed(decide(candidate(), recall_floors=floors)) == ["recall NORMAL"]


def compared(**changes) -> Evaluation:
    found = candidate()
    return found.model_copy(update={"difference": found.difference.model_copy(update=changes)})


@pytest.mark.parametrize(("low", "passes"), [(-0.05, True), (-0.0501, False)])
def test_the_whole_interval_of_the_difference_must_lie_above_the_margin(low, passes):
    found = compared(intervals=candidate().difference.intervals | {"recall COVID19": (low, 0.1)})
    decision = decide(found)
    assert decision.promote == passes
    check = next(c for c in decision.checks if c.name == "recall COVID19 against champion")
    assert (check.passed, check.observed, check.interval) == (passes, low, (low, 0.1))


def test_a_model_that_a_disguise_deceives_is_refused():
    found = candidate()
    other = {"shrunk": found.test, "sharpened": found.test.model_copy(update={"macro_f1": found.test.macro_f1 - 0.06})}
    decision = decide(found.model_copy(update={"robustness": other}))
    assert failed(decision) == ["macro F1 lost in disguise"]
    assert "as they are and sharpened the macro F1 differs by 0.060, more than 0.05" in decision.reason
    assert decide(found.model_copy(update={"robustness": other}), corruption_limit=0.07).promote


@pytest.mark.parametrize("robustness", [{}, {"shrunk": candidate().test.model_copy(update={"macro_f1": math.nan})}])
def test_disguises_that_were_not_evaluated_shut_the_gate(robustness):
    assert failed(decide(candidate(robustness=robustness))) == ["macro F1 lost in disguise"]


def test_a_margin_of_a_figure_that_is_better_when_low_is_judged_the_other_way_round():
    figures = candidate().difference.figures | {"log loss": 0.2}
    spans = candidate().difference.intervals | {"log loss": (0.1, 0.3)}
    worse = compared(figures=figures, intervals=spans)
    assert failed(decide(worse, margins={"log loss": 0.29})) == ["log loss against champion"]
    assert decide(worse, margins={"log loss": 0.31}).promote


@pytest.mark.parametrize("without", ["figures", "intervals"])
def test_a_difference_that_was_not_evaluated_shuts_the_gate(without):
    rest = {n: v for n, v in getattr(candidate().difference, without).items() if n != "recall COVID19"}
    assert failed(decide(compared(**{without: rest}))) == ["recall COVID19 against champion"]


def test_no_difference_at_all_shuts_the_gate():
    assert failed(decide(candidate(difference=None))) == ["champion"]


def test_a_champion_that_cannot_be_evaluated_shuts_the_gate_with_the_reason():
    decision = decide(candidate(champion=None, champion_problem="The champion x could not be evaluated: it is gone."))
    assert failed(decision) == ["champion"] and "it is gone" in decision.reason


def test_a_margin_for_a_figure_that_does_not_exist_shuts_the_gate():
    assert set(failed(decide(candidate(), margins={"recall COVID": 0.1}))) == {
        "floors", "recall COVID against champion",
    }  # fmt: skip


def test_a_floor_on_the_lower_bound_is_held_against_the_interval():
    assert decide(candidate(samples.GOOD), margins={}).promote
    # 88 of 90: 0.978, the interval from 0.923
    decision = decide(candidate(samples.GOOD), margins={}, floors_on_lower_bound=("recall COVID19",))
    assert failed(decision) == ["recall COVID19, lower bound"]
    check = next(c for c in decision.checks if not c.passed)
    assert check.observed == pytest.approx(0.9226, abs=1e-4) and check.interval[0] == check.observed


def test_a_lower_bound_that_was_not_measured_shuts_the_gate():
    found = candidate()
    found = found.model_copy(update={"test": found.test.model_copy(update={"intervals": {}})})
    assert failed(decide(found, floors_on_lower_bound=("macro F1",))) == ["macro F1, lower bound"]


def test_a_lower_bound_of_what_has_no_floor_shuts_the_gate():
    assert failed(decide(candidate(), floors_on_lower_bound=("recall COVID",))) == ["floors"]


@pytest.mark.parametrize("who", ["candidate", "champion"])
def test_an_evaluation_of_another_file_than_the_record_names_shuts_the_gate(who):
    other = {"artefact_sha256": "0" * 64}
    found = candidate(**other) if who == "candidate" else candidate(champion=CHAMPION.model_copy(update=other))
    assert failed(decide(found)) == ["evaluated these files"]


def test_a_champion_of_another_file_than_the_pointer_names_shuts_the_gate():
    decision = decide(candidate(), pointed="0" * 64)
    assert failed(decision) == ["evaluated these files"]
    assert f"champion {CHAMPION.model} is of another file than the champion's pointer names" in decision.reason


@pytest.mark.parametrize("value", [None, math.nan, 0.0011])
def test_an_artefact_that_does_not_predict_what_was_trained_shuts_the_gate(value):
    assert failed(decide(candidate(reload_difference=value))) == ["reloaded artefact"]


def test_a_model_that_names_the_classes_with_the_lungs_hidden_shuts_the_gate():
    decision = decide(candidate(moved=samples.moved(hidden=0.81)))
    assert failed(decision) == ["balanced accuracy, lungs hidden"] and "not the lungs" in decision.reason
    assert decide(candidate(moved=samples.moved(hidden=0.8))).promote


@pytest.mark.parametrize("moved", [(), samples.moved(hidden=math.nan)])
def test_lungs_that_were_not_hidden_shut_the_gate(moved):
    assert failed(decide(candidate(moved=moved))) == ["balanced accuracy, lungs hidden"]


def test_the_decision_names_who_started_the_run():
    one = candidate(champion=None)
    records = {one.model: samples.model()}
    decision = gate.decide(
        SETTINGS.gate, SETTINGS.classes, "r", samples.dataset(), [one], records, None, {"macro_f1_floor": "0.9"}, "Ada"
    )
    assert (decision.by, decision.overrides) == ("Ada", {"macro_f1_floor": "0.9"})


def test_a_tie_keeps_the_champion():
    equal = samples.evaluation("resnet101_v2", PERFECT)
    assert failed(decide(candidate(PERFECT, equal))) == ["macro F1 against champion"]


def test_the_candidate_is_chosen_on_validation_and_not_on_test():
    better = samples.evaluation("inception_v3", samples.POOR, validation=samples.GOOD)
    luckier = samples.evaluation("mobilenet_v2", PERFECT, validation=samples.POOR)
    assert gate.choose([luckier, better]).model == better.model
    decision = decide(luckier, better, champion=None)
    assert decision.model == better.model and not decision.promote
    assert decision.candidates == (luckier.model, better.model)


def test_a_candidate_without_a_number_on_validation_is_not_chosen():
    nan = samples.evaluation("inception_v3")
    nan = nan.model_copy(update={"validation": nan.validation.model_copy(update={"macro_f1": math.nan})})
    poor = samples.evaluation("mobilenet_v2", validation=samples.POOR)
    assert gate.choose([nan, poor]) is poor and gate.choose([poor, nan]) is poor


def test_no_candidate_is_refused():
    with pytest.raises(Refused, match="at least one evaluated candidate"):
        gate.choose([])


def test_the_reason_names_the_first_failure_and_counts_the_others():
    decision = decide(candidate(samples.POOR))
    first = next(c for c in decision.checks if not c.passed)
    assert decision.reason.startswith(first.reason)
    assert f"{len(failed(decision)) - 1} more" in decision.reason
