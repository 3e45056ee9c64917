"""The sealed adapter: the second factor of a lock, encrypted under the key seed and bound to one model.

AES-256-GCM under 32 bytes that are derived from the seed for this purpose alone. The header, the model digest and the
issuer's public key are authenticated with it, as they are with the sealed key: a sealed adapter does not open when its
header is changed, when it is moved to another model, or when somebody else signs the bundle as his own.

The file is the header as canonical JSON, a line feed, and the ciphertext: a safetensors file and the tag.
"""

import secrets
from typing import Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import BaseModel, ConfigDict, ValidationError

from keylock.adapters import Adapter
from keylock.errors import InputError, UnsealError
from keylock.keys import KeySeed
from keylock.signing import VerifyingKey, canonical_json, decode_base64url, encode_base64url

__all__ = ["MAX_SEALED_ADAPTER_BYTES", "seal_adapter", "unseal_adapter"]

MAX_SEALED_ADAPTER_BYTES: Final = 1 << 30

_PURPOSE: Final = "sealed-adapter"
_CONTEXT: Final = b"keylock/v1/sealed-adapter"
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_MAX_HEADER_BYTES: Final = 1024


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["keylock-sealed-adapter/v1"] = "keylock-sealed-adapter/v1"
    cipher: Literal["AES-256-GCM"] = "AES-256-GCM"
    nonce: str


def seal_adapter(adapter: Adapter, seed: KeySeed, *, model_digest: str, issuer: VerifyingKey) -> bytes:
    """Returns the content of `adapter.sealed`.

    Args:
        adapter: What to seal.
        seed: The key seed, which alone opens it.
        model_digest: The model it will open for, and no other.
        issuer: The key that signs the bundle; under another signature it will not open.
    """
    from safetensors.numpy import save  # Not in the base install, which verifies bundles and opens none.

    nonce = secrets.token_bytes(_NONCE_BYTES)
    header = _Header(nonce=encode_base64url(nonce))
    ciphertext = _cipher(seed).encrypt(nonce, save(adapter.tensors()), _associated_data(header, model_digest, issuer))
    return canonical_json(header.model_dump()) + b"\n" + ciphertext


def unseal_adapter(content: bytes, seed: KeySeed, *, model_digest: str, issuer: VerifyingKey) -> Adapter:
    """Returns the adapter in the content of `adapter.sealed`.

    Args:
        content: Bytes of the file.
        seed: The key seed.
        model_digest: The model at hand.
        issuer: The key that signed the bundle at hand.

    Raises:
        UnsealError: If the content is malformed, or was sealed under another seed, for another model or by another
            issuer.
    """
    header, nonce, ciphertext = _parse(content)
    try:
        opened = _cipher(seed).decrypt(nonce, ciphertext, _associated_data(header, model_digest, issuer))
    except InvalidTag:
        raise UnsealError(
            "the key seed does not open the sealed adapter: it is the wrong one, or the adapter belongs to another "
            "model or issuer"
        ) from None
    return _load(opened)


def _load(content: bytes) -> Adapter:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return Adapter.from_tensors(load(content))
    except (SafetensorError, InputError):
        raise UnsealError("the sealed adapter holds something else: lock the model again") from None


def _parse(content: bytes) -> tuple[_Header, bytes, bytes]:
    """Returns header, nonce and ciphertext with its tag."""
    head, mark, _ = content[:_MAX_HEADER_BYTES].partition(b"\n")
    try:
        header = _Header.model_validate_json(head)
        nonce = decode_base64url(header.nonce)
    except (ValidationError, ValueError):
        raise UnsealError("the sealed adapter is malformed: its header is not what it must be") from None
    ciphertext = content[len(head) + len(mark) :]
    if not mark or len(nonce) != _NONCE_BYTES or len(ciphertext) < _TAG_BYTES:
        raise UnsealError("the sealed adapter is malformed: its nonce or its ciphertext has the wrong length")
    return header, nonce, ciphertext


def _cipher(seed: KeySeed) -> AESGCM:
    return AESGCM(seed.derive(_PURPOSE, _KEY_BYTES))


def _associated_data(header: _Header, model_digest: str, issuer: VerifyingKey) -> bytes:
    public_key = issuer.to_jwk()["x"]
    return b"\n".join((_CONTEXT, canonical_json(header.model_dump()), model_digest.encode(), public_key.encode()))
