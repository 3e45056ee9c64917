"""HAProxy before keylock servers, with the configuration of `deploy/`, as a process."""

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from processes import free_port

__all__ = ["Balancer"]

_CONFIGURATION = Path(__file__).resolve().parents[2] / "deploy" / "haproxy.cfg"
_START_S = 20.0


class Balancer:
    """Divides calls among servers on this machine."""

    def __init__(self, folder: Path, targets: Sequence[str], *, least: int) -> None:
        """Start it and return when it divides calls.

        Args:
            folder: For its files.
            targets: Three addresses of servers.
            least: How many of them must be well; it waits until the others are known to be down.

        Raises:
            RuntimeError: HAProxy is not installed, or does not start; the message says what it says.
        """
        program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
        if program is None:
            raise RuntimeError("HAProxy is not installed here: apt-get install haproxy")
        self.target, self.statistics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        text = _CONFIGURATION.read_text("utf-8")
        # The ports of the file are those of a container.
        text = text.replace("bind :8470", f"bind {self.target}").replace("bind :8404", f"bind {self.statistics}")
        file = folder / "haproxy.cfg"
        file.write_text(text, "utf-8")
        servers = {f"KEYLOCK_{number}": target for number, target in enumerate(targets, 1)}
        self._log = folder / "haproxy.log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [program, "-db", "-f", str(file)], stdout=log, stderr=log, env={**os.environ, **servers}
            )
        limit = time.monotonic() + _START_S
        while self.healthy() < least or len(self._taken()) > least:
            if self.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(self._log.read_text("utf-8", "replace")[-2000:])
            time.sleep(0.05)

    def table(self) -> list[dict[str, str]]:
        """Return HAProxy's own figures, a row for each server."""
        try:
            with urllib.request.urlopen(f"http://{self.statistics}/;csv", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except (urllib.error.URLError, ConnectionError):
            return []
        names = lines[0].removeprefix("# ").split(",")
        rows = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:]]
        return [row for row in rows if row["pxname"] == "keylock" and row["svname"].startswith("keylock-")]

    def _taken(self) -> list[dict[str, str]]:
        """Return the servers that get calls; before their first check, all do."""
        return [row for row in self.table() if row["status"].startswith("UP")]

    def healthy(self) -> int:
        """Return how many servers get calls, by checks that have been made."""
        return sum(row["check_status"] == "L7OK" for row in self._taken())

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)
