"""HAProxy and nginx before keylock servers, with the configurations of `deploy/`, as processes."""

import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from processes import free_port

__all__ = ["BALANCERS", "Balancer", "HAProxy", "Nginx"]

_DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"
_START_S: Final = 20.0
# How long a stream may be quiet, in both configurations.
_QUIET: Final = "5m"


class Balancer(ABC):
    """Divides calls among servers on this machine.

    Attributes:
        program: The name of its program.
        notice_s: How long a server must go on taking calls after it has said that it leaves, in seconds.
        target: Where it listens.
    """

    program: ClassVar[str]
    notice_s: ClassVar[float]
    _file: ClassVar[str]
    _port: ClassVar[str]

    def __init__(
        self,
        folder: Path,
        targets: Sequence[str],
        *,
        least: int,
        quiet_s: float | None = None,
        lines: Sequence[str] = (),
    ) -> None:
        """Start it and return when it divides calls.

        Args:
            folder: For its files.
            targets: Three addresses of servers.
            least: How many of them are there.
            quiet_s: How long it leaves a quiet stream alone, in whole seconds, in place of what its file says.
            lines: What stands in place of the line that names its port; the first of them names that port too.

        Raises:
            RuntimeError: Its program is not installed, or does not start; the message says what it says.
        """
        program = self.where()
        if program is None:
            raise RuntimeError(f"{self.program} is not installed here: apt-get install {self.program}")
        self.target = f"127.0.0.1:{free_port()}"
        text = (_DEPLOY / self._file).read_text("utf-8")
        if quiet_s is not None:
            text = re.sub(rf"\b{_QUIET}\b", f"{quiet_s:.0f}s", text)
        if lines:
            [plain] = re.findall(rf"^ *({self._port} :?8470\b.*)$", text, re.MULTILINE)
            text = text.replace(plain, "\n".join(lines))
        file = folder / self._file
        file.write_text(self._here(text, folder, targets), "utf-8")
        self._log = folder / f"{self.program}.log"
        with self._log.open("ab") as log:
            command = [program, *self._arguments(file)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **self._named(targets)})
        limit = time.monotonic() + _START_S
        while not self._divides(least):
            if self.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(self._log.read_text("utf-8", "replace")[-2000:])
            time.sleep(0.05)

    @classmethod
    def where(cls) -> str | None:
        """Return the path of its program, or None where it is not installed."""
        return shutil.which(cls.program) or shutil.which(cls.program, path="/usr/sbin")

    @abstractmethod
    def wait_for(self, count: int) -> None:
        """Return when it gives calls to so many servers again, one of which has just been started."""

    @abstractmethod
    def _here(self, text: str, folder: Path, targets: Sequence[str]) -> str:
        """Return its configuration with the addresses and paths of this machine."""

    @abstractmethod
    def _arguments(self, file: Path) -> list[str]:
        """Return the arguments that keep it in the foreground with a configuration."""

    @abstractmethod
    def _divides(self, least: int) -> bool:
        """Tell whether it divides calls among so many servers, and no others."""

    def _named(self, targets: Sequence[str]) -> dict[str, str]:
        """Return what it reads from the environment."""
        return {}

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)


class HAProxy(Balancer):
    """HAProxy, which asks servers for their health."""

    program = "haproxy"
    notice_s = 3.5
    _file, _port = "haproxy.cfg", "bind"

    def table(self) -> list[dict[str, str]]:
        """Return HAProxy's own figures, a row for each server."""
        try:
            with urllib.request.urlopen(f"http://{self._statistics}/;csv", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except (urllib.error.URLError, ConnectionError):
            return []
        names = lines[0].removeprefix("# ").split(",")
        rows = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:]]
        return [row for row in rows if row["pxname"] == "keylock" and row["svname"].startswith("keylock-")]

    def healthy(self) -> int:
        """Return how many servers get calls, by checks that have been made."""
        return sum(row["check_status"] == "L7OK" for row in self._taken())

    def wait_for(self, count: int) -> None:
        """Return when it has found so many servers well."""
        limit = time.monotonic() + 30
        while self.healthy() < count and time.monotonic() < limit:
            time.sleep(0.05)

    def _taken(self) -> list[dict[str, str]]:
        """Return the servers that get calls; before their first check, all do."""
        return [row for row in self.table() if row["status"].startswith("UP")]

    def _here(self, text: str, folder: Path, targets: Sequence[str]) -> str:
        # The ports of the file are those of a container.
        self._statistics = f"127.0.0.1:{free_port()}"
        return text.replace("bind :8470", f"bind {self.target}").replace("bind :8404", f"bind {self._statistics}")

    def _arguments(self, file: Path) -> list[str]:
        return ["-db", "-f", str(file)]

    def _divides(self, least: int) -> bool:
        return self.healthy() >= least and len(self._taken()) <= least

    def _named(self, targets: Sequence[str]) -> dict[str, str]:
        return {f"KEYLOCK_{number}": target for number, target in enumerate(targets, 1)}


class Nginx(Balancer):
    """nginx, which learns from calls which servers are there."""

    program = "nginx"
    notice_s = 0.0
    _file, _port = "nginx.conf", "listen"
    # For so long a server rests that could not be reached.
    _REST_S: ClassVar[float] = 1.5

    def wait_for(self, count: int) -> None:
        """Return when a server that has just been started has had its rest."""
        time.sleep(self._REST_S)

    def _here(self, text: str, folder: Path, targets: Sequence[str]) -> str:
        for number, target in enumerate(targets, 1):
            text = text.replace(f"keylock-{number}:8470", target)
        text = text.replace("listen 8470", f"listen {self.target}")
        return text.replace("/tmp/keylock-nginx", f"{folder}/keylock-nginx")  # noqa: S108

    def _arguments(self, file: Path) -> list[str]:
        return ["-c", str(file), "-p", str(file.parent), "-e", "stderr", "-g", "daemon off;"]

    def _divides(self, least: int) -> bool:
        host, _, port = self.target.rpartition(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0


BALANCERS: Final[dict[str, type[Balancer]]] = {one.program: one for one in (HAProxy, Nginx)}
