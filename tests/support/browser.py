"""Open a page in headless Chromium and record its behaviour.

Requests, console messages and screenshots are recorded. The browser is controlled through a pipe with its DevTools
protocol (JSON messages ended by a zero byte), so that no port, driver or library is needed.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars"),
    "--force-color-profile=srgb",
)
PATIENCE_MS = 20_000
COMPLAINTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening")


def browser() -> str | None:
    """Return the path of the browser, or None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """An open page with every requested address and every console message, exception and dialog."""

    send: BinaryIO
    receive: BinaryIO
    session: str | None = None
    calls: int = 0
    requests: list[str] = field(default_factory=list)
    complaints: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; record events received meanwhile."""
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.send.write(json.dumps(message).encode() + b"\0")
        self.send.flush()
        while (reply := self.next()).get("id") != self.calls:
            pass
        assert "error" not in reply, reply
        return dict(reply["result"])

    def next(self) -> dict[str, Any]:
        """Read one message."""
        parts = bytearray()
        while (byte := self.receive.read(1)) != b"\0":
            assert byte, "the browser has ended"
            parts += byte
        message: dict[str, Any] = json.loads(parts)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        if message.get("method") in COMPLAINTS:
            self.complaints.append(message)
        return message

    def open(self, place: Path | str, width: int = 1200) -> None:
        """Load a file or an address and wait until it is complete."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.go(place)

    def go(self, place: Path | str) -> None:
        """Load another file or address."""
        self.call("Page.navigate", url=place.resolve().as_uri() if isinstance(place, Path) else place)
        while self.next().get("method") != "Page.loadEventFired":
            pass

    def until(self, script: str) -> Any:
        """Return the awaited value of a JavaScript expression as soon as it is truthy; evaluated every 15 ms."""
        trying = f"""new Promise((done, failed) => {{
            const end = performance.now() + {PATIENCE_MS};
            const attempt = async () => {{
                try {{
                    const value = await ({script});
                    if (value) done(value);
                    else if (performance.now() > end) failed(new Error("never came true"));
                    else setTimeout(attempt, 15);
                }} catch (error) {{ failed(error); }}
            }};
            attempt();
        }})"""
        found = self.call("Runtime.evaluate", expression=trying, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, f"{script}: {found}"
        return found["result"].get("value")

    def enter(self, selector: str, value: str | float) -> None:
        """Set the value of a field and send an input event, as typing does."""
        assign = f"one.value = {json.dumps(value)}; one.dispatchEvent(new Event('input', {{bubbles: true}}));"
        self.value(f"(() => {{ const one = document.querySelector({json.dumps(selector)}); {assign} }})()")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Send a mouse event: moved, pressed, released, or wheel."""
        name = f"mouse{kind.capitalize()}"
        self.call("Input.dispatchMouseEvent", type=name, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        """Press and release the left button."""
        for kind in ("pressed", "released"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def value(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def picture(self) -> bytes:
        """Return the whole page as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def part(self, x: float, y: float, width: float, height: float) -> bytes:
        """Return a part of the window as a PNG."""
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        return base64.b64decode(self.call("Page.captureScreenshot", clip=clip)["data"])


@contextmanager
def page_of(place: Path | str, profile: Path, width: int = 1200) -> Iterator[Page]:
    """Open the file or address in a new browser with an empty profile."""
    program = browser()
    assert program, "no browser found: check browser() first"
    to_browser, write_end = os.pipe()
    read_end, from_browser = os.pipe()
    line = [program, *QUIET, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    plumbing = ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash", *line]
    with (profile.parent / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            plumbing, pass_fds=(to_browser, from_browser), stdout=log, stderr=log, start_new_session=True
        )
    os.close(to_browser)
    os.close(from_browser)
    try:
        with os.fdopen(write_end, "wb") as send, os.fdopen(read_end, "rb") as receive:
            page = Page(send, receive)
            page.open(place, width)
            yield page
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
