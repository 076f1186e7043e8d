"""The application: its routes, what every answer bears, and what is said when something goes wrong."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as AnyHTTPException

from cxr_console import access, data, decisions, models, overview, pages, quarantine, runs
from cxr_ml.errors import Refused

# Scripts and styles come from /static only, nothing may be embedded from elsewhere, and only Airflow's own pages may
# frame this one. MDN, Content-Security-Policy.
POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; form-action 'self'; frame-src 'self'; "
    "frame-ancestors 'self'; base-uri 'none'"
)
_STATIC = {
    "console.css": "text/css",
    "console.js": "text/javascript",
    "trigger.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "icon-dark.svg": "image/svg+xml",
}
_TITLES = {401: "Please log in", 403: "Not allowed", 404: "Not found", 422: "Not understood"}

app = FastAPI(title="Chest X-ray console", dependencies=[access.may_read], openapi_url=None)
for module in (overview, models, data, quarantine, runs, decisions):
    app.include_router(module.router)


@app.get("/static/{name}")
def static(name: str) -> Response:
    """Style, script and icons."""
    if name not in _STATIC:
        raise HTTPException(404, "There is no such file.")
    content = Path(__file__).with_name("static").joinpath(name).read_bytes()
    return Response(content, media_type=_STATIC[name], headers={"Cache-Control": "private, max-age=300"})


@app.middleware("http")
async def add_security_headers(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
    """Adds to every answer what tells the browser to run, frame, guess and keep nothing that is not ours."""
    answer = await call(request)
    answer.headers.setdefault("Content-Security-Policy", POLICY)
    answer.headers.setdefault("Cache-Control", "no-store")
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Referrer-Policy"] = "same-origin"
    return answer


@app.exception_handler(AnyHTTPException)
def on_http_error(request: Request, error: AnyHTTPException) -> Response:
    """A page, or the way to the login for a browser that asks for one."""
    if error.status_code == 401 and request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        return pages.login(request)
    title = _TITLES.get(error.status_code, "That did not work")
    return pages.problem(request, error.status_code, title, str(error.detail))


@app.exception_handler(RequestValidationError)
def on_bad_request(request: Request, error: RequestValidationError) -> Response:
    """Says which field of the address or the form is wrong."""
    lines = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}. Received: {e.get('input')!r}" for e in error.errors()]
    return pages.problem(request, 422, _TITLES[422], "\n".join(lines)[:2000])


@app.exception_handler(Refused)
def on_refusal(request: Request, error: Refused) -> Response:
    """The library says what was expected, what it received and what to do."""
    return pages.problem(request, 400, "Refused", str(error))


@app.exception_handler(BotoCoreError)
@app.exception_handler(ClientError)
def on_store_error(request: Request, error: Exception) -> Response:
    """The store is down, or does not accept our keys."""
    return pages.problem(request, 503, "The store does not answer", f"{type(error).__name__}: {error}")
