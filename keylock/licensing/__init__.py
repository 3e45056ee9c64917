"""Licenses: signed grants to customers.

`issue` makes a token of a `License`, `verify` makes a `License` of a token, `check` tells whether it covers a request.
`keylock.licensing.store` records what was issued and revoked; it is imported by its own name because it needs the
`server` extra. The format is described in docs/licenses.md.
"""

from keylock.licensing.claims import ANY, License, LicenseStatus, StoredLicense, check, new_license_id
from keylock.licensing.tokens import MAX_TOKEN_BYTES, TOKEN_TYPE, issue, verify, verify_ignoring_time

__all__ = [
    "ANY",
    "MAX_TOKEN_BYTES",
    "TOKEN_TYPE",
    "License",
    "LicenseStatus",
    "StoredLicense",
    "check",
    "issue",
    "new_license_id",
    "verify",
    "verify_ignoring_time",
]
