"""signing.py: signatures hold for one key and one content, and the private key stays private."""

import base64
import hashlib
import json
import os
import pickle
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from joserfc.jwk import OKPKey

from keylock.crypto.signing import (
    Home,
    SigningKey,
    VerifyingKey,
    canonical_json,
    decode_base64url,
    encode_base64url,
    thumbprint_id,
)
from keylock.errors import SignatureError

# RFC 8032, section 7.1, test 3.
RFC8032_SECRET = bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")
RFC8032_PUBLIC = bytes.fromhex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025")
RFC8032_SIGNATURE = bytes.fromhex(
    "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
    "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
)


def test_signature_is_that_of_rfc_8032():
    key = SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(RFC8032_SECRET))
    assert decode_base64url(key.verifying_key.to_jwk()["x"]) == RFC8032_PUBLIC
    assert key.sign(bytes.fromhex("af82")) == RFC8032_SIGNATURE
    key.verifying_key.verify(RFC8032_SIGNATURE, bytes.fromhex("af82"))


def test_no_key_id_looks_like_an_option_of_a_command():
    jwks = [{"crv": "Ed25519", "kty": "OKP", "x": f"made up {number}"} for number in range(2_000)]
    ids = [thumbprint_id(jwk) for jwk in jwks]
    digests = [hashlib.sha256(canonical_json(jwk)).digest() for jwk in jwks]
    thumbprints = [encode_base64url(digest) for digest in digests]
    assert sum(thumbprint[0] in "-_" for thumbprint in thumbprints) > 20
    for name, thumbprint in zip(ids, thumbprints, strict=True):
        assert name[0].isalnum()
        assert len(name) == 16
        assert name in thumbprint


def test_key_id_is_the_thumbprint_of_rfc_8037_appendix_a3():
    key = VerifyingKey.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
    assert key.key_id == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"[:16]
    assert OKPKey.import_key(key.to_jwk()).thumbprint()[:16] == key.key_id


@pytest.mark.parametrize("change", ["data", "signature", "key", "short"])
def test_signature_that_does_not_fit_is_refused(change):
    key, data = SigningKey.generate(), b"content"
    signature, verifier = key.sign(data), key.verifying_key
    if change == "data":
        data = b"contents"
    elif change == "signature":
        signature = bytes([signature[0] ^ 1]) + signature[1:]
    elif change == "key":
        verifier = SigningKey.generate().verifying_key
    else:
        signature = signature[:-1]
    with pytest.raises(SignatureError, match="was not made by the key"):
        verifier.verify(signature, data)


def test_private_key_file_is_private_and_reads_back(tmp_path):
    key, path = SigningKey.generate(), tmp_path / "issuer.pem"
    old_mask = os.umask(0)
    try:
        key.write(path)
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert SigningKey.load(path).verifying_key == key.verifying_key
    with pytest.raises(SignatureError, match="not overwritten"):
        SigningKey.generate().write(path)


def test_public_key_reads_back_from_pem_and_jwk(tmp_path):
    key = SigningKey.generate().verifying_key
    key.write(tmp_path / "pub.pem")
    assert VerifyingKey.load(tmp_path / "pub.pem") == key
    assert VerifyingKey.from_jwk(key.to_jwk()) == key
    assert len({key, VerifyingKey.from_jwk(key.to_jwk()), SigningKey.generate().verifying_key}) == 2


def test_private_key_is_not_taken_for_a_public_one(tmp_path):
    SigningKey.generate().write(tmp_path / "issuer.pem")
    with pytest.raises(SignatureError, match="is a private key"):
        VerifyingKey.load(tmp_path / "issuer.pem")


def pem_of(key, *, private, password=None):
    if not private:
        return key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"hello", "no PEM file"),
        (b"\xff" * 30, "not text"),
        (b"x" * 9999, "more than"),
        (pem_of(ec.generate_private_key(ec.SECP256R1()), private=True), "another kind"),
        (pem_of(ed25519.Ed25519PrivateKey.generate(), private=True, password=b"secret"), "encrypted"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no PEM file"),
    ],
)
def test_bad_private_key_file_is_refused_with_its_reason(tmp_path, content, says):
    path = tmp_path / "issuer.pem"
    path.write_bytes(content)
    with pytest.raises(SignatureError, match=says):
        SigningKey.load(path)


def test_bad_public_key_file_is_refused_with_its_reason(tmp_path):
    path = tmp_path / "pub.pem"
    path.write_bytes(pem_of(ec.generate_private_key(ec.SECP256R1()), private=False))
    with pytest.raises(SignatureError, match="another kind"):
        VerifyingKey.load(path)
    path.write_bytes(b"hello")
    with pytest.raises(SignatureError, match="no PEM file"):
        VerifyingKey.load(path)
    with pytest.raises(SignatureError, match="cannot read"):
        VerifyingKey.load(tmp_path / "missing")


@pytest.mark.parametrize(
    "change",
    [{"kty": "oct"}, {"crv": "Ed448"}, {"x": "AAAA"}, {"x": "*"}, {"x": 3}, {"d": "secret"}, {"x": "é" * 43}],
)
def test_other_jwk_is_refused(change):
    with pytest.raises(SignatureError):
        VerifyingKey.from_jwk({**SigningKey.generate().verifying_key.to_jwk(), **change})
    with pytest.raises(SignatureError):
        VerifyingKey.from_jwk({})


def test_signing_key_is_opaque():
    key = SigningKey.generate()
    assert repr(key) == f"SigningKey(key_id={key.key_id!r})"
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(key)


def test_base64url_has_one_spelling():
    assert decode_base64url(encode_base64url(b"\xfb\xff\x00")) == b"\xfb\xff\x00"
    one_byte = encode_base64url(b"\x01")
    assert one_byte == "AQ"
    for other in ("AR", "AQ==", "A", " AQ", "AQ\n", "A+", "é", "AQ.."):
        with pytest.raises(ValueError, match="not base64url"):
            decode_base64url(other)


def test_canonical_json_does_not_depend_on_order_and_refuses_nan():
    assert canonical_json({"b": 1, "a": ["é", 0.1]}) == '{"a":["é",0.1],"b":1}'.encode()
    with pytest.raises(ValueError, match=r"not JSON compliant|Out of range"):
        canonical_json({"a": float("nan")})


def test_thumbprint_is_over_the_required_members_alone():
    jwk = SigningKey.generate().verifying_key.to_jwk()
    text = json.dumps(jwk, sort_keys=True, separators=(",", ":")).encode()
    expected = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).decode().lstrip("-_")[:16]
    assert VerifyingKey.from_jwk(jwk).key_id == expected


def test_home_makes_a_key_once_and_keeps_it(tmp_path):
    home = Home.open(tmp_path / "deep" / "home")
    again = Home.open(tmp_path / "deep" / "home", create=False)
    assert again.signing_key().verifying_key == home.verifying_key()
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(home.signing_key_path.stat().st_mode) == 0o600
    assert home.licenses_url == f"sqlite:///{home.path}/licenses.db"


def test_home_restores_a_lost_public_key(tmp_path):
    home = Home.open(tmp_path)
    key = home.verifying_key()
    home.verifying_key_path.unlink()
    assert Home.open(tmp_path).verifying_key() == key


def test_home_without_a_key_says_what_to_do(tmp_path):
    with pytest.raises(SignatureError, match="keylock issuer init"):
        Home.open(tmp_path, create=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(SignatureError, match="cannot make"):
        Home.open(tmp_path / "file" / "home")
