"""`keylock key`: a key changes hands and secrets, in a real vendor's directory, and no secret is printed."""

import json
import os

import pytest

from keylock.bundle import (
    KeyFile,
    export_public,
    open_bundle,
    read_sealed_key,
    write_bundle,
)
from keylock.bundle.providers.hpke import read_hpke
from keylock.cli import main
from keylock.crypto.signing import Home
from keylock.trigger.keys import KeySeed


@pytest.fixture
def vendor(tmp_path, monkeypatch, smallest_content):
    """A directory with an issuer, a bundle and its key file; commands run in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "home"))
    for name in ("KEYLOCK_KEY_PASSPHRASE", "KEYLOCK_KEY_SEED"):
        monkeypatch.delenv(name, raising=False)
    home, seed = Home.open(tmp_path / "home"), KeySeed.generate()
    seed.write("seed")
    write_bundle(
        "m.klb", smallest_content(seed), signing_key=home.signing_key(), seed=seed, sealer=KeyFile.create("m.klb.key")
    )
    return seed


@pytest.fixture
def run(capsys):
    def call(line, *, code=0):
        assert main(line.split()) == code
        return capsys.readouterr()

    return call


def opens(provider, *, bundle="m.klb", sealed=None):
    return open_bundle(bundle, trusted=None).unseal(provider, sealed=sealed)


def test_a_key_is_handed_to_a_server_through_a_public_copy(vendor, run):
    made = run("key new-recipient --out server.pem --json")
    answer = json.loads(made.out)
    assert answer["public_key_file"] == "server.pub.pem"
    assert read_hpke("server.pem").recipient.key_id == answer["recipient"]
    assert run("key seal m.klb --key-file m.klb.key --to hpke:server.pub.pem --out m.sealed").out == "m.sealed\n"
    export_public(open_bundle("m.klb", trusted=None), "public.klb")
    assert opens(read_hpke("server.pem"), bundle="public.klb", sealed=read_sealed_key("m.sealed")) == vendor
    again = run("key seal m.klb --key-file m.klb.key --to hpke:server.pub.pem --out m.sealed", code=3)
    assert "not overwritten" in again.err


def test_a_bundle_is_resealed_from_its_seed(vendor, run, monkeypatch):
    monkeypatch.setenv("SEALING", "ab" * 32)
    answer = json.loads(run("key reseal m.klb --key-seed-file seed --to environment:SEALING --json").out)
    assert answer["opens_with"] == "the variable SEALING"
    assert "SEALING" not in os.environ
    monkeypatch.setenv("SEALING", "ab" * 32)
    assert run("key reseal m.klb --key-provider environment:SEALING --to key-file:m.klb.key").out
    assert opens(KeyFile("m.klb.key")) == vendor


@pytest.mark.parametrize("kind", ["key-file", "hpke"])
def test_rotating_makes_a_new_secret_of_the_same_kind(kind, vendor, run):
    if kind == "hpke":
        run("key new-recipient --out old.pem")
        run("key reseal m.klb --key-file m.klb.key --to hpke:old.pub.pem")
    old = "old.pem" if kind == "hpke" else "m.klb.key"
    assert "say where" in run(f"key rotate m.klb --key-provider {kind}:{old}", code=3).err
    run(f"key rotate m.klb --key-provider {kind}:{old} --out new.pem")
    with_new = KeyFile("new.pem") if kind == "key-file" else read_hpke("new.pem")
    assert opens(with_new) == vendor
    run(f"key seal m.klb --key-provider {kind}:{old} --to key-file:m.klb.key --out x", code=6)


def test_a_passphrase_is_replaced_by_one_that_a_person_chose(vendor, run, tmp_path):
    (tmp_path / "old.txt").write_text("the old passphrase")
    (tmp_path / "new.txt").write_text("the new passphrase")
    run("key reseal m.klb --key-file m.klb.key --to passphrase-file:old.txt")
    assert "reseal" in run("key rotate m.klb --key-provider passphrase-file:old.txt", code=3).err
    run("key reseal m.klb --key-provider passphrase-file:old.txt --to passphrase-file:new.txt")
    failed = run("key reseal m.klb --key-provider passphrase-file:old.txt --to passphrase-file:new.txt", code=6)
    assert "does not open" in failed.err
    assert "old passphrase" not in failed.err


@pytest.mark.parametrize(
    ("line", "code", "what"),
    [
        ("key seal m.klb --to key-file:m.klb.key --out x", 3, "say what opens"),
        ("key seal m.klb --key-file m.klb.key --key-provider key-file:m.klb.key --to hpke:x --out x", 3, "one way"),
        ("key seal m.klb --key-file m.klb.key --key-seed-file seed --to hpke:x --out x", 3, "one way"),
        ("key seal m.klb --key-file m.klb.key --to tpm:x --out x", 3, "unknown key provider"),
        ("key reseal m.klb --key-file m.klb.key --to key-file:m.klb.key --home elsewhere", 6, "no issuer key"),
        ("key rotate m.klb --key-file nowhere --out x", 6, "cannot read"),
    ],
)
def test_mistakes_are_told_and_nothing_is_changed(line, code, what, vendor, run):
    assert what in run(line, code=code).err
    assert opens(KeyFile("m.klb.key")) == vendor


def test_no_command_prints_a_secret(vendor, run, tmp_path):
    printed = [
        run("key new-recipient --out server.pem"),
        run("key seal m.klb --key-file m.klb.key --to hpke:server.pub.pem --out m.sealed"),
        run("key rotate m.klb --key-file m.klb.key --out new.key"),
        run("key id --key-seed-file seed"),
    ]
    secrets = [vendor.reveal().hex(), KeyFile("m.klb.key").reveal().hex(), KeyFile("new.key").reveal().hex()]
    secrets += [line for line in (tmp_path / "server.pem").read_text().splitlines() if len(line) > 40]
    assert len(secrets) == 4
    for output in printed:
        assert not any(secret in output.out + output.err for secret in secrets)
