"""A vendor with a tiny bundle, a store and a license; pictures; and one Ray of two workers that all tests share."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from bulk_jobs import Vendor, draw, environment_of

from keylock.crypto.signing import SigningKey
from keylock.licensing.receipt_keys import ReceiptKey

_SHARED = """
import sys
from keylock.bulk import cluster
with cluster.started(cores=3, gpus=0) as folder:
    import os, ray
    print(ray.get_runtime_context().gcs_address, folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="session")
def vendor(sealed_bundle, tmp_path_factory):
    pytest.importorskip("pyarrow", reason="needs the extra ray")
    from keylock.store import LicenseStore

    folder = tmp_path_factory.mktemp("vendor")
    signing_key, now = SigningKey.generate(), datetime.now(UTC)
    signing_key.verifying_key.write(folder / "issuer.pub.pem")
    ReceiptKey.create(folder / "receipts.pem", signing_key, not_before=now, expires=now + timedelta(days=1))
    store_url = f"sqlite:///{folder / 'licenses.db'}"
    store = LicenseStore(store_url)
    yield Vendor(folder, sealed_bundle, signing_key, store_url, store)
    store.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("pictures") / "data", 29, broken=2)


@pytest.fixture(scope="module")
def shared_ray(tmp_path_factory):
    """A Ray for a module: its address, its folder, and what whoever joins it needs in its variables."""
    pytest.importorskip("ray", reason="needs the extra ray")
    environment = environment_of(tmp_path_factory.mktemp("home"))
    ray = subprocess.Popen(
        [sys.executable, "-c", _SHARED], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    address, _, folder = ray.stdout.readline().strip().partition(" ")
    assert folder, "Ray did not start"
    joining = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{folder}/token"}
    yield address, Path(folder), joining
    ray.stdin.close()
    assert ray.wait(60) == 0
    ray.stdout.close()
    assert not Path(folder).exists()
