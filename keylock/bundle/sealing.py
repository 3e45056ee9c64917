"""The sealed key: a key seed encrypted under what a key provider gives, and bound to one model.

AES-256-GCM, with a data key from the provider. The model digest, the issuer's public key and the whole header are
authenticated with it. So a sealed key does not open when its header is changed, when it is moved to another model, or
when somebody else signs the bundle as his own, whose licenses a server that trusts any issuer would otherwise honour.
"""

import secrets
from typing import Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import BaseModel, ConfigDict, ValidationError

from keylock.bundle.providers import AnyEntry, Sealer
from keylock.bundle.providers.base import decode
from keylock.crypto.secrecy import wipe
from keylock.crypto.signing import VerifyingKey, canonical_json, encode_base64url
from keylock.errors import UnsealError
from keylock.trigger.keys import KeySeed

__all__ = ["MAX_SEALED_BYTES", "Sealer", "seal", "unseal"]

MAX_SEALED_BYTES: Final = 16 * 1024

_SEED_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_CONTEXT: Final = b"keylock/v1/sealed-key"
_WRONG: Final = "does not open the sealed key: it is the wrong one, or the key belongs to another model or issuer"


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["keylock-sealed-key/v1"] = "keylock-sealed-key/v1"
    cipher: Literal["AES-256-GCM"] = "AES-256-GCM"
    kdf: AnyEntry
    nonce: str


class _Sealed(_Header):
    ciphertext: str


def seal(seed: KeySeed, *, model_digest: str, issuer: VerifyingKey, sealer: Sealer) -> bytes:
    """Returns the content of `key.sealed`.

    Args:
        seed: What to seal.
        model_digest: The model it will open for, and no other.
        issuer: The key that signs the bundle; under another signature it will not open.
        sealer: What will open it.

    Raises:
        UnsealError: If the provider cannot seal here.
    """
    entry, data_key = sealer.wrap(_context(model_digest, issuer))
    nonce = secrets.token_bytes(_NONCE_BYTES)
    # Through its JSON, because the provider knows its own kind of entry and the header is of any kind.
    header = _Header.model_validate({"kdf": entry.model_dump(), "nonce": encode_base64url(nonce)})
    try:
        ciphertext = AESGCM(data_key).encrypt(nonce, seed.reveal(), _associated_data(header, model_digest, issuer))
    finally:
        wipe(data_key)
    return canonical_json({**header.model_dump(), "ciphertext": encode_base64url(ciphertext)})


def unseal(content: bytes, *, model_digest: str, issuer: VerifyingKey, sealer: Sealer) -> KeySeed:
    """Returns the seed in the content of `key.sealed`.

    Args:
        content: Bytes of the file.
        model_digest: The model at hand.
        issuer: The key that signed the bundle at hand.
        sealer: What it was sealed with.

    Raises:
        UnsealError: If the content is malformed, was sealed with something else, for another model or by another
            issuer, or asks for more memory or time than any honest file.
    """
    sealed = _parse(content)
    header = _Header(kdf=sealed.kdf, nonce=sealed.nonce)
    nonce, ciphertext = decode(sealed.nonce, _NONCE_BYTES), decode(sealed.ciphertext, _SEED_BYTES + _TAG_BYTES)
    if not isinstance(sealed.kdf, sealer.entry):
        raise UnsealError(
            f"the key was sealed with {sealed.kdf.kind}, not with {sealer.entry.kind}: give {sealed.kdf.give}"
        )
    data_key, secret = bytearray(), bytearray(_SEED_BYTES)
    try:
        data_key = sealer.unwrap(sealed.kdf, _context(model_digest, issuer))
        AESGCM(data_key).decrypt_into(nonce, ciphertext, _associated_data(header, model_digest, issuer), secret)
        return KeySeed(secret)
    except InvalidTag:
        raise UnsealError(f"{sealer.name} {_WRONG}") from None
    finally:
        wipe(data_key)
        wipe(secret)


def _parse(content: bytes) -> _Sealed:
    if len(content) > MAX_SEALED_BYTES:
        raise UnsealError("the sealed key is malformed: it is too long")
    try:
        return _Sealed.model_validate_json(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its JSON"
        raise UnsealError(f"the sealed key is malformed: {where} is not what it must be") from None


def _context(model_digest: str, issuer: VerifyingKey) -> bytes:
    return b"\n".join((_CONTEXT, model_digest.encode(), issuer.to_jwk()["x"].encode()))


def _associated_data(header: _Header, model_digest: str, issuer: VerifyingKey) -> bytes:
    public_key = issuer.to_jwk()["x"]
    return b"\n".join((_CONTEXT, canonical_json(header.model_dump()), model_digest.encode(), public_key.encode()))
