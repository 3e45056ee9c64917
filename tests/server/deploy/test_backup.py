"""The commands that the documentation has for backups are run, and what was lost since is named."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from keylock.crypto.signing import Home
from keylock.licensing.receipt_keys import ReceiptKey
from keylock.store import LicenseStore
from keylock_client import Client, LicenseRefusedError

PAGE = Path(__file__).parents[3] / "docs" / "operating.md"


def documented(database):
    """Returns the commands that the page has for a database, in their order."""
    section = PAGE.read_text("utf-8").split("## Backup and restore")[1].split("\n## ")[0]
    block = re.search(rf"^{database}:\n\n```console\n(.*?)```", section, re.MULTILINE | re.DOTALL)[1]
    return [line.removeprefix("$ ") for line in block.splitlines()]


@pytest.fixture
def place(store_url, tmp_path, monkeypatch):
    """The URL of a store that the commands of the page find, and its database by name."""
    home = Home.open(tmp_path / "home")
    monkeypatch.setenv("KEYLOCK_HOME", str(home.path))
    monkeypatch.chdir(tmp_path)
    if store_url.startswith("sqlite"):
        return home.licenses_url, "SQLite"
    if shutil.which("pg_dump") is None:
        pytest.skip("pg_dump is not installed here")
    url, service = make_url(store_url), tmp_path / "pg_service.conf"
    service.write_text(f"[keylock]\nhost={url.host}\nport={url.port}\nuser={url.username}\ndbname={url.database}\n")
    service.chmod(0o600)
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    return "postgresql:///?service=keylock", "PostgreSQL"


def run(command, *more, code=0):
    """Runs a command of the page as a shell would; returns what it says."""
    words = [*shlex.split(command), *map(str, more)]
    if words[0] == "keylock":
        words[:1] = [sys.executable, "-m", "keylock"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_a_backup_is_restored_by_the_commands_of_the_page_and_receipts_name_what_is_lost(
    place, start_server, vendor, tiny, tmp_path
):
    url, database = place
    ReceiptKey.create(
        tmp_path / "receipts.pem",
        vendor.signing_key,
        not_before=tiny.now.replace(year=2020),
        expires=tiny.now.replace(year=2100),
    )
    settings = {"license_store": url, "receipt_key": tmp_path / "receipts.pem"}
    backup, *restore, reconcile, with_receipts = documented(database)
    with LicenseStore(url) as store:
        granted, revoked = vendor.grant(store=store), vendor.grant(store=store)

    def explain(calls, names, token):
        with Client(calls.server.target, license=token) as client:
            return [client.explain(tiny.images(1)[0], request_id=name).receipt.token for name in names]

    calls = start_server(**settings)
    receipts = explain(calls, ["a", "b", "c"], granted.token)
    run(backup)
    receipts += explain(calls, ["d", "e"], granted.token)
    with LicenseStore(url) as store:
        store.revoke(revoked.id, at=tiny.now)
    calls.stop().result(timeout=30)
    restored = " ".join("".join(run(command) for command in restore).split())
    if database == "SQLite":
        assert "charges lost 2 (2 units)" in restored
    else:
        assert "charges lost not known" in restored
        assert "what was revoked, suspended or renewed after the backup is not known" in restored
    assert re.search(r"differences +0", run(reconcile))
    (tmp_path / "customers.receipts").write_text("\n".join(receipts))
    said = run(with_receipts, "--issuer", vendor.issuer_file, code=5)
    assert re.findall(r"request '(\w)'", said) == ["d", "e"]
    calls = start_server(**settings)
    assert len(explain(calls, ["f"], granted.token)) == 1
    if database == "SQLite":
        with pytest.raises(LicenseRefusedError, match="was revoked"):
            explain(calls, ["g"], revoked.token)
    calls.stop().result(timeout=30)
    assert re.search(r"differences +0", run(reconcile))
