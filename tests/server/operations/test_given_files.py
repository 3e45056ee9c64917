"""A server that is started as in `deploy`, without its files, names all of them at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from keylock.errors import InputError
from keylock_server import ServerSettings
from keylock_server.operations.given_files import check_files

CONFIGURATION = Path(__file__).parents[3] / "deploy" / "server.toml"
FILES = {
    "secrets/server_key": "key_provider",
    "secrets/sealed_key": "sealed_key",
    "secrets/issuer": "issuers",
    "secrets/token_key": "token_keys",
    "secrets/receipts.pem": "receipt_key",
    "secrets/receipts.cert": "beside receipt_key",
    "models/model.klb": "bundle",
}


@pytest.fixture
def configuration(tmp_path):
    """The settings of a server in a container, with their files in a folder that has none of them."""
    text = CONFIGURATION.read_text("utf-8").replace("/run/secrets", f"{tmp_path}/secrets")
    file = tmp_path / "server.toml"
    file.write_text(text.replace('"/models', f'"{tmp_path}/models'))
    return file


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_without_its_files_names_all_of_them_in_one_line(configuration, tmp_path, workers):
    command = [sys.executable, "-m", "keylock", "serve", "--config", str(configuration)]
    environment = {**os.environ, "KEYLOCK_SERVER_WORKERS": workers, "KEYLOCK_HOME": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout) == (3, "")
    [said] = done.stderr.splitlines()
    assert said.startswith("error: files of the settings are missing: ")
    for file, setting in FILES.items():
        assert f"{tmp_path / file} ({setting})" in said
    assert "docs/operating.md" in said


def test_one_file_alone_is_left_to_whoever_reads_it(configuration, tmp_path):
    for file in FILES:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("x")
    settings = ServerSettings.load(config=configuration)
    check_files(settings)
    (tmp_path / "secrets" / "issuer").unlink()
    check_files(settings)
    (tmp_path / "secrets" / "token_key").unlink()
    with pytest.raises(InputError, match=r"issuer .issuers., .*token_key .token_keys."):
        check_files(settings)


def test_files_that_may_not_be_read_are_told_from_those_that_are_missing(configuration, tmp_path, monkeypatch):
    for file in FILES:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("x")
        (tmp_path / file).chmod(0)
    # Who runs the tests may be allowed to read everything.
    monkeypatch.setattr(os, "access", lambda path, how: bool(Path(path).stat().st_mode & 0o400))
    with pytest.raises(InputError, match=r"may not read .*issuer .issuers."):
        check_files(ServerSettings.load(config=configuration))
