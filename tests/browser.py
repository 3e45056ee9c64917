"""A real browser for tests: Chromium without a window, driven through its debugging protocol."""

import base64
import itertools
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Tab", "find_browser", "open_tab"]


def find_browser() -> str | None:
    """Returns the program of a browser; None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for found in map(shutil.which, names) if found), None)


class _Socket:
    """A connection by WebSocket (RFC 6455) to the browser, as far as its debugging protocol needs one."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._connection = socket.create_connection((place.hostname, place.port), timeout=30)
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        head = f"GET {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        head += f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        self._connection.sendall(head.encode())
        self._bytes = b""
        while b"\r\n\r\n" not in self._bytes:
            self._bytes += self._connection.recv(65536)
        self._bytes = self._bytes.partition(b"\r\n\r\n")[2]

    def send(self, text: str) -> None:
        data, mask = text.encode(), secrets.token_bytes(4)
        length = bytes([0x80 | 127]) + len(data).to_bytes(8, "big")
        masked = bytes(byte ^ mask[number % 4] for number, byte in enumerate(data))
        self._connection.sendall(b"\x81" + length + mask + masked)

    def receive(self) -> str:
        parts = b""
        while True:
            first, second = self._take(2)
            length = second & 127
            if length > 125:
                length = int.from_bytes(self._take(2 if length == 126 else 8), "big")
            content = self._take(length)
            if first & 15 in (0, 1):
                parts += content
                if first & 128:
                    return parts.decode()

    def _take(self, count: int) -> bytes:
        while len(self._bytes) < count:
            part = self._connection.recv(65536)
            assert part, "the browser has gone"
            self._bytes += part
        taken, self._bytes = self._bytes[:count], self._bytes[count:]
        return taken

    def close(self) -> None:
        self._connection.close()


class Tab:
    """A page in the browser."""

    def __init__(self, url: str) -> None:
        self._socket, self._numbers = _Socket(url), itertools.count(1)
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **options: Any) -> Any:
        """Gives a command of the protocol and returns its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": options}))
        while True:
            told = json.loads(self._socket.receive())
            if told.get("id") == number:
                assert "error" not in told, (method, told)
                return told["result"]
            self.events.append(told)

    def run(self, expression: str) -> Any:
        """Returns what an expression of JavaScript is."""
        done = self.command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, expression: str, timeout_s: float = 20.0) -> Any:
        """Waits until an expression is true, and returns what it is."""
        limit = time.monotonic() + timeout_s
        while not (found := self.run(expression)):
            assert time.monotonic() < limit, (expression, self.run("document.body.innerText"), self.complaints())
            time.sleep(0.05)
        return found

    def go(self, url: str) -> None:
        self.command("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def look(self, *, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        """Sets how large the window is, and whether its owner likes it dark."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def choose(self, selector: str, path: Path) -> None:
        """Chooses a file for an input."""
        root = self.command("DOM.getDocument")["root"]["nodeId"]
        node = self.command("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.command("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def press(self, key: str) -> None:
        """Presses a key, `Tab` or `Enter`."""
        code, text = {"Tab": (9, None), "Enter": (13, "\r")}[key]
        more = {} if text is None else {"text": text}
        self.command("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **more)
        self.command("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        self.command("Input.insertText", text=text)

    def picture(self) -> bytes:
        """Returns a picture of the whole page, a PNG."""
        return base64.b64decode(self.command("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def complaints(self) -> list[str]:
        """What the browser said of the page: errors, and what the policy kept out."""
        found = [event["params"]["entry"] for event in self.events if event["method"] == "Log.entryAdded"]
        told = [str(entry["text"]) for entry in found if entry["level"] in ("error", "warning")]
        thrown = [event["params"] for event in self.events if event["method"] == "Runtime.exceptionThrown"]
        return told + [str(one["exceptionDetails"]) for one in thrown]

    def requested(self) -> list[str]:
        """The addresses that the page has asked."""
        sent = [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]
        return [str(url) for url in sent]

    def close(self) -> None:
        self._socket.close()


@contextmanager
def open_tab(folder: Path) -> Iterator[Tab]:
    """Starts a browser with a profile of its own in a folder, and gives its page."""
    browser = find_browser()
    assert browser is not None
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}"]
    options += ["--no-proxy-server", "--remote-allow-origins=*", "about:blank"]
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen([browser, *options], stdout=log, stderr=log, env=os.environ | {"HOME": str(folder)})
    try:
        told, limit = folder / "profile" / "DevToolsActivePort", time.monotonic() + 60
        while not (told.is_file() and told.read_text().count("\n")):
            assert process.poll() is None, (folder / "browser.log").read_text()
            assert time.monotonic() < limit, (folder / "browser.log").read_text()
            time.sleep(0.1)
        port = told.read_text().split("\n")[0]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        pages: list[Any] = []
        # It listens a little before it has a page.
        while not pages:
            assert time.monotonic() < limit, (folder / "browser.log").read_text()
            with opener.open(f"http://127.0.0.1:{port}/json/list", timeout=30) as listed:
                pages = [one for one in json.load(listed) if one["type"] == "page"]
        tab = Tab(pages[0]["webSocketDebuggerUrl"])
        try:
            yield tab
        finally:
            tab.close()
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=20)
