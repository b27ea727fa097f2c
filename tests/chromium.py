"""A page in headless Chromium: opened from disk, clicked and typed into as a person does, over the debugging pipe."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needed = pytest.mark.skipif(PROGRAM is None, reason="no Chromium: apt-get install chromium")
QUIET = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe"""
KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, **{str(n): 48 + n for n in range(10)}}


def data_of(page: Path) -> dict[str, Any]:
    """What a page shows, as it stands in it."""
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


class Tab:
    """One page. `troubles` are its errors and what its policy blocked; `loaded` what it asked for beside itself."""

    def __init__(self, to: int, back: int):
        self.to, self.back, self.rest = to, back, b""
        self.numbers, self.events, self.session = itertools.count(1), [], ""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        told = dict(id=number, method=method, params=params, **({"sessionId": self.session} if self.session else {}))
        os.write(self.to, json.dumps(told).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                assert select.select([self.back], [], [], 60)[0], f"Chromium does not answer {method}"
                more = os.read(self.back, 1 << 16)
                assert more, f"Chromium ended at {method}"
                self.rest += more
            one, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(one)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def run(self, body: str) -> Any:
        """What the body of an async function returns in the page, as JSON; its errors raise."""
        told = dict(expression=f"(async () => {{ {body} }})()", awaitPromise=True, returnByValue=True)
        answer = self.call("Runtime.evaluate", **told)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]["exception"]["description"]
        return answer["result"].get("value")

    def click(self, selector: str, number: int = 0) -> None:
        at = f"const e = document.querySelectorAll({json.dumps(selector)})[{number}]; e.scrollIntoView({{block: 'center'}});"
        x, y = self.run(at + "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2];")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        told = dict(key=key, code=key, windowsVirtualKeyCode=KEYS[key])
        self.call("Input.dispatchKeyEvent", type="keyDown", **told, **({"text": "\r"} if key == "Enter" else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    @property
    def troubles(self) -> list[Any]:
        return [e["params"] for e in self.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]

    @property
    def loaded(self) -> list[str]:
        asked = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith("data:image/")]


@contextlib.contextmanager
def opened(page: Path, folder: Path, width: int = 1280) -> Iterator[Tab]:
    """The page in a window of its own, `width` pixels wide; what it saves comes into the folder."""
    assert PROGRAM
    (read, to), (back, write) = os.pipe(), os.pipe()

    def ends() -> None:  # Chromium reads 3 and writes 4, which may be among the four
        here = os.dup(read), os.dup(write)
        os.dup2(here[0], 3)
        os.dup2(here[1], 4)

    command = [PROGRAM, *QUIET.split(), f"--user-data-dir={folder / 'profile'}"]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    browser = subprocess.Popen(command, preexec_fn=ends, close_fds=False, **quiet)
    os.close(read)
    os.close(write)
    try:
        tab = Tab(to, back)
        tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        target = tab.call("Target.createTarget", url="about:blank")["targetId"]
        tab.session = tab.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        tab.call("Page.navigate", url=page.as_uri())
        limit = time.monotonic() + 60
        while not tab.run("return location.protocol === 'file:' && document.readyState === 'complete';"):
            assert time.monotonic() < limit, f"{page} does not load"
            time.sleep(0.05)
        yield tab
    finally:
        browser.kill()
        browser.wait()
        os.close(to)
        os.close(back)
