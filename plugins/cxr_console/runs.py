"""Runs and their reports. A report is a page of the store: it is shown with scripts, forms and plugins forbidden."""

import re

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, Response

from cxr_console import overview, pages, scheduler, store_cache
from cxr_console.access import User
from cxr_ml import layout

router = APIRouter()
_PAGE = 50
_RUN = re.compile(r"[A-Za-z0-9.-]{1,120}")  # what promotion.slug leaves
_DOCUMENT = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}/){0,3}[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}\.html")
# A page of the store has styles and pictures within itself, and may do nothing but be read and link: no script runs, so
# that it may keep its origin, by which the console can tell where its links go.
_POLICY = (
    "sandbox allow-same-origin allow-popups allow-popups-to-escape-sandbox; default-src 'none'; img-src data:; "
    "style-src 'unsafe-inline'; frame-ancestors 'self'"
)


@router.get("/runs")
def runs(request: Request, user: User, page: int = 1) -> HTMLResponse:
    """Runs of both DAGs with their outcome, newest first."""
    page = max(1, min(page, 100_000))
    entries = store_cache.history()
    found = scheduler.runs(_PAGE + 1, (page - 1) * _PAGE)
    rows = overview.list_outcomes(found[:_PAGE], entries)
    steps = scheduler.steps(found[:_PAGE])
    values = {"rows": rows, "page": page, "more": len(found) > _PAGE, "waiting": scheduler.waiting(), "steps": steps}
    return pages.render(request, user, "runs.html", "Runs", goes_on=bool(steps), **values)


@router.get("/runs/{name}")
def run(request: Request, user: User, name: str) -> HTMLResponse:
    """One run: its outcome, its report, the way to its logs."""
    if not _RUN.fullmatch(name):
        raise HTTPException(404, f"There is no run of this name. Received: {name[:200]!r}")
    of_airflow = scheduler.run(name)
    entry = next((e for e in reversed(store_cache.history()) if e.run == name), None)
    reported = store_cache.store().exists(layout.report_page(name))
    if of_airflow is None and entry is None and not reported:
        raise HTTPException(404, f"There is no run of this name. Received: {name!r}")
    steps = scheduler.steps([of_airflow]) if of_airflow else {}
    values = {"run": of_airflow, "entry": entry, "reported": reported, "name": name, "steps": steps}
    values["nothing_new"] = entry is None and bool(store_cache.found_nothing_new([name]))
    return pages.render(request, user, "run.html", f"Run {name}", goes_on=bool(steps), **values)


@router.get("/runs/{name}/report/{path:path}")
def report(name: str, path: str, user: User) -> Response:
    """The stored report, or a page beside it."""
    if not _RUN.fullmatch(name) or not _DOCUMENT.fullmatch(path):
        raise HTTPException(404, "There is no such page.")
    content = store_cache.object_bytes(layout.report_file(name, path))
    return Response(content, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": _POLICY})
