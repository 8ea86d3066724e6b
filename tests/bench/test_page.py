"""The report in a real browser, wide and narrow, light and dark.

Chromium is driven over a pipe in its own protocol, for which nothing needs to be installed. The
tests are skipped where there is no Chromium.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
THEMES = ("light", "dark")
WIDTHS = (360, 1280)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium"
)

# Chromium takes commands from descriptor 3 and answers on 4.
LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""

# Of every text on the page: how far its colour is from that of what is behind it.
CONTRASTS = """(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((c) => {
    c /= 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  }).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = channels(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    if (!node.data.trim()) continue;
    const element = node.parentElement, style = getComputedStyle(element);
    const colour = channels(element.closest("svg") ? style.fill : style.color);
    const [low, high] = [luminance(colour), luminance(behind(element))].sort((a, b) => a - b);
    found.push([(high + 0.05) / (low + 0.05), node.data.trim()]);
  }
  return found;
})()"""

# Of every label in a chart: how far it reaches out of its chart, and how high it is.
LABELS = """[...document.querySelectorAll("figure > svg")].flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].map((label) => {
    const box = label.getBoundingClientRect();
    const out = Math.max(frame.left - box.left, box.right - frame.right, 0);
    return [out, box.height, label.textContent];
  });
})"""


class Browser:
    """A headless Chromium."""

    def __init__(self, profile: Path) -> None:
        to_browser, commands = os.pipe()
        answers, from_browser = os.pipe()
        # Above 4, so that the two dup2() calls do not overwrite one another.
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", LAUNCH, *map(str, theirs), str(CHROMIUM)),
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (to_browser, from_browser, *theirs):
            os.close(end)
        self._commands, self._answers = commands, answers
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        try:
            self.call("Browser.close")
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._commands)
            os.close(self._answers)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its answer; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait_for(self, event: str, session: str) -> None:
        """Read until *event* has come."""
        while not any(
            (e.get("method"), e.get("sessionId")) == (event, session) for e in self.events
        ):
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        """Read one message, within 20 s."""
        deadline = time.monotonic() + 20
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], deadline - time.monotonic())
            assert ready, "Chromium says nothing"
            data = os.read(self._answers, 1 << 16)
            assert data, "Chromium has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


class Tab:
    """One page in the browser, on a screen of some width."""

    def __init__(self, browser: Browser, url: str, width: int, theme: str) -> None:
        self._browser = browser
        browser.events.clear()
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session: str = attached["sessionId"]
        self.width = width
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        for domain in ("Page", "Log", "Runtime", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)
        browser.wait_for("Page.loadEventFired", self.session)
        self.evaluate(
            "document.querySelectorAll('details').forEach((each) => { each.open = true })"
        )

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self.session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def events(self, *methods: str) -> list[dict[str, Any]]:
        """Return what has happened on the page."""
        return [
            each["params"]
            for each in self._browser.events
            if each.get("sessionId") == self.session and each.get("method") in methods
        ]

    def screenshot(self) -> bytes:
        """Return the pixels of what is seen first, as PNG's filtered bytes."""
        image = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        assert image.startswith(b"\x89PNG")
        packed, place = b"", 8
        while place < len(image):
            size = int.from_bytes(image[place : place + 4], "big")
            if image[place + 4 : place + 8] == b"IDAT":
                packed += image[place + 8 : place + 8 + size]
            place += size + 12
        return zlib.decompress(packed)

    def close(self) -> None:
        self.call("Page.close")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture
def url(make_run: Callable[..., Path], bench: Callable[..., Any], tmp_path: Path) -> str:
    """A page with all there is: every workload, and a history."""
    path = tmp_path / "report.html"
    history = tmp_path / "history.json"
    done = bench("report", make_run(), "-o", path, "--history", history)
    assert (done.returncode, done.stderr) == (0, "")
    return path.as_uri()


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=THEMES)
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tab(browser: Browser, url: str, width: int, theme: str) -> Iterator[Tab]:
    tab = Tab(browser, url, width, theme)
    yield tab
    tab.close()


def test_the_page_is_readable(tab: Tab, theme: str) -> None:
    """All at once, for a browser takes long to open: a failure says what it is about."""
    assert tab.evaluate("document.documentElement.scrollWidth") <= tab.width, "it scrolls sideways"

    contrasts = tab.evaluate(CONTRASTS)
    assert len(contrasts) > 1000
    assert [each for each in contrasts if each[0] < 4.5] == []

    labels = tab.evaluate(LABELS)
    assert len(labels) > 500
    assert [each for each in labels if each[0] > 2] == [], "labels that are cut off"
    assert [each for each in labels if each[1] < 10] == [], "labels too small to be read"

    # A blank page is of one colour, and its rows are zeros but for their first pixel.
    pixels = tab.screenshot()
    assert len(set(pixels)) > 50
    assert pixels.count(0) < 0.99 * len(pixels)
    brightness = tab.evaluate(
        "Number(getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/)[0])"
    )
    assert (brightness > 128) == (theme == "light")

    assert tab.events("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
    requests = [each["request"]["url"] for each in tab.events("Network.requestWillBeSent")]
    assert len(requests) == 1


@pytest.mark.parametrize(("width", "theme"), [(1280, "light")], indirect=True)
def test_the_keyboard_reaches_what_opens_and_what_scrolls(tab: Tab) -> None:
    def press(key: str) -> None:
        extra = {"text": "\r"} if key == "Enter" else {}
        code = {"Tab": 9, "Enter": 13}[key]
        for kind in ("keyDown", "keyUp"):
            tab.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **(extra if kind == "keyDown" else {}),
            )

    reached = set()
    for _ in range(60):
        press("Tab")
        reached.add(
            tab.evaluate("document.activeElement.className || document.activeElement.tagName")
        )
        if tab.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    assert {"skip", "A", "wide", "SUMMARY"} <= set(reached)
    was_open = tab.evaluate("document.activeElement.parentElement.open")
    press("Enter")
    assert tab.evaluate("document.activeElement.parentElement.open") == (not was_open)
