"""The signature file: it says who signed which manifest, and can be checked before the manifest is even parsed.

`manifest.sig` holds the digest of `manifest.json`, the public key and the signature over that digest. So a changed
byte is blamed on the right file: either the signature file is broken in itself, or the manifest is not what it names.
"""

from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from keylock.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE
from keylock.crypto.digests import digest_of
from keylock.crypto.signing import SigningKey, VerifyingKey, canonical_json, decode_base64url, encode_base64url
from keylock.errors import BundleTamperedError, SignatureError

__all__ = ["MAX_SIGNATURE_BYTES", "sign_manifest", "verify_manifest"]

MAX_SIGNATURE_BYTES: Final = 4096

# What is signed starts with this, so that a signature over a bundle can never pass for one over a license.
_CONTEXT: Final = b"keylock/v1/bundle-manifest\n"


class _Signature(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    key_id: str
    manifest: str
    public_key: dict[str, str]
    signature: str


def sign_manifest(manifest: bytes, key: SigningKey) -> bytes:
    """Returns the content of `manifest.sig` for the content of `manifest.json`."""
    digest = digest_of(manifest)
    signature = _Signature(
        key_id=key.key_id,
        manifest=digest,
        public_key=key.verifying_key.to_jwk(),
        signature=encode_base64url(key.sign(_CONTEXT + digest.encode("ascii"))),
    )
    return canonical_json(signature.model_dump())


def verify_manifest(manifest: bytes, signature: bytes) -> VerifyingKey:
    """Returns the key that signed the manifest; whether it is to be trusted is for the caller to decide.

    Args:
        manifest: Content of `manifest.json`.
        signature: Content of `manifest.sig`.

    Raises:
        BundleTamperedError: If the signature file is not whole (it is named), or the manifest is not what was signed
            (it is named).
    """
    try:
        parsed = _Signature.model_validate_json(signature)
        key = VerifyingKey.from_jwk(parsed.public_key)
        key.verify(decode_base64url(parsed.signature), _CONTEXT + parsed.manifest.encode("utf-8"))
    except (ValidationError, SignatureError, ValueError):
        raise BundleTamperedError(SIGNATURE_FILE, "is not a valid signature") from None
    if canonical_json(parsed.model_dump()) != signature or parsed.key_id != key.key_id:
        raise BundleTamperedError(SIGNATURE_FILE, "is not written as keylock writes it")
    if digest_of(manifest) != parsed.manifest:
        raise BundleTamperedError(MANIFEST_FILE, "differs from what was signed")
    return key
