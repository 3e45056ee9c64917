"""How soon a server notices that its store was changed under it, and who gets a true map after a revocation.

python benchmarks/licensing/store_changes.py

A server in a process of its own answers two callers with a license, without pause, while its store is replaced,
deleted, made anew, restored from a backup, full (no file of the server may grow) or read-only (a PostgreSQL that takes
no writes, as a standby does). Two seconds later the license is revoked in what the change left behind.
"""

import argparse
import os
import resource
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import grpc
import psycopg
from grpc_health.v1 import health_pb2, health_pb2_grpc
from world import Server, World, image, postgresql, record

from keylock.errors import KeylockError
from keylock.store import LicenseStore
from keylock.store.backup import back_up
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc

_LICENSED = "keylock.v1.ExplanationService"
_WATCHED_S = 3.0


class Callers:
    """Two callers with a license, who ask without pause; the times of their true maps and the reasons of refusals."""

    def __init__(self, target: str, token: str) -> None:
        """Begins to ask."""
        self.true_maps: list[float] = []
        self.refusals: set[str] = set()
        self._target, self._metadata = target, [("authorization", f"Bearer {token}")]
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        with grpc.insecure_channel(self._target) as channel:
            stub = explanation_pb2_grpc.ExplanationServiceStub(channel)
            while not self._ended.is_set():
                began = time.monotonic()
                try:
                    answer = stub.Explain(pb.ExplainRequest(images=[image(1)]), metadata=self._metadata, timeout=20)
                except grpc.RpcError as error:
                    self.refusals.add(error.code().name)
                    time.sleep(0.01)
                else:
                    if answer.results[0].keyed:
                        # What was asked before a change may be answered after it.
                        self.true_maps.append(began)

    def end(self) -> None:
        """Stops asking."""
        self._ended.set()
        for thread in self._threads:
            thread.join()


def _drop_sides(path: Path) -> None:
    for side in ("-wal", "-shm"):
        path.with_name(path.name + side).unlink(missing_ok=True)


def _replace(path: Path, backup: Path) -> None:
    _drop_sides(path)
    backup.rename(path)


def _make_anew(path: Path, backup: Path) -> None:
    path.unlink()
    _drop_sides(path)
    LicenseStore(f"sqlite:///{path}").close()


def _restore(path: Path, backup: Path) -> None:
    with closing(sqlite3.connect(backup)) as source, closing(sqlite3.connect(path)) as target:
        source.backup(target)


def measure(url: str, folder: Path, change: Callable[[Server], None]) -> dict[str, object]:
    """Changes the store of a server that is asked, and returns what was seen."""
    with World.make(folder, url) as made:
        license, token = made.grant()
        if url.startswith("sqlite"):
            back_up(made.store.database, folder / "backup.db")
        server = Server(made, "changed")
        callers = Callers(server.target, token)
        try:
            time.sleep(2.5)  # The server has written other marks since the backup.
            changed = time.monotonic()
            change(server)
            noticed = _wait_until_unwell(server.target, changed)
            time.sleep(max(0.0, 2.0 - (time.monotonic() - changed)))
            revoked = _revoke(url, license.id)
            at = time.monotonic()
            time.sleep(_WATCHED_S)
        finally:
            callers.end()
            server.stop()
    return {
        "noticed_s": round(noticed, 2),
        "last_true_map_s": round(max([one - changed for one in callers.true_maps if one > changed], default=0.0), 2),
        "revoked_there": revoked,
        "true_maps_after_the_revocation": sum(one > at for one in callers.true_maps),
        "true_maps_before": sum(one <= changed for one in callers.true_maps),
        "refusals": sorted(callers.refusals),
    }


def _wait_until_unwell(target: str, changed: float) -> float:
    with grpc.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while stub.Check(health_pb2.HealthCheckRequest(service=_LICENSED)).status == 1:
            if time.monotonic() - changed > 60:
                raise SystemExit("not noticed within a minute")
            time.sleep(0.01)
    return time.monotonic() - changed


def _revoke(url: str, license_id: str) -> bool:
    """Revokes where the store can be written and knows the license."""
    with suppress(KeylockError), LicenseStore(url) as store:
        store.database.migrate()
        found = next((one for one in store.list() if one.license.id == license_id), None)
        if found is not None:
            store.revoke(license_id, at=found.license.issued_at)
            return True
    return False


def main() -> None:
    """Measures every change and records what was seen."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found: dict[str, object] = {}
    on_files: dict[str, Callable[[Path, Path], None]] = {
        "replaced": _replace,
        "deleted": lambda path, _: path.unlink(),
        "made anew": _make_anew,
        "restored": _restore,
    }
    for name, change in on_files.items():
        with tempfile.TemporaryDirectory() as work:
            path = Path(work) / "licenses.db"
            url = f"sqlite:///{path}"
            found[name] = measure(url, Path(work), lambda _, c=change, p=path: c(p, p.with_name("backup.db")))  # type: ignore[misc]
            print(name, found[name], flush=True)
    with tempfile.TemporaryDirectory() as work:

        def fill(server: Server) -> None:
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

        found["full"] = measure(f"sqlite:///{work}/licenses.db", Path(work), fill)
        print("full", found["full"], flush=True)
    with tempfile.TemporaryDirectory() as work, postgresql() as url:

        def forbid_writes(_: Server) -> None:
            with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
                connection.execute("SELECT pg_reload_conf()")

        found["read-only"] = measure(url, Path(work), forbid_writes)
        print("read-only", found["read-only"], flush=True)
    record("store_changes", {"changes": found, "load_average_at_start": round(os.getloadavg()[0], 1)})


if __name__ == "__main__":
    main()
