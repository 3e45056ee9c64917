"""`keylock push` and `keylock pull` with a real registry that asks for a login."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from oci_registry import PASSWORD, USER, password_file, start

from keylock.bundle import KeyFile, open_bundle, write_bundle
from keylock.cli import main
from keylock.crypto.signing import Home, SigningKey
from keylock.trigger.keys import KeySeed

pytest.importorskip("requests", reason="pip install '.[oci]'")


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    running = start(folder, auth=password_file(folder / "auth"))
    yield running
    running.stop()


@pytest.fixture
def vendor(tmp_path, monkeypatch, smallest_content):
    """A directory with an issuer and a bundle; commands run in it, with a login in the variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("KEYLOCK_REGISTRY_USER", USER)
    monkeypatch.setenv("KEYLOCK_REGISTRY_PASSWORD", PASSWORD)
    home, seed = Home.open(tmp_path / "home"), KeySeed.generate()
    write_bundle(
        "m.klb", smallest_content(seed), signing_key=home.signing_key(), seed=seed, sealer=KeyFile.create("m.key")
    )
    return home


@pytest.fixture
def run(capsys, monkeypatch):
    def call(line, *, code=0):
        monkeypatch.setenv("KEYLOCK_REGISTRY_PASSWORD", PASSWORD)
        assert main(line.split()) == code
        said = capsys.readouterr()
        assert PASSWORD not in said.out + said.err
        return said

    return call


def test_a_bundle_is_pushed_and_pulled(vendor, registry, run):
    place = f"{registry.host}/acme/tiny:1"
    said = run(f"push {place} m.klb")
    assert said.out.startswith(f"{registry.host}/acme/tiny@sha256:")
    assert "the sealed key is among them" in said.err
    assert "KEYLOCK_REGISTRY_PASSWORD" not in os.environ
    assert json.loads(run(f"push {place} m.klb --json").out)["files_sent"] == 0
    assert run(f"pull {place} --out got").out == "got\n"
    assert open_bundle("got", trusted=None).all_files() == open_bundle("m.klb", trusted=None).all_files()
    by_digest = said.out.strip()
    answer = json.loads(run(f"pull {by_digest} --out less.klb --public --issuer home/issuer.pub.pem --json").out)
    assert answer["left_out"] == ["key.sealed"]
    assert (answer["issuer_trusted"], answer["has_sealed_key"]) == (True, False)
    said = run(f"pull {place} --out got", code=4).err
    assert "exists: choose another place, or replace it with --overwrite" in said
    run(f"pull {place} --out got --overwrite")


def test_whose_it_is_is_said(vendor, registry, run):
    place = f"{registry.host}/acme/tiny:2"
    assert "sealed key" not in run(f"push {place} m.klb --public").err
    assert "which was not checked: give --issuer" in run(f"pull {place} --out got --home elsewhere").err
    SigningKey.generate().verifying_key.write("other.pub.pem")
    assert "not among the trusted issuers" in run(f"pull {place} --out no --issuer other.pub.pem", code=4).err
    assert sorted(path.name for path in Path().glob("*no*")) == []


def test_what_is_wrong_is_said_in_a_sentence(vendor, registry, run, monkeypatch):
    place = f"{registry.host}/acme/none:1"
    assert "there is no" in (said := run(f"pull {place} --out got", code=7).err)
    assert "in the registry: check name and tag" in said
    lost = run(f"pull {place}@sha256:{'0' * 64} --out got", code=7).err
    assert "in the registry: check name and digest" in lost
    assert "is no place in a registry" in run("pull acme/none --out got", code=3).err
    assert "a digest cannot be pushed to" in run(f"push {place}@sha256:{'0' * 64} m.klb", code=3).err
    assert "there is no bundle at none.klb" in run(f"push {place} none.klb", code=4).err
    monkeypatch.delenv("KEYLOCK_REGISTRY_USER")
    assert "KEYLOCK_REGISTRY_USER is not set" in run(f"push {place} m.klb", code=3).err


def test_without_a_login_it_is_said_how_to_log_in(vendor, registry, run, monkeypatch, capsys):
    from keylock.cli._secrets import forget_environment

    for name in ("KEYLOCK_REGISTRY_USER", "KEYLOCK_REGISTRY_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    forget_environment()
    assert main(["push", f"{registry.host}/acme/x:1", "m.klb"]) == 7
    assert f"or run docker login {registry.host}" in capsys.readouterr().err


def test_without_the_extra_it_is_named(vendor):
    hidden = "import sys; sys.modules['requests'] = None; from keylock.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", hidden, "pull", "localhost:1/m", "--out", "got"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 10, done.stderr
    assert "pip install '.[oci]'" in done.stderr
