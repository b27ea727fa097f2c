"""A page in headless Chromium: opened from disk, a script run in it, what the script returns."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needed = pytest.mark.skipif(PROGRAM is None, reason="no Chromium: apt-get install chromium")


def run(page: Path, script: str, folder: Path, width: int = 1280) -> Any:
    """What the body of an async function returns in the page, as JSON; its errors, and the page's, raise."""
    assert PROGRAM
    added = (
        "<script>addEventListener('error', e => document.body.dataset.error = e.message);\n"
        "(async () => { " + script + " })().then(r => document.body.dataset.result = JSON.stringify(r),"
        " e => document.body.dataset.error = String(e));</script></body>"
    )
    copy = folder / f"driven-{page.name}"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", added), encoding="utf-8")
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [PROGRAM, *quiet.split(), "--disable-component-update", "--disable-sync", f"--window-size={width},900",
               f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", copy.as_uri()]  # fmt: skip
    text = subprocess.run(command, capture_output=True, timeout=120, check=True).stdout.decode()
    body = re.search(r"<body[^>]*>", text)
    assert body, text[:500]
    found = dict(re.findall(r'data-(result|error)="([^"]*)"', body[0]))
    assert "error" not in found, unescape(found["error"])
    return json.loads(unescape(found["result"]))
