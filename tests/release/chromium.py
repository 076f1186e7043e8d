"""Pages as a browser without a screen shows them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest


def wider_than(html: str, width: int, folder: Path) -> int:
    """By how many pixels a page is wider than a window of that width. Skips the test where there is no chromium."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("needs chromium")
    (folder / "page.html").write_text(html)
    # A headless window cannot be narrower than 500 pixels, a frame can; only the frame around the page runs a script.
    (folder / "frame.html").write_text(
        f'<iframe id=f src="page.html" style="width:{width}px;height:900px;border:0"></iframe><script>onload=()=>'
        "{const d=f.contentDocument.documentElement;document.title=d.scrollWidth+'/'+d.clientWidth}</script>"
    )
    done = subprocess.run(
        [found, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom",
         f"--user-data-dir={folder}/profile", f"--window-size={width + 40},1000", f"file://{folder}/frame.html"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    content, window = map(int, re.search(r"<title>(\d+)/(\d+)</title>", done.stdout).groups())
    assert content > 0
    return content - window
