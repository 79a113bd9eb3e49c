"""Open a page in headless Chromium and watch it: what it asks of the network, what it complains of, how it looks.

The one decision made here: the browser is talked to through a pipe (its DevTools protocol, a JSON message each way,
ended by a zero byte), so there is no port, no driver and no library between test and browser.
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
    """Path of the browser, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """An open page: every address it asked for, and all that it wrote to the console, threw or popped up."""

    send: BinaryIO
    receive: BinaryIO
    session: str | None = None
    asked: int = 0
    requests: list[str] = field(default_factory=list)
    complaints: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command; return its answer, taking note of what happens meanwhile."""
        self.asked += 1
        message = {"id": self.asked, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.send.write(json.dumps(message).encode() + b"\0")
        self.send.flush()
        while (answer := self.next()).get("id") != self.asked:
            pass
        assert "error" not in answer, answer
        return dict(answer["result"])

    def next(self) -> dict[str, Any]:
        """Read one message."""
        parts = bytearray()
        while (byte := self.receive.read(1)) != b"\0":
            assert byte, "the browser is gone"
            parts += byte
        message: dict[str, Any] = json.loads(parts)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        if message.get("method") in COMPLAINTS:
            self.complaints.append(message)
        return message

    def open(self, place: Path | str, width: int = 1200) -> None:
        """Load a file or an address and wait until all of it is there."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.go(place)

    def go(self, place: Path | str) -> None:
        """Load something else."""
        self.call("Page.navigate", url=place.resolve().as_uri() if isinstance(place, Path) else place)
        while self.next().get("method") != "Page.loadEventFired":
            pass

    def until(self, script: str) -> Any:
        """What a piece of JavaScript gives, awaited, once it gives something that counts as true; tried every frame."""
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
        """Give a field a value, as typing does."""
        said = f"one.value = {json.dumps(value)}; one.dispatchEvent(new Event('input', {{bubbles: true}}));"
        self.value(f"(() => {{ const one = document.querySelector({json.dumps(selector)}); {said} }})()")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """A real event of the mouse: moved, pressed, released, or wheel."""
        name = f"mouse{kind.capitalize()}"
        self.call("Input.dispatchMouseEvent", type=name, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        """Press and release the left button."""
        for kind in ("pressed", "released"):
            self.mouse(kind, x, y, button="left", clickCount=1)

    def value(self, script: str) -> Any:
        """What a piece of JavaScript gives."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def picture(self) -> bytes:
        """The whole page as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def part(self, x: float, y: float, width: float, height: float) -> bytes:
        """A part of what is in the window as a PNG."""
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        return base64.b64decode(self.call("Page.captureScreenshot", clip=clip)["data"])


@contextmanager
def page_of(place: Path | str, profile: Path, width: int = 1200) -> Iterator[Page]:
    """The file or address, open in a browser of its own with an empty profile."""
    program = browser()
    assert program, "ask browser() first"
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
