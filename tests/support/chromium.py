"""Pages as a browser without a screen shows them."""

import shutil
from collections.abc import Mapping

import pytest
from playwright.sync_api import sync_playwright


def wider_than(pages: Mapping[str, str], *widths: int) -> list[str]:
    """Which pages are wider than a window, and by how much. Skips the test where there is no chromium.

    Args:
        pages: name -> HTML.
        widths: of windows, in pixels.
    """
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("needs chromium")
    wider = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        shown = browser.new_page()
        for name, html in pages.items():
            shown.set_content(html)
            for width in widths:
                shown.set_viewport_size({"width": width, "height": 900})
                script = "(({scrollWidth, clientWidth}) => [scrollWidth, clientWidth])(document.documentElement)"
                content, window = shown.evaluate(script)
                assert content > 0
                if content > window:
                    wider.append(f"{name}: {content} px in a window of {window}")
        browser.close()
    return wider
