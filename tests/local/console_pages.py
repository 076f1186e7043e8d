"""Airflow's UI and the console in it, as a user with a browser handles them."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import FrameLocator, Page, sync_playwright

NAVIGATION = ("Overview", "Models", "Data", "Quarantine", "Runs", "Rollback")


@contextmanager
def logged_in(address: str, password: str) -> Iterator[tuple[Page, list[str]]]:
    """A page of Airflow in a real Chromium, and what its console complained of."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(300_000)
        complaints: list[str] = []
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" and "/cxr/" in str(m) else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        # It leads to the login, and from there back.
        page.goto(f"{address}/cxr/models")
        page.fill("input[name=username]", "admin")
        page.fill("input[name=password]", password)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{address}/cxr/models")
        page.goto(f"{address}/")
        yield page, complaints
        browser.close()


def console(page: Page) -> FrameLocator:
    """Opens the console through Airflow's own navigation."""
    page.get_by_role("link", name="X-rays").click()
    return page.frame_locator("iframe")


def trigger(page: Page, sections: dict[str, dict[str, object]]) -> dict:
    """Triggers a retraining from the console's button and Airflow's form; what the server says.

    Args:
        page: of Airflow.
        sections: of the form, each with the fields that are changed in it; True turns a switch.
    """
    console(page).get_by_role("link", name="Trigger a retraining").click()
    form = page.get_by_role("dialog")
    for section, fields in sections.items():
        first = form.locator(
            f"[id='switch:element_{next(iter(fields))}'], input[name=element_{next(iter(fields))}]"
        ).first
        form.get_by_role("button", name=section, exact=True).wait_for()
        if not first.is_visible():  # only one section is open at a time
            form.get_by_role("button", name=section, exact=True).click()
        for name, value in fields.items():
            if value is True:
                form.locator(f"[id='switch:element_{name}']").click()
            else:
                form.locator(f"input[name=element_{name}]").fill(str(value))
                form.locator(f"input[name=element_{name}]").press("Tab")
    submit = form.get_by_test_id("trigger-dag-submit")
    with page.expect_response(lambda r: r.request.method == "POST" and r.url.endswith("/dagRuns")) as answer:
        submit.click()
    assert answer.value.status == 200, answer.value.text()
    return json.loads(answer.value.text())
