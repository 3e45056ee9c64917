"""A real registry for tests, where Debian's docker-registry is installed: on a free port of localhost, in a folder."""

import base64
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

_START_S = 30.0
USER, PASSWORD = "acme", "a-long-password"
# What `htpasswd -nbB -C 4` makes of the password, with a salt of its own.
_HASH = b"$2b$04$keylockkeylockkeylockeGqIr/mckasiUOI0toKD4AERbaR.rdue"


class NotInstalledError(RuntimeError):
    """The program is not here; the message says what is missing."""


class OciRegistry:
    """A running registry.

    Attributes:
        host: Its address, with the port.
        log: What it logged: one line for each request.
    """

    def __init__(self, folder: Path, *, auth: str = "") -> None:
        """Start it; `auth` is a part of its settings, in YAML."""
        program = shutil.which("docker-registry")
        if program is None:
            raise NotInstalledError("docker-registry is not installed here (apt-get install docker-registry)")
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.host = f"localhost:{port}"
        settings = folder / "config.yml"
        settings.write_text(
            "version: 0.1\nlog: {level: warn}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '127.0.0.1:{port}', secret: for-tests}}\n{auth}"
        )
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen([program, "serve", settings], stdout=log, stderr=log, cwd=folder)
        self._wait()

    def _wait(self) -> None:
        limit = time.monotonic() + _START_S
        while time.monotonic() < limit:
            try:
                with urllib.request.urlopen(f"http://{self.host}/v2/", timeout=5):
                    return
            except urllib.error.HTTPError as error:
                with error:
                    return
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"the registry did not start: {(self.folder / 'log').read_text()[-2000:]}")

    def blob(self, digest: str) -> Path:
        """The file in which it keeps a blob."""
        name = digest.removeprefix("sha256:")
        return self.folder / "data/docker/registry/v2/blobs/sha256" / name[:2] / name / "data"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def start(folder: Path, *, auth: str = "") -> OciRegistry:
    """Start a registry, or skip the test where there is none to start."""
    try:
        return OciRegistry(folder, auth=auth)
    except NotInstalledError as error:
        pytest.skip(str(error))


def password_file(folder: Path) -> str:
    """Write a file of the one password, as `htpasswd -B` does, and give the part of the settings that names it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "htpasswd").write_bytes(USER.encode() + b":" + _HASH + b"\n")
    return f"auth: {{htpasswd: {{realm: tests, path: {folder / 'htpasswd'}}}}}\n"


def basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()
