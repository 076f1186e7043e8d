"""Templates, and what all pages share."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from airflow.api_fastapi.app import API_ROOT_PATH
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse

from cxr_console import access
from cxr_ml.records import StepProgress
from cxr_ml.reporting import formatting, html_pages, narrative

REFRESH = 5  # seconds after which a page that shows what goes on is loaded anew
_SILENT = 30  # seconds after which it is worth telling that a step told nothing new
_AIRFLOW = API_ROOT_PATH.rstrip("/")
NAVIGATION = (
    ("", "Overview"),
    ("models", "Models"),
    ("data", "Data"),
    ("quarantine", "Quarantine"),
    ("runs", "Runs"),
    ("rollback", "Rollback"),
)


def _day(moment: object) -> str:
    """`2026-01-12 03:00`, of a datetime or an ISO 8601 text in UTC."""
    return str(moment)[:16].replace("T", " ")


def _since(moment: datetime) -> str:
    """`since 14:48 UTC (2 min 3 s)`, with the day where it was another."""
    now = datetime.now(UTC)
    clock = f"{moment:%H:%M}" if moment.date() == now.date() else _day(moment)
    return f"since {clock} UTC ({formatting.about(max(0.0, (now - moment).total_seconds()))})"


def _progress(told: StepProgress) -> str:
    """How far a step has come; where it told so a while ago, also when: it may hang."""
    silent = (datetime.now(UTC) - datetime.fromisoformat(told.at)).total_seconds()
    return formatting.progress(told) + (f" (told {formatting.about(silent)} ago)" if silent >= _SILENT else "")


_ENVIRONMENT = html_pages.make_environment(Path(__file__).with_name("templates"), "html")
_ENVIRONMENT.filters |= {
    "limit_percent": formatting.limit_percent,
    "day": _day,
    "since": _since,
    "progress": _progress,
    "segment": lambda text: quote(str(text), safe=""),
}


def _root(request: Request) -> str:
    """The path below which the console lies, such as `/cxr`."""
    return request.scope.get("root_path", "").rstrip("/")


class Refreshing(NamedTuple):
    """What a page says that shows what goes on: whether and when it was loaded, and how to change that."""

    on: bool  # whether it loads itself anew
    every: int  # seconds
    at: str  # when it was loaded
    here: str  # its own address, without what is said once
    other: str  # the same page that does not refresh itself, or does again


def _refreshing(request: Request) -> Refreshing:
    given = [(name, value) for name, value in request.query_params.multi_items() if name != "said"]
    on = ("still", "1") not in given
    rest = [pair for pair in given if pair[0] != "still"]
    path = quote(request.url.path)
    moving, still = (f"{path}{'?' if pairs else ''}{urlencode(pairs)}" for pairs in (rest, [*rest, ("still", "1")]))
    here, other = (moving, still) if on else (still, moving)
    return Refreshing(on, REFRESH, f"{datetime.now(UTC):%H:%M:%S}", here, other)


def render(
    request: Request,
    user: BaseUser,
    template: str,
    title: str,
    status: int = 200,
    goes_on: bool = False,
    **values: Any,  # noqa: ANN401 - a template takes anything
) -> HTMLResponse:
    """A page; `title` is also the text of its first heading.

    One that shows what `goes_on` is loaded anew by the browser, with or without JavaScript: it must have no form, for
    what was filled in would be lost.
    """
    root = _root(request)
    refreshing = _refreshing(request) if goes_on else None
    html = _ENVIRONMENT.get_template(template).render(
        title=title,
        note=narrative.NOTE,
        here=request.url.path.removeprefix(root).strip("/").split("/")[0],
        navigation=NAVIGATION,
        root=root,
        airflow=_AIRFLOW,
        user=user.get_name(),
        may_change=access.can_change(user),
        token=access.form_token(user),
        said=access.unsealed(request.query_params.get("said", "")),
        refreshing=refreshing,
        **values,
    )
    headers = {"Refresh": f"{REFRESH}; url={refreshing.here}"} if refreshing and refreshing.on else None
    return HTMLResponse(html, status, headers)


def problem(request: Request, status: int, title: str, text: str) -> HTMLResponse:
    """A page that says what went wrong; whoever asks may not be known."""
    root = _root(request)
    html = _ENVIRONMENT.get_template("problem.html").render(
        title=title, text=text, root=root, airflow=_AIRFLOW, note=narrative.NOTE
    )
    return HTMLResponse(html, status)


def login(request: Request) -> RedirectResponse:
    """To Airflow's login, and back here."""
    back = str(request.url)
    return RedirectResponse(f"{_AIRFLOW}/auth/login?{urlencode({'next': back})}", 303)


def back_to(request: Request, path: str, said: str) -> RedirectResponse:
    """To another page of the console, which shows the sentence `said` once."""
    root = _root(request)
    glue = "&" if "?" in path else "?"
    return RedirectResponse(f"{root}/{path}{glue}{urlencode({'said': access.sealed(said)})}", 303)
