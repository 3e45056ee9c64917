"""A real PostgreSQL for tests, where its programs are installed: a cluster of its own on a free port of localhost."""

import glob
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import psycopg

_START_S = 60.0


class NotInstalledError(RuntimeError):
    """The programs are not here; the message says what is missing."""


def programs() -> Path:
    """Finds the folder of initdb and postgres."""
    folders = [*glob.glob("/usr/lib/postgresql/*/bin"), *glob.glob("/usr/local/opt/postgresql*/bin")]
    beside = shutil.which("initdb")
    folders += [str(Path(beside).parent)] if beside else []
    found = [folder for folder in folders if Path(folder, "initdb").exists() and Path(folder, "postgres").exists()]
    if not found:
        raise NotInstalledError("PostgreSQL is not installed here (no initdb)")
    return Path(sorted(found)[-1])


class Cluster:
    """A running PostgreSQL without passwords, on 127.0.0.1."""

    def __init__(self) -> None:
        self._bin = programs()
        # postgres refuses to run as root; another user must be able to enter the folder.
        self._as_user: list[str] = []
        self.folder = Path(tempfile.mkdtemp(prefix="keylock-postgresql-"))
        if os.geteuid() == 0:
            name = self._some_user()
            shutil.chown(self.folder, name)
            self._as_user = ["setpriv", f"--reuid={name}", f"--regid={name}", "--clear-groups"]
            if shutil.which("setpriv") is None:
                raise NotInstalledError("PostgreSQL does not run as root and setpriv is not installed")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [*self._as_user, self._bin / "initdb", "-D", self.folder / "data", "-U", "keylock"]
        options = ["--auth=trust", "--no-sync", "--encoding=UTF8"]
        subprocess.run([*command, *options], check=True, capture_output=True, cwd="/", env={"LC_ALL": "C"})
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @staticmethod
    def _some_user() -> str:
        import pwd

        for name in ("postgres", "nobody"):
            try:
                pwd.getpwnam(name)
            except KeyError:
                continue
            return name
        raise NotInstalledError("PostgreSQL does not run as root and there is no user for it")

    def start(self) -> None:
        command = [
            *self._as_user,
            str(self._bin / "postgres"),
            *("-D", str(self.folder / "data"), "-p", str(self.port), "-k", str(self.folder)),
            *("-c", "listen_addresses=127.0.0.1", "-c", "max_connections=100", "-c", "shared_buffers=32MB"),
            *("-c", "recovery_init_sync_method=syncfs"),
        ]
        limit = time.monotonic() + _START_S
        while time.monotonic() < limit:
            # Also when it has ended: whoever connects to somewhere may have its port for a moment.
            if self.process is None or self.process.poll() is not None:
                with (self.folder / "log").open("ab") as log:
                    self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", env={"LC_ALL": "C"})
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                time.sleep(0.05)
        raise RuntimeError((self.folder / "log").read_text("utf-8", "replace"))

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends it and breaks all sessions; with SIGQUIT at once, so that the journal is replayed at the next start."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(timeout=120)
            self.process = None

    def new_url(self) -> str:
        """Makes an empty database."""
        name = f"k{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql://keylock@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str) -> None:
        """Runs one statement in the database `postgres`, outside of a transaction."""
        address = f"postgresql://keylock@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(address, autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement)  # type: ignore[call-overload]

    def close(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)
