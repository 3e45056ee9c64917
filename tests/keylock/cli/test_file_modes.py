"""What commands write is private or public by what it is, whatever the umask; secrets in variables are taken out."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from keylock.bundle import KeyFile, write_bundle
from keylock.cli import main
from keylock.crypto.secrecy import take_variable, write_secret_file
from keylock.crypto.signing import Home
from keylock.trigger.keys import KeySeed

PUBLIC_SUFFIXES = {".klb", ".jwks", ".cert"}
PUBLIC_NAMES = {"revoked.jws", "checkpoint", "published.jwks"}


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def place(tmp_path, monkeypatch, open_umask, smallest_content):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "home"))
    home, seed = Home.open(tmp_path / "home"), KeySeed.generate()
    sealer = KeyFile.create("m.klb.key")
    write_bundle("m.klb", smallest_content(seed), signing_key=home.signing_key(), seed=seed, sealer=sealer)
    write_secret_file("passphrase", b"correct horse battery staple 9911\n")
    return tmp_path


COMMANDS = [
    "key new --out new.seed",
    "key new-recipient --out recipient.pem",
    "license issue --customer Acme --model * --out acme.license",
    "issuer receipt-key",
    "issuer jwks --out published.jwks",
    "store backup --out backup.db",
    "usage export --out usage.csv",
    "audit-log checkpoint --out checkpoint",
    "export --public m.klb --out public.klb",
    "key seal m.klb --key-file m.klb.key --to passphrase-file:passphrase --out m.sealed",
    "key reseal m.klb --key-file m.klb.key --to passphrase-file:passphrase",
    "issuer rotate",
]


def is_public(path: Path) -> bool:
    return path.suffix in PUBLIC_SUFFIXES or path.name in PUBLIC_NAMES or path.name.endswith(".pub.pem")


def test_commands_write_nothing_that_others_may_change_or_should_not_read(place):
    for line in COMMANDS:
        os.umask(0)
        assert main(line.split()) == 0, line
    wrong = []
    for path in place.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        expected = 0o700 if path.is_dir() else 0o644 if is_public(path) else 0o600
        if mode != expected:
            wrong.append((str(path.relative_to(place)), oct(mode), oct(expected)))
    assert not wrong


PROGRAM = """
import os, subprocess, sys
from keylock.crypto.secrecy import take_variable
before = open("/proc/self/environ", "rb").read()
assert b"battery staple" in before
assert take_variable(os.environ, "SECRET") == "correct horse battery staple"
assert "SECRET" not in os.environ
assert b"staple" not in open("/proc/self/environ", "rb").read()
assert b"OTHER=stays" in open("/proc/self/environ", "rb").read()
child = subprocess.run(["env"], capture_output=True, check=True).stdout
assert b"SECRET" not in child and b"OTHER=stays" in child
pid = os.fork()
if not pid:
    os._exit(b"staple" in open("/proc/self/environ", "rb").read())
assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the system does not show the variables")
def test_a_secret_variable_is_gone_once_it_was_read():
    environment = {**os.environ, "SECRET": "correct horse battery staple", "OTHER": "stays"}
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, timeout=60)


def test_a_dictionary_loses_the_secret_too():
    variables = {"SECRET": "x", "OTHER": "y"}
    assert take_variable(variables, "SECRET") == "x"
    assert (take_variable(variables, "SECRET"), variables) == (None, {"OTHER": "y"})


@pytest.mark.parametrize("variable", ["KEYLOCK_KEY_PASSPHRASE", "MY_KEY"])
def test_commands_take_secrets_out_of_the_environment(place, monkeypatch, variable):
    passphrase = "correct horse battery staple 9911"
    assert main(["key", "reseal", "m.klb", "--key-file", "m.klb.key", "--to", "passphrase-file:passphrase"]) == 0
    monkeypatch.setenv("KEYLOCK_KEY_PASSPHRASE", passphrase)
    monkeypatch.setenv("MY_KEY", "ab" * 32)
    assert main(["key", "seal", "m.klb", "--to", "environment:MY_KEY", "--out", "m.sealed"]) == 0
    assert variable not in os.environ
