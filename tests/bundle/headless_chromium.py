"""Opens pages in headless Chromium over its debugging pipe, presses keys, and tells what they asked for, logged and drew."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run "
    "--disable-dev-shm-usage --remote-debugging-pipe"
)


@dataclass
class Page:
    """What happened while a page was open: URLs asked for, and messages of console and log."""

    session: str
    urls: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    loaded: bool = False


class Chromium:
    """A browser for a test; `with Chromium(tmp_path) as browser: page = browser.open(file, 390)`."""

    def __init__(self, folder: Path, timeout: float = 60) -> None:
        assert PROGRAM is not None, "ask for PROGRAM before"
        self.profile, self.timeout, self.number, self.buffer = folder / "profile", timeout, 0, b""
        to_browser, self.write = os.pipe()
        self.read, from_browser = os.pipe()
        command = f'exec "{PROGRAM}" {FLAGS} --user-data-dir="{self.profile}" about:blank 3<&{to_browser} 4>&{from_browser}'
        self.process = subprocess.Popen(["bash", "-c", command], pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        os.set_blocking(self.read, False)
        self.page: Page | None = None

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError, TimeoutError):
            self.call("Browser.close")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.read)
        os.close(self.write)

    def open(self, place: Path | str, width: int, height: int = 900, dark: bool = False) -> Page:
        """Loads a file or an address at a width in CSS pixels and waits for its load event."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = self.page = Page(self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media="screen", features=scheme)
        self.call("Page.navigate", url=place if isinstance(place, str) else place.resolve().as_uri())
        self._until(lambda _: page.loaded)
        return page

    def evaluate(self, script: str) -> Any:
        """The value of a script in the open page; of a promise, what it comes to."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = 30) -> Any:
        """Waits for a script's value to be true in the open page, and gives it."""
        end = time.monotonic() + seconds
        while not (found := self.evaluate(script)):
            shown = self.evaluate("document.body.innerText")
            assert time.monotonic() < end, f"it did not become true: {script}\n{shown[:3000]}"
            time.sleep(0.05)
        return found

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key of the keyboard, where the focus is: "Tab", "Enter", "Escape", "ArrowDown"."""
        known = {"Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), "ArrowDown": (40, ""), " ": (32, " ")}
        code, text = known[key]
        shared = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **({"text": text} if text else {}), **shared)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def type(self, text: str) -> None:
        """Writes where the focus is."""
        self.call("Input.insertText", text=text)

    def photograph(self, file: Path, *, whole: bool = True) -> None:
        """A PNG of the open page, from its top to its end or to the window's."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        number, message = self.number, {"id": self.number, "method": method, "params": parameters}
        if self.page is not None and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self.page.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda event: event.get("id") == number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return dict(answer["result"])

    def _until(self, wanted: Any) -> dict[str, Any]:
        end = time.monotonic() + self.timeout
        while time.monotonic() < end:
            while b"\0" in self.buffer:
                raw, _, self.buffer = self.buffer.partition(b"\0")
                event = json.loads(raw)
                self._note(event)
                if wanted(event):
                    return dict(event)
            try:
                self.buffer += os.read(self.read, 1 << 16)
            except BlockingIOError:
                time.sleep(0.01)
        raise TimeoutError("Chromium did not answer")

    def _note(self, event: dict[str, Any]) -> None:
        page, what = self.page, event.get("params", {})
        if page is None or event.get("sessionId") != page.session:
            return
        match event.get("method"):
            case "Page.loadEventFired":
                page.loaded = True
            case "Network.requestWillBeSent":
                page.urls.append(what["request"]["url"])
            case "Runtime.consoleAPICalled":
                page.messages.append(str(what["args"]))
            case "Runtime.exceptionThrown":
                page.messages.append(str(what["exceptionDetails"]))
            case "Log.entryAdded":
                page.messages.append(what["entry"]["text"])
