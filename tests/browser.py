"""A real headless browser for tests of pages: what overlaps, what sticks out, what cannot be read, and a picture."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAIT_SECONDS = 60

PROBLEMS = """(() => {
  const found = [], boxes = [];
  const luminance = text => {
    const parts = text.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const background = node => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$|transparent/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.textContent.trim() || node.parentElement.closest("style, title, details:not([open]) > :not(summary)")) continue;
    const style = getComputedStyle(node.parentElement);
    const svg = node.parentElement.closest("svg");
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const size = parseFloat(style.fontSize) * scale;
    const text = node.textContent.trim().slice(0, 40);
    if (size < 7.5) found.push(`${size.toFixed(1)} px is too small to read: ${text}`);
    const light = luminance(svg ? style.fill : style.color), dark = luminance(background(node.parentElement));
    const contrast = (Math.max(light, dark) + 0.05) / (Math.min(light, dark) + 0.05);
    if (contrast < 4.5) found.push(`contrast ${contrast.toFixed(1)} is too low: ${text}`);
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects())
      if (box.width > 1 && box.height > 1) boxes.push({box, text, scroll: node.parentElement.closest(".scroll")});
  }
  for (let one = 0; one < boxes.length; one++) for (let two = one + 1; two < boxes.length; two++) {
    const a = boxes[one].box, b = boxes[two].box;
    if (boxes[one].scroll !== boxes[two].scroll) continue;
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 2 && high > 0.35 * Math.min(a.height, b.height)) found.push(`overlap: ${boxes[one].text} | ${boxes[two].text}`);
  }
  const page = document.documentElement;
  if (page.scrollWidth > page.clientWidth) found.push(`wider than the window: ${page.scrollWidth} > ${page.clientWidth}`);
  return JSON.stringify({found, texts: boxes.length});
})()"""


def find_browser() -> str | None:
    """Return the program of a browser that understands the DevTools protocol, None if this machine has none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a page found."""

    problems: list[str]
    num_texts: int
    picture: bytes
    """PNG of the whole page."""

    def num_colours(self) -> int:
        """Return the number of different colours in the picture."""
        with Image.open(io.BytesIO(self.picture)) as image:
            return len(image.convert("RGB").getcolors(image.width * image.height) or ())


@dataclass(slots=True)
class Browser:
    """A browser with one page."""

    socket: websocket.WebSocket
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def look(self, file: Path, *, width: int, dark: bool) -> Look:
        """Open a local file as a window of that width shows it."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url=file.absolute().as_uri())
        while self._evaluate("document.readyState + location.href") != "complete" + file.absolute().as_uri():
            time.sleep(0.02)
        values = json.loads(self._evaluate(PROBLEMS))
        picture = self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        return Look(values["found"], values["texts"], base64.b64decode(picture))

    def _evaluate(self, script: str) -> str:
        return str(self._call("Runtime.evaluate", expression=script, returnByValue=True)["result"]["value"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result


@contextmanager
def running_browser(program: str, folder: Path) -> Iterator[Browser]:
    """Run a browser for the length of the block, with a profile of its own in ``folder``."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    process = subprocess.Popen(
        [program, *flags, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        file, limit = folder / "DevToolsActivePort", time.monotonic() + WAIT_SECONDS
        while not (file.is_file() and file.read_text().count("\n")):
            assert time.monotonic() < limit and process.poll() is None, "the browser did not start"
            time.sleep(0.05)
        port = file.read_text().split("\n")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=WAIT_SECONDS) as response:
            (target,) = [row for row in json.load(response) if row["type"] == "page"]
        socket = websocket.create_connection(
            target["webSocketDebuggerUrl"], timeout=WAIT_SECONDS, suppress_origin=True, http_no_proxy=["127.0.0.1"]
        )
        try:
            yield Browser(socket)
        finally:
            socket.close()
    finally:
        process.terminate()
        process.wait()
