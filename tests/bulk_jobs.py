"""Jobs of `keylock explain-many` for tests: a vendor, pictures, and the command in a process of its own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keylock.bundle import open_bundle
from keylock.crypto.signing import SigningKey
from keylock.licensing import License, issue, new_license_id

PATIENCE_S = 240


@dataclass
class Vendor:
    """Whose pictures are explained, with everything that is secret."""

    folder: Path
    bundle: Any
    signing_key: SigningKey
    store_url: str
    store: Any

    def grant(self, **terms: Any) -> Path:
        """Issues a license and returns its file."""
        now = datetime.now(UTC)
        fields = {
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
        path = self.folder / f"{license.id}.license"
        path.write_text(issue(license, self.signing_key) + "\n")
        return path

    def arguments(self, data: Path, out: Path, *, license: Path | None, block_size: int = 8) -> list[str]:
        """Returns the arguments of a job."""
        given = [str(self.bundle.path), "--data", str(data), "--out", str(out), "--block-size", str(block_size)]
        given += ["--key-file", str(self.bundle.key_file), "--issuer", str(self.bundle.issuer)]
        given += ["--issuer", str(self.folder / "issuer.pub.pem"), "--license-store", self.store_url]
        given += ["--receipt-key", str(self.folder / "receipts.pem")]
        return [*given, "--no-charge"] if license is None else [*given, "--license-file", str(license)]


def draw(folder: Path, count: int, *, side: int = 20, broken: int = 0) -> Path:
    """Draws pictures, half of them in a folder below; and files that are none."""
    generator = np.random.default_rng(side)
    (folder / "below").mkdir(parents=True)
    for number in range(count):
        coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR)
        picture.save(folder / ("below" if number % 2 else "") / f"{number:03}.png", compress_level=1)
    for number in range(broken):
        (folder / f"broken-{number}.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    return folder


def environment_of(home: Path) -> dict[str, str]:
    """Returns the variables of a process with a home folder that cannot be written to."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KEYLOCK", "RAY"))}
    return {**kept, "HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """Starts `keylock explain-many`."""
    command = [sys.executable, "-m", "keylock", "explain-many", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(arguments: list[str], environment: dict[str, str]) -> tuple[int, Any, str]:
    """Runs it; returns the exit code, the document that it printed, and what it said beside that."""
    with start([*arguments, "--json"], environment) as process:
        told, said = process.communicate(timeout=PATIENCE_S)
    return process.returncode, json.loads(told) if told else None, said


def made_job(vendor: Vendor, data: Path, out: Path, **changes: Any) -> Any:
    """Makes a job, of blocks of four images unless told otherwise, as the command does."""
    from keylock.bulk.job import Asked, Job
    from keylock.bulk.plan import make_blocks
    from keylock.bulk.sources import Place, list_data

    with open_bundle(vendor.bundle.path, trusted=None) as bundle:
        model = bundle.manifest.model_digest
    fields = {
        "model": model,
        "explainer": "grad_cam",
        "target": -1,
        "data": str(data),
        "column": "",
        "limit": None,
        "block_size": 4,
        "map_dtype": "float32",
        "prediction": "public",
        "keyed": True,
        "license": None,
    }
    asked = Asked(**fields | changes)
    place = Place.of(str(data))
    listing = list_data(place, column=None)
    out.mkdir()
    blocks = make_blocks(place, listing, size=asked.block_size, limit=None)
    job = Job.begin(out, asked, listing.kind, listing.column, blocks)
    job.prepare()
    return job


def order_for(vendor: Vendor, job: Any, **changes: Any) -> Any:
    """Returns what a worker of such a job is told."""
    from keylock.bulk.worker import WorkerOrder

    fields = {
        "folder": str(job.folder),
        "job": job.id,
        "column": "",
        "asked": job.asked,
        "batch_size": 2,
        "max_pixels": None,
        "settings": {"bundle": str(vendor.bundle.path), "key_file": str(vendor.bundle.key_file)},
        "offline_license": None,
        "variables": None,
    }
    return WorkerOrder(**fields | changes)


def cashier_of(vendor: Vendor, license: Path, **changes: Any) -> tuple[Any, list[float]]:
    """Returns what charges a license, at three units for an image, and the list of its waits."""
    from keylock.bulk.charging import Cashier
    from keylock_server import ServerSettings

    fields = {
        "bundle": vendor.bundle.path,
        "issuers": (vendor.bundle.issuer, vendor.folder / "issuer.pub.pem"),
        "license_store": vendor.store_url,
        "receipt_key": vendor.folder / "receipts.pem",
        "prices": {"grad_cam": 3},
    }
    with open_bundle(vendor.bundle.path, trusted=None) as bundle:
        manifest, signer = bundle.manifest, bundle.issuer
    entry = next(one for one in manifest.explainers if one.name == "grad_cam")
    settings = ServerSettings(**fields | changes)
    waits: list[float] = []
    cashier = Cashier(
        settings, license.read_text().strip(), manifest=manifest, entry=entry, signer=signer, sleep=waits.append
    )
    return cashier, waits
