"""The sealed delta: encrypted, and its key wrapped under the trigger of every key that opens the lock.

Whoever has read the signs of a trigger derives 32 bytes from them, `keylock.trigger` says how. With those a wrapped
key opens, and with that the delta: AES-256-GCM both times. The header, the model digest and the issuer's public key are
authenticated, as they are with the sealed key: a sealed delta does not open when its header is changed, when it is
moved to another model, or when somebody else signs the bundle as his own.

The file is the header as canonical JSON, a line feed, and the ciphertext: a safetensors file and the tag.
"""

import secrets
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keylock.crypto.secrecy import wipe
from keylock.crypto.signing import VerifyingKey, canonical_json, decode_base64url, encode_base64url
from keylock.errors import BundleError, InputError, UnsealError
from keylock.trigger import trigger_secret
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key

__all__ = ["MAX_SEALED_DELTA_BYTES", "SealedDelta", "seal_delta", "secret_of_key"]

MAX_SEALED_DELTA_BYTES: Final = (2 << 30) - 1

_CONTEXT: Final = b"keylock/v2/sealed-delta"
_WRAPPING_CONTEXT: Final = b"keylock/v2/wrapped-delta-key"
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_MOST_KEYS: Final = 1000
_MAX_HEADER_BYTES: Final = 256 * 1024


class _Wrapped(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    nonce: str
    wrapped: str


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["keylock-sealed-delta/v2"] = "keylock-sealed-delta/v2"
    cipher: Literal["AES-256-GCM"] = "AES-256-GCM"
    keys: Annotated[list[_Wrapped], Field(min_length=1, max_length=_MOST_KEYS)]
    nonce: str


def secret_of_key(key: Key) -> bytes:
    """Returns the 32 bytes that open what is sealed under the trigger of a key.

    Raises:
        InputError: The trigger is too small for the channels, or larger than the images.
    """
    return trigger_secret(key.signs())


def seal_delta(delta: Delta, trigger_secrets: Sequence[bytes], *, model_digest: str, issuer: VerifyingKey) -> bytes:
    """Returns the content of `delta.sealed`.

    Args:
        delta: What to seal.
        trigger_secrets: The 32 bytes of each trigger that is to open it, one to a thousand of them.
        model_digest: The model it will open for, and no other.
        issuer: The key that signs the bundle; under another signature it will not open.

    Raises:
        BundleError: The delta has 2 GiB or more, or there are no triggers or too many.
    """
    if not 1 <= len(trigger_secrets) <= _MOST_KEYS:
        raise BundleError(f"a delta is sealed under 1 to {_MOST_KEYS} triggers, not {len(trigger_secrets)}")
    from safetensors.numpy import save  # Not in the base install, which verifies bundles and opens none.

    plain = save(delta.reveal())
    if len(plain) > MAX_SEALED_DELTA_BYTES - _MAX_HEADER_BYTES:
        raise BundleError("weights of 2 GiB and more cannot be sealed: lock fewer layers, or a smaller network")
    key = secrets.token_bytes(_KEY_BYTES)
    bound = _bound(model_digest, issuer)
    wrapped = []
    for secret in trigger_secrets:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        ciphertext = AESGCM(secret).encrypt(nonce, key, b"\n".join((_WRAPPING_CONTEXT, bound)))
        wrapped.append(_Wrapped(nonce=encode_base64url(nonce), wrapped=encode_base64url(ciphertext)))
    nonce = secrets.token_bytes(_NONCE_BYTES)
    head = canonical_json(_Header(keys=wrapped, nonce=encode_base64url(nonce)).model_dump())
    return head + b"\n" + AESGCM(key).encrypt(nonce, plain, b"\n".join((_CONTEXT, head, bound)))


class SealedDelta:
    """The content of `delta.sealed`, to be opened by whoever has the secret of a trigger. Trying costs microseconds."""

    def __init__(self, content: bytes, *, model_digest: str, issuer: VerifyingKey) -> None:
        """Reads the header.

        Args:
            content: Bytes of the file.
            model_digest: The model at hand.
            issuer: The key that signed the bundle at hand.

        Raises:
            UnsealError: The content is malformed.
        """
        head, mark, _ = content[:_MAX_HEADER_BYTES].partition(b"\n")
        try:
            header = _Header.model_validate_json(head)
            self._nonce = decode_base64url(header.nonce)
            self._keys = [(decode_base64url(one.nonce), decode_base64url(one.wrapped)) for one in header.keys]
        except (ValidationError, ValueError):
            raise UnsealError("the sealed delta is malformed: its header is not what it must be") from None
        self._head, self._bound = head, _bound(model_digest, issuer)
        self._ciphertext = memoryview(content)[len(head) + len(mark) :]
        lengths = {(len(nonce), len(wrapped)) for nonce, wrapped in self._keys}
        if not mark or len(self._nonce) != _NONCE_BYTES or len(self._ciphertext) < _TAG_BYTES:
            raise UnsealError("the sealed delta is malformed: its nonce or its ciphertext has the wrong length")
        if lengths != {(_NONCE_BYTES, _KEY_BYTES + _TAG_BYTES)}:
            raise UnsealError("the sealed delta is malformed: a wrapped key has the wrong length")

    def opens_with(self, trigger_secret: bytes) -> bool:
        """Returns whether the secret of a trigger, 32 bytes, is one that opens the delta."""
        return self._unwrap(trigger_secret) is not None

    def find(self, candidates: Iterable[bytes]) -> bytes | None:
        """Returns the first secret among candidates, 32 bytes each, that opens the delta; None where none does."""
        return next((secret for secret in candidates if self.opens_with(secret)), None)

    def open(self, trigger_secret: bytes) -> Delta:
        """Returns the delta.

        Args:
            trigger_secret: The 32 bytes of a trigger.

        Raises:
            UnsealError: They are not those of a trigger of this lock, or the delta belongs to another model or issuer,
                or is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        key = self._unwrap(trigger_secret)
        if key is None:
            raise UnsealError(
                "the trigger does not open the sealed delta: it is another lock's, or the delta belongs to another "
                "model or issuer"
            )
        try:
            opened = AESGCM(key).decrypt(self._nonce, self._ciphertext, b"\n".join((_CONTEXT, self._head, self._bound)))
        except InvalidTag:
            raise UnsealError("the sealed delta is damaged: get the bundle again") from None
        finally:
            wipe(key)
        try:
            return Delta(load(opened))
        except (SafetensorError, InputError):
            raise UnsealError("the sealed delta holds something else: lock the model again") from None

    def _unwrap(self, secret: bytes) -> bytearray | None:
        cipher, associated = AESGCM(secret), b"\n".join((_WRAPPING_CONTEXT, self._bound))
        for nonce, wrapped in self._keys:
            try:
                return bytearray(cipher.decrypt(nonce, wrapped, associated))
            except InvalidTag:
                continue
        return None


def _bound(model_digest: str, issuer: VerifyingKey) -> bytes:
    """Returns what both ciphertexts are bound to."""
    return b"\n".join((model_digest.encode(), issuer.to_jwk()["x"].encode()))
