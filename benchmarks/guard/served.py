"""A server of a bundle in a process of its own, with its query guard as it is by default."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keylock.bundle import open_bundle

_START_S = 120.0


@contextmanager
def serving(bundle: Path) -> Iterator[str]:
    """Serve a bundle without its key, and yield where: `host:port`. It remembers nothing yet."""
    with tempfile.TemporaryDirectory(prefix="keylock-guard-") as name:
        ready, log, issuer = (Path(name) / part for part in ("ready", "log", "issuer.pub.pem"))
        with open_bundle(bundle, trusted=None) as opened:
            opened.issuer.write(issuer)
        command = [
            sys.executable,
            "-m",
            "keylock",
            "serve",
            str(bundle.absolute()),
            "--keyless",
            "--issuer",
            str(issuer),
        ]
        command += ["--host", "127.0.0.1", "--port", "0", "--ready-file", str(ready)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("KEYLOCK_")}
        with log.open("wb") as written:
            process = subprocess.Popen(command, stdout=written, stderr=written, env=environment, cwd=name)
        try:
            until = time.monotonic() + _START_S
            while not ready.is_file():
                if process.poll() is not None or time.monotonic() > until:
                    sys.exit(f"the server does not start: {log.read_text('utf-8', errors='replace')}")
                time.sleep(0.05)
            yield ready.read_text("utf-8").strip()
        finally:
            process.terminate()
            process.wait()
