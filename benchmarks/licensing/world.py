"""What the benchmarks of licensing share: a vendor with a tiny bundle, servers as processes, and the books."""

import contextlib
import hashlib
import json
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
# The tiny bundle, which costs next to nothing to explain, is that of the server's tests.
sys.path[:0] = [str(ROOT / "tests" / "server"), str(ROOT / "tests")]

import conftest as tiny
import numpy as np

from keylock.bundle import KeyFile, write_bundle
from keylock.crypto.signing import SigningKey
from keylock.files.atomic import PUBLIC, replacing
from keylock.licensing import License, issue, new_license_id
from keylock.licensing.receipt_keys import ReceiptKey, open_checkpoint
from keylock.licensing.receipts import trusts_any
from keylock.store import LicenseStore, log_table
from keylock.store.logged_charges import compare_with_ledger
from keylock.store.reconcile import Reconciliation, reconcile
from keylock.trigger.keys import Key, KeySeed
from keylock.v1 import explanation_pb2 as pb

RESULTS = ROOT / "benchmarks" / "results" / "licensing"
_START_S = 120.0


@dataclass(frozen=True)
class Books:
    """What the store says at one moment.

    Attributes:
        reconciliation: The ledger beside the counters.
        unlogged: Differences between the ledger and the audit log.
        charged: Units of each request that is charged.
        entries: Digests of the entries of the audit log, which is whole.
    """

    reconciliation: Reconciliation
    unlogged: int
    charged: dict[str, int]
    entries: frozenset[bytes]


@dataclass(frozen=True)
class World:
    """A vendor, its bundle and its store."""

    folder: Path
    store_url: str
    signing_key: SigningKey
    store: LicenseStore

    @classmethod
    def make(cls, folder: Path, store_url: str, **content: object) -> "World":
        """Makes everything anew in a folder.

        Args:
            folder: The folder.
            store_url: The store.
            **content: What the bundle has in place of what the tiny one has.
        """
        seed, signing_key = KeySeed.generate(), SigningKey.generate()
        preprocessing: Any = content.get("preprocessing", tiny.PREPROCESSING)
        key = Key.derive(seed, shape=preprocessing.shape, std=preprocessing.std)
        signing_key.verifying_key.write(folder / "issuer.pub.pem")
        now = datetime.now(UTC)
        ReceiptKey.create(folder / "receipts.pem", signing_key, not_before=now, expires=now + timedelta(days=1))
        vendor = tiny.Vendor(
            folder=folder,
            bundle=folder / "tiny.klb",
            key_file=folder / "key-file",
            seed_file=folder / "seed",
            issuer_file=folder / "issuer.pub.pem",
            store_url=store_url,
            seed=seed,
            key=key,
            signing_key=signing_key,
            store=None,
            manifest=None,
        )
        sealer = KeyFile.create(vendor.key_file)
        write_bundle(vendor.bundle, vendor.content(**content), signing_key=signing_key, seed=seed, sealer=sealer)
        return cls(folder, store_url, signing_key, LicenseStore(store_url))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.close()

    def grant(self, **terms: object) -> tuple[License, str]:
        """Issues a license for a day."""
        now = datetime.now(UTC)
        fields: dict[str, object] = {
            "id": new_license_id(),
            "customer": "Acme",
            "models": ("*",),
            "explainers": ("*",),
            "issued_at": now,
            "not_before": now - timedelta(minutes=1),
            "expires": now + timedelta(days=1),
        }
        license = License.model_validate(fields | terms)
        self.store.add(license, issuer=self.signing_key.key_id)
        return license, issue(license, self.signing_key)

    def books(self) -> Books:
        """Reads all books as they are at one moment, and verifies the tree of the audit log.

        Raises:
            AuditLogError: If the log was cut or changed.
        """
        from sqlalchemy import text

        trusts = trusts_any([self.signing_key.verifying_key])
        with self.store.database.transaction(snapshot=True) as connection:
            log_table.verify(connection, open_checkpoint=lambda signed: open_checkpoint(signed, trusts))
            rows = connection.execute(text("SELECT request_id, units FROM ledger WHERE charged_at IS NOT NULL"))
            return Books(
                reconciliation=reconcile(connection),
                unlogged=len(compare_with_ledger(connection)),
                charged={row.request_id: row.units for row in rows},
                entries=frozenset(hashlib.sha256(entry).digest() for _, entry in log_table.entries(connection)),
            )


class Server:
    """A `keylock serve` in a process of its own."""

    def __init__(
        self,
        world: World,
        name: str,
        *,
        port: int = 0,
        store: bool = True,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """Starts it and returns when it answers.

        Args:
            world: Whose bundle it serves.
            name: Of its files.
            port: Where it listens; 0 takes a free one.
            store: Whether it has the store.
            settings: Further settings, by their names.
        """
        self._ready = world.folder / f"ready-{name}"
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "keylock", "serve", str(world.folder / "tiny.klb"), "--port", str(port)]
        command += ["--key-file", str(world.folder / "key-file"), "--issuer", str(world.folder / "issuer.pub.pem")]
        command += ["--ready-file", str(self._ready), "--log-level", "error"]
        environment = {**os.environ, "KEYLOCK_SERVER_QUEUE": "1024", "KEYLOCK_SERVER_DEADLINE_S": "20"}
        # Pictures of 8 x 8 pixels are hardly told apart: near copies are looked for, and answered.
        environment["KEYLOCK_SERVER_QUERY_GUARD"] = "count"
        environment["KEYLOCK_SERVER_RECEIPT_KEY"] = str(world.folder / "receipts.pem")
        if store:
            environment["KEYLOCK_SERVER_LICENSE_STORE"] = world.store_url
        environment["OMP_NUM_THREADS"] = "1"
        environment |= {f"KEYLOCK_SERVER_{key.upper()}": str(value) for key, value in (settings or {}).items()}
        with (world.folder / f"log-{name}").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        limit = time.monotonic() + _START_S
        while not self._ready.exists():
            if self.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError((world.folder / f"log-{name}").read_text()[-2000:])
            time.sleep(0.02)
        self.target = self._ready.read_text().strip()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.target.rpartition(":")[2])

    @property
    def cpu_s(self) -> float:
        """Seconds of processor time it has used (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """Ends it without warning, as `kill -9` does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Ends it in order, also when it stands still."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=30)
        if self.process.poll() is None:
            self.kill()


def image(seed: int) -> pb.Image:
    """A preprocessed image, different for every seed."""
    array = np.random.default_rng(seed).normal(size=(3, 8, 8)).astype(np.float32)
    return pb.Image(tensor=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=array.shape, data=array.tobytes()))


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL of its own, as the tests start one; yields the URL of an empty database."""
    from postgresql_cluster import Cluster

    cluster = Cluster()
    try:
        yield cluster.new_url()
    finally:
        cluster.close()


def record(name: str, result: dict[str, object], *, folder: Path = RESULTS, shown: bool = True) -> None:
    """Writes a result into a folder, `benchmarks/results/licensing` unless another is named, and prints it."""
    machine = {
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "load_average_at_end": round(os.getloadavg()[0], 1),
        "finished": _now(),
    }
    text = json.dumps({**result, "machine": machine}, indent=2)
    if shown:
        print(text, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{name}.json", mode=PUBLIC) as unfinished:
        unfinished.write_text(text + "\n", "utf-8")


def _processor() -> str:
    """Names the processor (Linux), as far as the machine tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
