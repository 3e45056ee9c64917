"""Compact JWS: one spelling, one algorithm, one kind; everything else is refused."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc import jws as second
from joserfc.jwk import OKPKey

from keylock.crypto.jws import Jws, sign
from keylock.crypto.signing import SigningKey, decode_base64url, encode_base64url
from keylock.errors import SignatureError

KEY = SigningKey.generate()
TYP = "keylock-test+jws"
TOKEN = sign(b'{"a":1}', KEY, typ=TYP, more="x")


def parse(token, **changes):
    return Jws.parse(token, **({"typ": TYP, "members": ("more",), "max_bytes": 1000} | changes))


def test_a_token_is_read_by_another_implementation():
    registry = second.JWSRegistry(algorithms=["Ed25519"], strict_check_header=False)
    found = second.deserialize_compact(TOKEN, OKPKey.import_key(dict(KEY.verifying_key.to_jwk())), registry=registry)
    assert found.payload == b'{"a":1}'
    assert found.protected == {"alg": "Ed25519", "kid": KEY.key_id, "typ": TYP, "more": "x"}


def test_the_signature_is_that_of_rfc_8037():
    # RFC 8037, appendix A.4: the signature of its key over its signing input.
    private = Ed25519PrivateKey.from_private_bytes(decode_base64url("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"))
    signed = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
    assert encode_base64url(SigningKey(private).sign(signed)) == (
        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
    )


def test_a_token_holds_for_the_key_that_signed_it():
    assert parse(TOKEN).verify(KEY.verifying_key) == b'{"a":1}'
    assert parse(TOKEN).key_id == KEY.key_id
    assert sign(b'{"a":1}', KEY, typ=TYP, more="x") == TOKEN
    with pytest.raises(SignatureError, match="names the key"):
        parse(TOKEN).verify(SigningKey.generate().verifying_key)


def with_header(**changes):
    header = json.loads(decode_base64url(TOKEN.split(".")[0]))
    header = {name: value for name, value in (header | changes).items() if value is not ...}
    raw = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    signed = f"{encode_base64url(raw)}.{TOKEN.split('.')[1]}"
    return f"{signed}.{encode_base64url(KEY.sign(signed.encode()))}"


HEADER, PAYLOAD, SIGNATURE = TOKEN.split(".")


@pytest.mark.parametrize(
    "token",
    [
        with_header(alg="none"),
        with_header(alg="EdDSA"),
        with_header(alg="HS256"),
        with_header(typ="keylock-license+jws"),
        with_header(typ=...),
        with_header(kid=...),
        with_header(kid=7),
        with_header(crit=["exp"]),
        with_header(more=...),
        with_header(jwk={}),
        f"{HEADER}.{PAYLOAD}.",
        f"{HEADER}.{PAYLOAD}",
        f"{HEADER}.{PAYLOAD}.{SIGNATURE}.",
        f"{HEADER}=.{PAYLOAD}.{SIGNATURE}",
        f"{HEADER}.{PAYLOAD}.{SIGNATURE}A",
        f"{HEADER}.{PAYLOAD}.{SIGNATURE[:-2]}",
        f" {TOKEN}",
        f"{encode_base64url(b'[]')}.{PAYLOAD}.{SIGNATURE}",
        f"{encode_base64url(b'no json')}.{PAYLOAD}.{SIGNATURE}",
        f"{encode_base64url(decode_base64url(HEADER) + b' ')}.{PAYLOAD}.{SIGNATURE}",
        "é" + TOKEN,
        "",
        TOKEN + "A" * 1000,
    ],
)
def test_whatever_is_no_such_token_is_refused(token):
    with pytest.raises(ValueError):  # noqa: PT011 - each caller says in its own words what is wrong
        parse(token)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_no_changed_character_passes(part):
    parts = TOKEN.split(".")
    for place in range(len(parts[part])):
        changed = [*parts]
        letter = "A" if parts[part][place] != "A" else "B"
        changed[part] = parts[part][:place] + letter + parts[part][place + 1 :]
        with pytest.raises((ValueError, SignatureError)):
            parse(".".join(changed)).verify(KEY.verifying_key)
