"""The first page: who is champion, how the last runs ended, what waits for a human, when the next run comes."""

from datetime import UTC, datetime
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from cxr_console import charts, pages, scheduler, store_cache
from cxr_console.access import User
from cxr_ml import layout
from cxr_ml.evaluation import metrics
from cxr_ml.records import Evaluation, HistoryEntry, Model
from cxr_ml.registry import promotion
from cxr_ml.settings import GateSettings

router = APIRouter()
_RUNS = 8
_VERSIONS = 30  # champion versions in the chart


@router.get("/")
def overview(request: Request, user: User) -> HTMLResponse:
    """The page."""
    s, entries = store_cache.settings(), store_cache.history()
    champion = promotion.champion(store_cache.store())
    since = next((e for e in entries if champion and e.number == champion.history), None)
    model = store_cache.record(layout.model_record(champion.model), Model) if champion else None
    figures = store_cache.evaluation(champion.model, entries) if champion else None
    runs = scheduler.runs(_RUNS)
    steps = scheduler.steps(runs)
    return pages.render(
        request,
        user,
        "overview.html",
        "Chest X-ray retraining",
        goes_on=bool(steps),
        champion=champion,
        model=model,
        since=since,
        days=_days(since),
        lines=headline(figures, s.gate) if figures else [],
        runs=list_outcomes(runs, entries),
        steps=steps,
        waiting=scheduler.waiting(),
        schedule=scheduler.schedule(),
        chart=trend(entries, s.gate),
    )


def _days(since: HistoryEntry | None) -> int | None:
    return (datetime.now(UTC) - datetime.fromisoformat(since.at)).days if since else None


def headline(found: Evaluation, s: GateSettings) -> list[dict[str, Any]]:
    """Recall of each class and macro F1 on the test images, each with interval, floor and whether it is met."""
    rows = []
    for name, one in found.test.classes.items():
        floor = s.recall_floors.get(name)
        rows.append(
            {
                "name": f"recall {name}",
                "share": True,
                "value": one.recall,
                "interval": metrics.wilson(one.recall, one.support),
                "floor": floor,
            }
        )
    rows.sort(key=lambda row: -(row["floor"] or 0))
    macro = {"name": "macro F1", "share": False, "value": found.test.macro_f1, "floor": s.macro_f1_floor}
    return [*rows, macro | {"interval": found.test.intervals.get("macro F1")}]


class RunOutcome(NamedTuple):
    """What came of a run."""

    run: scheduler.AirflowRun
    entry: HistoryEntry | None  # its last in the registry's history; None: it came to no decision
    nothing_new: bool  # its record in the store says so; Airflow's "success" alone may be an interrupted run


def list_outcomes(runs: list[scheduler.AirflowRun], entries: list[HistoryEntry]) -> list[RunOutcome]:
    """What came of each run, in the same order."""
    last = {entry.run: entry for entry in entries}
    undecided = [run.name for run in runs if run.state == "success" and run.name not in last]
    nothing_new = store_cache.found_nothing_new(undecided)
    return [RunOutcome(run, last.get(run.name), run.name in nothing_new) for run in runs]


def trend(entries: list[HistoryEntry], s: GateSettings) -> dict[str, Any] | None:
    """Recalls and macro F1 of the champion versions, as the gate saw them when it let each through."""
    seen: dict[str, dict[str, float | None]] = {}
    versions = []
    for entry in entries:
        if entry.decision and entry.action == "promoted":
            seen[entry.model] = {check.name: check.observed for check in entry.decision.checks}
        if entry.version is not None:
            versions.append((f"v{entry.version}", seen.get(entry.model, {})))
    versions = versions[-_VERSIONS:]
    names = [*(f"recall {label}" for label in s.recall_floors), "macro F1"]
    series = {name: [checks.get(name) for _, checks in versions] for name in names}
    values = [v for line in series.values() for v in line if v is not None]
    low = min([0.8, *(int(v * 20) / 20 for v in values)])
    label = "Recall of each class and macro F1 of the champion versions, on the test images of their time"
    return charts.lines(label, [name for name, _ in versions], series, low, 1.0, shares=True)
