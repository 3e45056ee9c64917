"""sealing.py: the seed comes out with the right secret, for the right model, from an untouched file, or not at all."""

import json
import os
import pickle
import stat

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from keylock.bundle import KeyFile, Passphrase, seal, unseal
from keylock.crypto.signing import SigningKey, canonical_json, decode_base64url
from keylock.errors import UnsealError

MODEL = "sha256:" + "ab" * 32
ISSUER = SigningKey.generate().verifying_key
OTHER_MODEL = "sha256:" + "cd" * 32


@pytest.fixture(scope="module")
def by_passphrase(seed):
    return seal(seed, model_digest=MODEL, issuer=ISSUER, sealer=Passphrase("a long passphrase"))


@pytest.fixture(scope="module")
def by_file(seed, key_file):
    return seal(seed, model_digest=MODEL, issuer=ISSUER, sealer=key_file)


def test_passphrase_opens_what_it_sealed(seed, by_passphrase):
    assert unseal(by_passphrase, model_digest=MODEL, issuer=ISSUER, sealer=Passphrase(" a long passphrase\n")) == seed


def test_key_file_opens_what_it_sealed(seed, by_file, key_file):
    assert unseal(by_file, model_digest=MODEL, issuer=ISSUER, sealer=KeyFile(key_file.path)) == seed


def test_sealed_key_is_what_the_documented_steps_open(seed, by_passphrase):
    document = json.loads(by_passphrase)
    ciphertext = decode_base64url(document.pop("ciphertext"))
    kdf = document["kdf"]
    assert (kdf["iterations"], kdf["lanes"], kdf["memory_kib"]) == (3, 4, 65536)
    salt = decode_base64url(kdf["salt"])
    key = Argon2id(salt=salt, length=32, iterations=3, lanes=4, memory_cost=65536).derive(b"a long passphrase")
    header = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    bound = b"keylock/v1/sealed-key\n" + header + b"\n" + MODEL.encode() + b"\n" + ISSUER.to_jwk()["x"].encode()
    assert AESGCM(key).decrypt(decode_base64url(document["nonce"]), ciphertext, bound) == seed.reveal()


def test_wrong_passphrase_is_refused_and_not_repeated(by_passphrase):
    with pytest.raises(UnsealError, match="the passphrase does not open") as caught:
        unseal(by_passphrase, model_digest=MODEL, issuer=ISSUER, sealer=Passphrase("a wrong passphrase"))
    assert "wrong passphrase" not in str(caught.value)


def test_wrong_key_file_is_refused(by_file, tmp_path):
    with pytest.raises(UnsealError, match="does not open"):
        unseal(by_file, model_digest=MODEL, issuer=ISSUER, sealer=KeyFile.create(tmp_path / "other"))


def test_secret_of_the_other_kind_is_refused_with_what_to_give(by_file, by_passphrase, key_file):
    with pytest.raises(UnsealError, match="give the key file"):
        unseal(by_file, model_digest=MODEL, issuer=ISSUER, sealer=Passphrase("a long passphrase"))
    with pytest.raises(UnsealError, match="give the passphrase"):
        unseal(by_passphrase, model_digest=MODEL, issuer=ISSUER, sealer=key_file)


def test_key_sealed_for_another_model_is_refused(by_file, key_file):
    with pytest.raises(UnsealError, match="belongs to another model or issuer"):
        unseal(by_file, model_digest=OTHER_MODEL, issuer=ISSUER, sealer=key_file)


def test_key_sealed_under_another_issuer_is_refused(by_file, key_file):
    with pytest.raises(UnsealError, match="another model or issuer"):
        unseal(by_file, model_digest=MODEL, issuer=SigningKey.generate().verifying_key, sealer=key_file)


def test_sealing_twice_gives_different_bytes(seed, by_file, key_file):
    assert seal(seed, model_digest=MODEL, issuer=ISSUER, sealer=key_file) != by_file
    assert seed.reveal().hex().encode() not in by_file


def test_no_changed_byte_opens(seed, by_file, key_file):
    """Whatever byte is changed, in whatever way, the file is refused, and with no error but UnsealError."""
    for position in range(len(by_file)):
        for flip in (0x01, 0x20, 0x80):
            changed = bytearray(by_file)
            changed[position] ^= flip
            with pytest.raises(UnsealError):
                unseal(bytes(changed), model_digest=MODEL, issuer=ISSUER, sealer=key_file)


@pytest.mark.parametrize(
    "change",
    [
        {"iterations": 0},
        {"iterations": 10**9},
        {"memory_kib": 2**31},
        {"memory_kib": 8},
        {"lanes": 0},
        {"lanes": 10_000},
        {"salt": ""},
        {"salt": "AAAA"},
        {"name": "scrypt"},
        {"iterations": "3"},
        {"more": 1},
    ],
    ids=lambda change: json.dumps(change),
)
def test_derivation_beyond_the_limits_is_refused_before_it_runs(by_passphrase, change):
    document = json.loads(by_passphrase)
    document["kdf"].update(change)
    with pytest.raises(UnsealError, match="malformed"):
        unseal(canonical_json(document), model_digest=MODEL, issuer=ISSUER, sealer=Passphrase("a long passphrase"))


@pytest.mark.parametrize("change", [{"cipher": "none"}, {"format": "keylock-sealed-key/v2"}, {"nonce": "AAAA"}])
def test_other_header_is_refused(by_file, key_file, change):
    with pytest.raises(UnsealError, match="malformed"):
        unseal(canonical_json(json.loads(by_file) | change), model_digest=MODEL, issuer=ISSUER, sealer=key_file)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b"[" * 9999, b"1" * 20_000], ids=range(6))
def test_what_is_no_sealed_key_is_refused(content, key_file):
    with pytest.raises(UnsealError, match="malformed"):
        unseal(content, model_digest=MODEL, issuer=ISSUER, sealer=key_file)


def test_key_file_is_private_and_never_overwritten(tmp_path):
    path = tmp_path / "key-file"
    old_mask = os.umask(0)
    try:
        KeyFile.create(path)
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(UnsealError, match="not overwritten"):
        KeyFile.create(path)


@pytest.mark.parametrize("content", [b"", b"ab" * 31, b"zz" * 32, b"\xff" * 64, b"ab" * 5000], ids=range(5))
def test_bad_key_file_is_refused(tmp_path, content):
    path = tmp_path / "key-file"
    path.write_bytes(content)
    with pytest.raises(UnsealError, match=r"key file .*key-file|key-file is not a key file"):
        KeyFile(path)


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(UnsealError, match="cannot read the key file"):
        KeyFile(tmp_path / "missing")
    with pytest.raises(UnsealError, match="cannot read the passphrase file"):
        Passphrase.from_file(tmp_path / "missing")


def test_passphrase_file_is_read_without_its_line_end(tmp_path):
    path = tmp_path / "passphrase"
    path.write_text("a long passphrase\r\n")
    assert Passphrase.from_file(path).reveal() == b"a long passphrase"


@pytest.mark.parametrize("text", ["", "   ", "seven77"])
def test_short_passphrase_is_refused(text):
    with pytest.raises(UnsealError, match="at least 8"):
        Passphrase(text)


def test_secrets_are_opaque(key_file):
    for secret in (Passphrase("a long passphrase"), key_file):
        assert "long" not in repr(secret)
        assert key_file.reveal().hex() not in repr(secret)
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(secret)
