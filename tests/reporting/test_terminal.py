"""A run as tables: figures as they are, what was not evaluated as such, names from outside as plain text."""

import io
import math

import report_samples as samples
from rich.console import Console

from cxr_ml.records import Check, Decision, Probe, Ruling
from cxr_ml.reporting import terminal

MARKUP = "[red]x[/]"


def shown(*printed, **options) -> str:
    console = Console(file=io.StringIO(), width=200, **options)
    for one in printed:
        console.print(one)
    return console.file.getvalue()


def whole(run) -> str:
    console = Console(file=io.StringIO(), width=200)
    terminal.show_run(run, console)
    return console.file.getvalue()


def row(text: str, *words: str) -> list[str]:
    """Cells of the only row that has all these words."""
    (line,) = [line for line in text.splitlines() if all(w in line for w in words) and "│" in line]
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_a_run_shows_shortcut_risk_and_new_rulings():
    probe = Probe(sees="border", balanced_accuracy=0.87, chance=0.3333, images=935, limit=0.5)
    ruling = Ruling(
        number=7, sha256="a" * 64, batch="b", file=MARKUP, action="withdraw", label="COVID19", by="dr.a", why="blurred",
        at="2026-01-10T09:00:00+00:00", reasons=("white_box",),
    )  # fmt: skip
    dataset = samples.dataset().model_copy(update={"shortcuts": (probe,)})
    text = whole(samples.run(dataset=dataset, rulings=(ruling,)))
    assert "Warning: A probe that sees only the outer border" in text and "87 % balanced accuracy" in text
    assert f"{MARKUP} withdrawn; it was COVID19 by dr.a: blurred." in text and "Set aside" not in text


def test_a_promoted_run_shows_batches_candidates_checks_and_the_new_champion():
    text = whole(samples.run())
    assert row(text, "accepted", "COVID19") == ["accepted", "COVID19", "305"]
    assert "120 × white_box" in text and "class TUBERCULOSIS rejected: artefact_rate is 0.92" in text
    assert row(text, "recall COVID19") == ["recall COVID19", "0.9778", "", "≥ 0.95", "yes"]
    assert "PROMOTED: Every check passed." in text
    assert "champion: v12 inception_v3-d3-1a2b3c4d" in text


def test_a_refused_run_shows_which_check_shut_the_gate():
    text = whole(samples.run(test=samples.POOR, champion=samples.GOOD))
    assert "gate: shut" in text and "gate: open" not in text
    assert row(text, "recall COVID19") == ["recall COVID19", "0.9", "", "≥ 0.95", "no"]
    assert "REFUSED: Recall of COVID19" in text and "champion: v11 resnet101_v2" in text


def test_a_run_without_decision_and_champion_can_be_shown():
    run = samples.run(evaluations=(), models=(), decision=None, outcome="nothing_new")
    text = whole(run.model_copy(update={"champion": None}))
    assert "batch 2026-01-12" in text and "gate:" not in text and "champion:" not in text


def test_the_champion_stands_once_below_the_candidates():
    text = shown(terminal.candidates_table(samples.run().evaluations))
    champion = [i for i, line in enumerate(text.splitlines()) if "(champion)" in line]
    others = [i for i, line in enumerate(text.splitlines()) if "inception_v3" in line]
    assert len(champion) == 3 and min(champion) > max(others)
    assert row(text, "inception_v3", "COVID19")[2:] == ["0.978", "0.962", "90"]


def test_what_was_not_evaluated_is_not_shown_as_a_number():
    check = Check(
        name="recall COVID19",
        kind="share",
        observed=None,
        operator="≥",
        limit=0.95,
        passed=False,
        reason="Not evaluated.",
    )
    decision = samples.run().decision.model_copy(update={"checks": (check,), "promote": False})
    assert row(shown(terminal.decision_table(decision)), "recall") == [
        "recall COVID19",
        "not evaluated",
        "",
        "≥ 0.95",
        "no",
    ]
    assert "| recall COVID19 | not evaluated |  | ≥ 0.95 | NO |" in terminal.decision_markdown(decision)
    alone = samples.evaluation(test=((90, 0, 0), (0, 0, 0), (0, 0, 90)))
    assert math.isnan(alone.test.classes["COVID19"].recall)
    assert row(shown(terminal.candidates_table([alone])), "COVID19")[2:] == ["nan", "nan", "0"]


def test_names_from_outside_are_printed_as_they_are():
    batch = samples.batch(
        drop=MARKUP, counts={"accepted": {MARKUP: 3}}, reasons={MARKUP: 2}, rejected_classes={MARKUP: MARKUP}
    )
    decision = samples.run().decision.model_copy(update={"reason": MARKUP})
    text = whole(samples.run(batches=(batch,), decision=decision))
    assert f"batch {MARKUP}" in text and f"2 × {MARKUP}" in text
    assert f"class {MARKUP} rejected: {MARKUP}" in text and f"PROMOTED: {MARKUP}" in text
    assert row(text, "accepted") == ["accepted", MARKUP, "3"]


def decision(**changes) -> Decision:
    return samples.run().decision.model_copy(update=changes)


def test_the_question_to_a_human_names_the_model_the_reason_and_every_check():
    lines = terminal.decision_markdown(decision()).splitlines()
    plain = [line.replace("\\", "") for line in lines]
    assert plain[0] == "**inception_v3-d3-1a2b3c4d**: Every check passed."
    assert lines[2:4] == ["| check | observed | 95 % interval | limit | passed |", "|-|-|-|-|-|"]
    assert plain[4] == "| recall COVID19 | 0.9778 |  | ≥ 0.95 | yes |"
    assert len(lines) == 4 + len(decision().checks)
