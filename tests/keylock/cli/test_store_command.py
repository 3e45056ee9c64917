"""`keylock store`: migrate, check, back up."""

import json
import stat

import pytest

pytest.importorskip("sqlalchemy")

from keylock.cli import main
from keylock.store.migrations import HEAD


def test_store_migrates_checks_and_backs_up(tmp_path, capsys, store_url):
    option = ["--store", store_url, "--json"]
    assert main(["store", "migrate", *option]) == 0
    assert json.loads(capsys.readouterr().out)["schema_before"] is None
    assert main(["store", "check", *option]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["licenses"], found["ledger"]) == (HEAD, 0, 0)
    backup = tmp_path / "copy.db"
    code = main(["store", "backup", "--out", str(backup), *option])
    out, error = capsys.readouterr()
    if store_url.startswith("postgresql"):
        assert (code, out) == (3, "")
        assert "pg_dump" in error
        return
    assert code == 0, error
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert main(["store", "check", "--store", f"sqlite:///{backup}"]) == 0
    assert main(["store", "backup", "--out", str(backup), *option]) == 3


def test_check_names_a_damaged_file(tmp_path, capsys):
    path = tmp_path / "licenses.db"
    option = ["--store", f"sqlite:///{path}"]
    assert main(["store", "migrate", *option]) == 0
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 4] = b"\xff" * 4096 * 2
    path.write_bytes(data)
    for side in tmp_path.glob("licenses.db-*"):
        side.unlink()
    capsys.readouterr()
    assert main(["store", "check", *option]) == 7
    assert "licenses.db" in capsys.readouterr().err


def test_without_a_store_it_says_where_one_comes_from(tmp_path, capsys):
    assert main(["store", "check", "--home", str(tmp_path)]) == 7
    assert "license issue" in capsys.readouterr().err
