"""The sealed key of a finished bundle: replaced in place, or sealed for one more server, with the model untouched."""

import json

import pytest

from keylock.bundle import (
    HpkeIdentity,
    KeyFile,
    export_public,
    open_bundle,
    read_sealed_key,
    reseal,
    seal_for,
)
from keylock.crypto.signing import SigningKey
from keylock.errors import BundleError, BundleTamperedError, UnsealError
from keylock.trigger.keys import KeySeed


def files_of(bundle):
    return {name: bundle.read(name) for name in bundle.manifest.files}


def test_a_resealed_bundle_opens_with_the_new_secret_alone(bundle_path, seed, key_file, signing_key, tmp_path):
    before = open_bundle(bundle_path, trusted=None)
    files, manifest = files_of(before), before.manifest
    new = KeyFile.create(tmp_path / "new")
    after = reseal(before, before.unseal(key_file), new, signing_key=signing_key)
    assert after.unseal(new) == seed
    with pytest.raises(UnsealError, match="does not open"):
        after.unseal(key_file)
    assert files_of(after) == files
    assert after.manifest.model_copy(update={"sealed_key": manifest.sealed_key}) == manifest
    assert open_bundle(bundle_path, trusted=[signing_key.verifying_key]).unseal(new) == seed
    assert not [path for path in bundle_path.parent.iterdir() if path.name.startswith(".")]


def test_only_the_issuer_reseals(bundle_path, seed, key_file):
    opened = open_bundle(bundle_path, trusted=None)
    with pytest.raises(BundleError, match="only the issuer"):
        reseal(opened, seed, key_file, signing_key=SigningKey.generate())
    assert open_bundle(bundle_path, trusted=None).unseal(key_file) == seed


def test_another_seed_is_not_sealed_into_a_bundle(bundle_path, key_file, signing_key):
    opened = open_bundle(bundle_path, trusted=None)
    for attempt in (
        lambda: reseal(opened, KeySeed.generate(), key_file, signing_key=signing_key),
        lambda: seal_for(opened, KeySeed.generate(), key_file),
    ):
        with pytest.raises(UnsealError, match="is not that of the bundle"):
            attempt()


def test_a_bundle_that_changed_is_not_signed_again(bundle_path, seed, key_file, signing_key):
    if bundle_path.is_file():
        pytest.skip("files of an archive do not change by themselves")
    opened = open_bundle(bundle_path, trusted=None)
    (bundle_path / "graphs" / "predict.onnx").write_bytes(b"something else")
    with pytest.raises(BundleTamperedError, match=r"predict\.onnx"):
        reseal(opened, seed, key_file, signing_key=signing_key)


def test_a_key_sealed_to_a_server_opens_a_public_copy_there(bundle_path, seed, key_file, tmp_path):
    server = HpkeIdentity.create(tmp_path / "server.pem")
    opened = open_bundle(bundle_path, trusted=None)
    sealed = seal_for(opened, opened.unseal(key_file), server.recipient)
    export_public(opened, tmp_path / "public.klb")
    public = open_bundle(tmp_path / "public.klb", trusted=None)
    (tmp_path / "key.sealed").write_bytes(sealed)
    assert public.unseal(server, sealed=read_sealed_key(tmp_path / "key.sealed")) == seed
    with pytest.raises(UnsealError, match="public copy"):
        public.unseal(server)
    with pytest.raises(UnsealError, match="was sealed to the recipient"):
        public.unseal(HpkeIdentity.create(tmp_path / "thief.pem"), sealed=sealed)


def test_a_seed_that_a_stranger_sealed_to_the_server_is_refused(bundle_path, tmp_path):
    """Anybody can seal to a public key; the signed manifest says which seed is the right one."""
    from keylock.bundle import seal

    server = HpkeIdentity.create(tmp_path / "server.pem")
    opened = open_bundle(bundle_path, trusted=None)
    digest = opened.manifest.model_digest
    forged = seal(KeySeed.generate(), model_digest=digest, issuer=opened.issuer, sealer=server.recipient)
    with pytest.raises(UnsealError, match="is not that of the bundle"):
        opened.unseal(server, sealed=forged)


def test_a_file_that_is_no_sealed_key_is_refused(bundle_path, key_file, tmp_path):
    opened = open_bundle(bundle_path, trusted=None)
    path = tmp_path / "sealed"
    with pytest.raises(UnsealError, match="cannot read"):
        read_sealed_key(path)
    path.write_bytes(b"x" * 20_000)
    with pytest.raises(UnsealError, match="too long"):
        read_sealed_key(path)
    for content in (b"", b"{}", json.dumps({"format": "keylock-sealed-key/v1"}).encode()):
        with pytest.raises(UnsealError, match="malformed"):
            opened.unseal(key_file, sealed=content)
