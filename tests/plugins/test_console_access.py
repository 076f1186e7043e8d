"""Every route of the console asks who is there, with each of Airflow's managers of users."""

import re

import httpx
import pytest
from api_server import api_server
from drop_samples import boxed, png, take

from local.state import REPOSITORY

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.usefixtures("handful")]
BAD = "..%2F..%2Fregistry%2Fchampion"
EXAMPLES = {
    "name": "week-1",
    "number": "1",
    "batch": "week-1",
    "path": "index.html",
}


@pytest.fixture(scope="module", params=["simple", "fab"])
def server(request, seaweed, tmp_path_factory):
    with api_server(tmp_path_factory.mktemp(request.param), request.param, seaweed) as (address, tokens):
        yield address, tokens


@pytest.fixture
def ask(server, settings):
    """Asks as a user with a browser's cookie, or as nobody."""
    address, tokens = server

    def asked(user, method, path, **more):
        cookies = {"_token": tokens[user]} if user else {}
        with httpx.Client(base_url=address, cookies=cookies, trust_env=False, verify=False, timeout=300) as client:
            return client.request(method, f"/cxr{path}", **more)

    return asked


def routes():
    """(method, path) of every route, the parts in braces filled in."""
    from cxr_console.app import app

    found = []
    for route in app.routes:
        path = re.sub(r"\{(\w+)(:path)?\}", lambda m: EXAMPLES[m[1]], route.path)
        found += [(method, path) for method in sorted(route.methods - {"HEAD"})]
    return found


def test_the_walk_knows_all_routes():
    methods = [method for method, _ in routes()]
    assert methods.count("POST") == 3 and methods.count("GET") >= 15 and set(methods) == {"GET", "POST"}


def test_nobody_gets_nothing(ask):
    for method, path in routes():
        answer = ask(None, method, path)
        assert answer.status_code == 401, (method, path)
        assert "week-1" not in answer.text
    answer = ask(None, "GET", "/models", headers={"Accept": "text/html"})
    assert answer.status_code == 303 and "/auth/login?next=" in answer.headers["location"]
    forged = ask(None, "GET", "/models", headers={"Authorization": "Bearer eyJhbGciOiJub25lIn0.e30."})
    assert forged.status_code in (401, 403)


def test_a_viewer_reads_and_changes_nothing(ask, store):
    for method, path in routes():
        answer = ask("viewer", method, path, data={"why": "x", "sure": "true"} if method == "POST" else None)
        assert answer.status_code == 403 if method == "POST" else answer.status_code in (200, 400, 404), (method, path)
    assert "reading only" in ask("viewer", "GET", "/").text
    assert "Trigger a retraining" not in ask("viewer", "GET", "/").text.replace("press <b>Trigger a retraining</b>", "")
    assert not list(store.keys(""))


@pytest.fixture
def refused_file(settings):
    """As a form names it: the first refused file of the only drop."""
    batch = take(settings, "2026-01-05", {"train/NORMAL/fit.png": png(1), "train/NORMAL/boxed.png": boxed(2)})
    assert batch.counts["quarantined"] == {"NORMAL": 1}
    return f"{batch.batch}/0"


def test_an_admin_changes_only_with_the_form_of_a_page_of_ones_own(ask, store, refused_file):
    form = {"action": "release", "files": refused_file, "why": "seen", "sure": "true"}
    own = re.search(r'name="token" value="([^"]+)"', ask("admin", "GET", "/quarantine").text)[1]
    strange = own[:-2] + ("AA" if own[-2:] != "AA" else "BB")
    for token in ("", strange, "x"):
        assert ask("admin", "POST", "/quarantine", data=form | {"token": token}).status_code == 403
    for headers in ({"Origin": "https://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = ask("admin", "POST", "/quarantine", data=form | {"token": own}, headers=headers)
        assert answer.status_code == 403
    assert not list(store.keys("rulings/"))
    answer = ask("admin", "POST", "/quarantine", data=form | {"token": own})
    assert answer.status_code == 303, answer.text
    assert len(list(store.keys("rulings/"))) == 1


def test_names_of_an_address_never_reach_a_key_unchecked(ask, refused_file):
    for path in (
        f"/models/{BAD}", f"/models/{BAD}/history.csv", f"/data/drops/{BAD}", f"/quarantine/{BAD}/0", "/models/%00",
        "/thumbnails/x.jpg", f"/thumbnails/{BAD}.jpg", f"/runs/{BAD}", f"/runs/{BAD}/report/index.html",
        "/runs/a/report/../../x.html", "/runs/a/report/run.json", f"/runs/a/report/{BAD}.html", f"/static/{BAD}",
        "/static/..%2Fapp.py", "/data/datasets/999999999999", "/quarantine/week-1/999999", f"/approvals/{BAD}",
        "/models/compare?model=a&model=b",
    ):  # fmt: skip
        answer = ask("admin", "GET", path)
        assert answer.status_code in (400, 404, 422), (path, answer.status_code)
        assert "<script>" not in answer.text


def test_names_from_a_drop_arrive_harmless(ask, settings):
    batch = take(settings, "2026-01-05", {"train/<script>alert(1)/<img src=x onerror=alert(2)>.png": png(1)})
    for path in ("/quarantine", f"/quarantine/{batch.batch}/0", "/data", f"/data/drops/{batch.batch}"):
        text = ask("viewer", "GET", path).text
        assert "<script>alert" not in text and "<img src=x" not in text, path
    assert "&lt;script&gt;alert(1)" in ask("viewer", "GET", "/quarantine").text


def test_every_answer_forbids_what_is_not_ours(ask):
    for method, path in routes():
        headers = ask("admin", method, path).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "unsafe-inline" not in headers["content-security-policy"] or "/report/" in path
        assert "frame-ancestors 'self'" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff"


def test_a_page_of_the_store_is_served_without_its_scripts(ask, store):
    page = b"<script>alert(1)</script><p>report</p>"
    assert store.put_if_absent("reports/run-1/index.html", page, "text/html")
    answer = ask("viewer", "GET", "/runs/run-1/report/index.html")
    assert answer.status_code == 200 and answer.content == page
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox") and "allow-scripts" not in policy and "default-src 'none'" in policy


def test_before_anything_has_run_each_page_says_what_will_be_here_and_how_to_start(ask):
    for path in ("/", "/models", "/data", "/quarantine", "/runs", "/rollback"):
        answer = ask("admin", "GET", path)
        assert answer.status_code == 200
        assert re.search("[Hh]ere will be", answer.text), path


def test_the_console_is_in_airflows_navigation_and_no_plugin_fails(server):
    address, tokens = server
    headers = {"Authorization": f"Bearer {tokens['admin']}"}
    found = httpx.get(f"{address}/api/v2/plugins", headers=headers, trust_env=False).json()["plugins"]
    (plugin,) = [p for p in found if p["name"] == "cxr_console"]
    assert plugin["external_views"][0]["href"] == "/cxr/"
    errors = httpx.get(f"{address}/api/v2/plugins/importErrors", headers=headers, trust_env=False).json()
    assert errors["import_errors"] == []


def test_reading_the_plugin_imports_nothing_heavy():
    text = (REPOSITORY / "plugins" / "cxr_console_plugin.py").read_text()
    assert not re.search(r"^(from|import) (fastapi|pandas|boto3|cxr_console|cxr_ml)", text, re.M)
