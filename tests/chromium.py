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
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, **{str(n): 48 + n for n in range(10)}}


def data_of(page: Path) -> dict[str, Any]:
    """What a page shows, as it stands in it."""
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


#: WCAG 2.2 AA as far as a script can tell: contrast of each visible text with its ground (4.5 : 1, or 3 : 1 where it is
#: large) and of a control's edge or ground (3 : 1), targets of 24 px (but boxes and sliders as the
#: browser draws them), names of controls and pictures, a language and a
#: title; and whether the page is wider than its window.
FAULTS = """
const channel = v => (v /= 255, v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const parts = text => text.match(/[0-9.]+/g).map(Number);
const clear = c => c.length > 3 && c[3] === 0;
const ground = node => { for (let n = node; n; n = n.parentElement) { const c = parts(getComputedStyle(n).backgroundColor); if (!clear(c)) return c; } return dark ? [18, 18, 18] : [255, 255, 255]; };
const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
const open = document.querySelector('dialog[open]');
const seen = n => n.checkVisibility({opacityProperty: true, visibilityProperty: true}) && n.getClientRects().length && (!open || open.contains(n));
const found = [], say = (what, n) => found.push(`${what}: ${n.outerHTML.slice(0, 90)}`);
for (const node of document.querySelectorAll('body *')) {
  const own = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || ['SCRIPT', 'STYLE', 'NOSCRIPT', 'OPTION'].includes(node.tagName) || !seen(node) || node.disabled) continue;
  const style = getComputedStyle(node), size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  const is = ratio(parts(style.color), ground(node));
  if (is < (large ? 3 : 4.5)) say(`contrast ${is.toFixed(2)}`, node);
}
const controls = [...document.querySelectorAll('button, input, select, textarea, summary, a[href]')].filter(seen);
for (const node of controls) {
  const box = node.getBoundingClientRect(), label = node.closest('label')?.getBoundingClientRect();
  if (node.tagName !== 'A' && !['checkbox', 'radio', 'range'].includes(node.type) && Math.max(box.height, label?.height || 0) < 24) say(`${box.height} px high`, node);
  if (node.tabIndex < 0 && !node.disabled) say('no way to it by keys', node);
  const style = getComputedStyle(node), behind = ground(node.parentElement), edge = parts(style.borderTopColor);
  const boxed = parseFloat(style.borderTopWidth) > 0 && style.borderTopStyle !== 'none' && !clear(edge);
  if (['SELECT', 'TEXTAREA'].includes(node.tagName) || (node.tagName === 'INPUT' && ['text', 'search', 'number'].includes(node.type)))
    if (!(boxed && ratio(edge, behind) >= 3) && ratio(ground(node), behind) < 3) say('edge is faint', node);
  const name = node.ariaLabel || node.getAttribute('aria-labelledby') || node.closest('label')?.textContent.trim() || node.labels?.length || node.textContent.trim() || node.title;
  if (!name || (node.tagName === 'SELECT' && !node.ariaLabel && !node.labels.length)) say('no name', node);
}
for (const node of [...document.querySelectorAll('img, svg, canvas, [role=img]')].filter(seen)) {
  const within = node.parentElement.closest('[aria-label], button, figure, [role=img], [aria-hidden=true]');
  const told = node.ariaLabel || node.getAttribute('alt') || node.ariaHidden === 'true' || node.querySelector?.('title');
  const beside = node.getAttribute('alt') === '' && within && (within.ariaLabel || within.ariaHidden === 'true' || within.textContent.trim());
  if (!told && !beside) say('a picture without words', node);
}
if (!document.documentElement.lang || !document.title) found.push('no language or title');
if (document.documentElement.scrollWidth > innerWidth) found.push(`${document.documentElement.scrollWidth} wide in a window of ${innerWidth}`);
return [...new Set(found)];
"""


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

    def show(self, page: Path, width: int, scheme: str = "light") -> None:
        """Open a page from disk, in a window of that width, in light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[dict(name="prefers-color-scheme", value=scheme)])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Page.navigate", url=page.as_uri())
        self.wait(f"location.href === {json.dumps(page.as_uri())} && document.readyState === 'complete'")

    def reload(self) -> None:
        """Load the page anew; what it keeps has been written to the profile by then."""
        time.sleep(1)
        self.run("window.before = true;")
        self.call("Page.reload")
        self.wait("!window.before && document.readyState === 'complete'")

    def wait(self, condition: str) -> None:
        """Until a condition holds in the page, a minute at most."""
        limit = time.monotonic() + 60
        while not self.run(f"return {condition};"):
            assert time.monotonic() < limit, f"after a minute it does not hold that {condition}"
            time.sleep(0.05)

    def faults(self, dark: bool = False) -> list[str]:
        """What keeps people from using what is shown: see FAULTS."""
        return self.run(f"const dark = {json.dumps(dark)};" + FAULTS)

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
        tab.show(page, width)
        yield tab
    finally:
        browser.kill()
        browser.wait()
        os.close(to)
        os.close(back)
