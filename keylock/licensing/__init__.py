"""Licenses: signed grants to customers, and the access tokens they are exchanged for.

`issue` makes a token of a `License`, `verify` makes a `License` of a token, `check` and `check_size` tell whether it
covers a request. What was issued and revoked is recorded by `keylock.store`. The format is described in
docs/licenses.md.
"""

from keylock.licensing.access import (
    ACCESS_TYPE,
    MAX_LIFETIME_S,
    MIN_LIFETIME_S,
    AccessToken,
    certificate_thumbprint,
    issue_access,
    verify_access,
)
from keylock.licensing.charges import AnswerDigests, Charge, ReceiptIssuer, UsageNote, content_digest
from keylock.licensing.claims import (
    ANY,
    DisclosureTerms,
    License,
    LicenseStatus,
    Quota,
    Rate,
    StoredLicense,
    check,
    check_size,
    new_license_id,
)
from keylock.licensing.compact import MAX_TOKEN_BYTES, kind_of
from keylock.licensing.tokens import TOKEN_TYPE, check_time, issue, read_unverified, verify, verify_ignoring_time

__all__ = [
    "ACCESS_TYPE",
    "ANY",
    "MAX_LIFETIME_S",
    "MAX_TOKEN_BYTES",
    "MIN_LIFETIME_S",
    "TOKEN_TYPE",
    "AccessToken",
    "AnswerDigests",
    "Charge",
    "DisclosureTerms",
    "License",
    "LicenseStatus",
    "Quota",
    "Rate",
    "ReceiptIssuer",
    "StoredLicense",
    "UsageNote",
    "certificate_thumbprint",
    "check",
    "check_size",
    "check_time",
    "content_digest",
    "issue",
    "issue_access",
    "kind_of",
    "new_license_id",
    "read_unverified",
    "verify",
    "verify_access",
    "verify_ignoring_time",
]
