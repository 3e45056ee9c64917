"""`keylock sign` and `keylock verify --oms`: a second signature in a real vendor's directory."""

import json

import pytest

from keylock.bundle import KeyFile, write_bundle
from keylock.cli import main
from keylock.crypto.ecdsa import EcdsaSigningKey
from keylock.crypto.signing import Home
from keylock.trigger.keys import KeySeed


@pytest.fixture
def vendor(tmp_path, monkeypatch, smallest_content):
    """A directory with an issuer and a bundle in both forms; commands run in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "home"))
    home, seed = Home.open(tmp_path / "home"), KeySeed.generate()
    sealer = KeyFile.create("m.key")
    for path in ("m", "m.klb"):
        write_bundle(path, smallest_content(seed), signing_key=home.signing_key(), seed=seed, sealer=sealer)
    return home


@pytest.fixture
def run(capsys):
    def call(line, *, code=0):
        assert main(line.split()) == code
        return capsys.readouterr()

    return call


@pytest.mark.parametrize("bundle", ["m", "m.klb"])
def test_a_bundle_is_signed_and_verified(bundle, vendor, run):
    assert "none\n" in run(f"verify {bundle}").out
    said = run(f"sign {bundle} --oms")
    assert said.out.startswith(f"signed {bundle} with the key ")
    assert "made a new key on P-256" in said.err
    assert vendor.oms_key_path.stat().st_mode & 0o777 == 0o600
    assert "made a new key" not in run(f"sign {bundle} --oms").err
    assert "there, not checked: --oms checks it" in run(f"verify {bundle}").out
    assert "good, by the key" in run(f"verify {bundle} --oms").out
    answer = json.loads(run(f"verify {bundle} --oms --json").out)
    assert answer["has_model_signature"] is True
    assert answer["model_signature_key"] == EcdsaSigningKey.load(vendor.oms_key_path).verifying_key.hint
    assert json.loads(run(f"verify {bundle} --json").out)["model_signature_key"] is None


def test_a_key_of_ones_own_signs(vendor, run):
    key = EcdsaSigningKey.generate()
    key.write("own.pem")
    key.verifying_key.write("own.pub.pem")
    answer = json.loads(run("sign m --oms --oms-key own.pem --json").out)
    assert answer["key"] == key.verifying_key.hint
    assert answer["public_key_file"] is None
    assert not vendor.oms_key_path.exists()
    assert "good" in run("verify m --oms-key own.pub.pem").out
    assert "give the public one" in run("verify m --oms --oms-key own.pem", code=6).err
    assert "say whose signature it should be: --oms-key FILE" in run("verify m --oms", code=3).err


def test_what_is_wrong_is_said_in_a_sentence(vendor, run):
    assert "say --oms" in run("sign m", code=3).err
    run("sign m.klb --oms")
    assert "has no model.sig: its vendor adds one with `keylock sign`" in run("verify m --oms", code=4).err
    EcdsaSigningKey.generate().verifying_key.write("other.pub.pem")
    assert "was made with another key" in run("verify m.klb --oms --oms-key other.pub.pem", code=4).err
    assert "cannot read the key none" in run("verify m.klb --oms --oms-key none", code=6).err
    assert "there is no issuer key" in run("sign m --oms --home elsewhere", code=6).err


def test_resealing_says_that_the_signature_is_gone(vendor, run):
    run("sign m --oms")
    said = run("key reseal m --key-file m.key --to passphrase-file:words", code=6)
    assert "model.sig" not in said.err
    KeyFile.create("new.key")
    assert "model.sig does not fit any more and was removed" in run(
        "key reseal m --key-file m.key --to key-file:new.key"
    ).err  # fmt: skip
    assert "has no model.sig" in run("verify m --oms", code=4).err
