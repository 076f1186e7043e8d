"""Templates, and what all pages share."""

from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from airflow.api_fastapi.app import API_ROOT_PATH
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse

from cxr_console import access
from cxr_ml.release import pages as library
from cxr_ml.release import reading, words

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


_ENVIRONMENT = library.environment(Path(__file__).with_name("templates"), "html")
_ENVIRONMENT.filters |= {
    "limit_percent": words.limit_percent,
    "day": _day,
    "segment": lambda text: quote(str(text), safe=""),
}


def _root(request: Request) -> str:
    """The path below which the console lies, such as `/cxr`."""
    return request.scope.get("root_path", "").rstrip("/")


def render(
    request: Request,
    user: BaseUser,
    template: str,
    title: str,
    status: int = 200,
    **values: Any,  # noqa: ANN401 - a template takes anything
) -> HTMLResponse:
    """A page; `title` is also the text of its first heading."""
    root = _root(request)
    html = _ENVIRONMENT.get_template(template).render(
        title=title,
        note=reading.NOTE,
        here=request.url.path.removeprefix(root).strip("/").split("/")[0],
        navigation=NAVIGATION,
        root=root,
        airflow=_AIRFLOW,
        user=user.get_name(),
        may_change=access.can_change(user),
        token=access.form_token(user),
        said=access.unsealed(request.query_params.get("said", "")),
        **values,
    )
    return HTMLResponse(html, status)


def problem(request: Request, status: int, title: str, text: str) -> HTMLResponse:
    """A page that says what went wrong; whoever asks may not be known."""
    root = _root(request)
    html = _ENVIRONMENT.get_template("problem.html").render(
        title=title, text=text, root=root, airflow=_AIRFLOW, note=reading.NOTE
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
