"""The audit as a signed JSON document, so that whoever gets the report can tell that the vendor stands by it."""

import json
from collections.abc import Collection
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from keylock.auditreport.record import AuditRecord
from keylock.crypto.digests import digest_of
from keylock.crypto.signing import SigningKey, VerifyingKey, canonical_json, decode_base64url, encode_base64url
from keylock.errors import SignatureError

__all__ = ["FIGURES_FILE", "PAGE_FILE", "VerifiedAudit", "page_digest", "sign_audit", "verify_audit"]

PAGE_FILE: Final = "report.html"
FIGURES_FILE: Final = "audit.json"

# What is signed starts with this, so that a signature over an audit never passes for one over anything else.
_CONTEXT: Final = b"keylock/v1/audit\n"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    audit: dict[str, Any]
    page: str
    key_id: str
    public_key: dict[str, str]
    signature: str


class VerifiedAudit(BaseModel):
    """A document whose signature holds.

    Attributes:
        record: What was found.
        page: Digest of the HTML page that was written with it.
        key_id: Who signed.
        trusted: Whether that is one of the keys that were asked for; False where none were.
    """

    model_config = ConfigDict(frozen=True)

    record: AuditRecord
    page: str
    key_id: str
    trusted: bool


def page_digest(page: str) -> str:
    """Return the digest by which a document names its HTML page."""
    return digest_of(page.encode("utf-8"))


def _signed_bytes(audit: dict[str, Any], page: str) -> bytes:
    return _CONTEXT + canonical_json({"audit": audit, "page": page})


def sign_audit(record: AuditRecord, page: str, key: SigningKey) -> str:
    """Return a document that holds a record and its signature.

    Args:
        record: What was found.
        page: The HTML page that shows it.
        key: The issuer's.
    """
    audit, digest = record.model_dump(mode="json"), page_digest(page)
    document = _Document(
        audit=audit,
        page=digest,
        key_id=key.key_id,
        public_key=key.verifying_key.to_jwk(),
        signature=encode_base64url(key.sign(_signed_bytes(audit, digest))),
    )
    return json.dumps(document.model_dump(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def verify_audit(text: str, *, trusted: Collection[VerifyingKey] | None = None) -> VerifiedAudit:
    """Check a document.

    Args:
        text: The document.
        trusted: Keys one of which must have signed it; None accepts any, which says only that nothing was changed.

    Raises:
        SignatureError: It is no such document, was changed, or is signed by somebody else.
    """
    # 1. It is a document of this kind and nothing else.
    try:
        document = _Document.model_validate_json(text)
        record = AuditRecord.model_validate_json(json.dumps(document.audit))
        signed = _signed_bytes(document.audit, document.page)
    except (ValidationError, ValueError):
        raise SignatureError("this is not a signed audit: give the audit.json of a report") from None
    # 2. The key in it made the signature over the figures and the page.
    key = VerifyingKey.from_jwk(document.public_key)
    try:
        signature = decode_base64url(document.signature)
    except ValueError:
        raise SignatureError("the signature of this audit is not base64url") from None
    key.verify(signature, signed)
    if key.key_id != document.key_id:
        raise SignatureError(f"this audit names the key {document.key_id} and was signed by {key.key_id}")
    # 3. The key is one that the caller trusts.
    if trusted is not None and key not in trusted:
        raise SignatureError(f"this audit was signed by {key.key_id}, which is not one of the keys you trust")
    return VerifiedAudit(record=record, page=document.page, key_id=key.key_id, trusted=trusted is not None)
