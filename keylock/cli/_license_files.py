"""What `keylock license` reads: license files, and beside each the public keys of its issuer."""

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from keylock.cli._console import note
from keylock.cli._home import own_issuers, read_issuers
from keylock.cli._receipts import read_license
from keylock.cli._store import open_store

if TYPE_CHECKING:
    from keylock.crypto.signing import VerifyingKey
    from keylock.licensing import StoredLicense

__all__ = ["describe", "describe_token", "read_argument", "trusted_issuers"]


def trusted_issuers(issuer: list[Path] | None, home: Path) -> "list[VerifyingKey]":
    """Returns the keys of `--issuer`, or those of the vendor's directory.

    Raises:
        SignatureError: If there are neither.
    """
    from keylock.errors import SignatureError

    keys = read_issuers(issuer) or own_issuers(home)
    if not keys:
        raise SignatureError("a license is checked with the public key of its issuer: give the vendor's with --issuer")
    return keys


def read_argument(argument: str) -> str | None:
    """Returns the token in a file or on stdin, or None where the argument is the id of a license."""
    from keylock.licensing.pem import MAX_FILE_BYTES, is_token, read_token

    if argument == "-":
        return read_token(sys.stdin.buffer.read(MAX_FILE_BYTES + 1), name="standard input")
    if is_token(argument):
        return argument
    path = Path(argument)
    return read_license(path) if path.is_file() else None


def describe_token(
    argument: str, token: str, issuer: list[Path] | None, store: str | None, home: Path, now: datetime
) -> dict[str, object]:
    """Returns what a license says, whether its signature was checked, and where it stands, as far as that is known.

    It must be signed by one of the keys of `--issuer`, else by one of those beside it or in the vendor's directory.
    Where there are none at all, it is shown unchecked.

    Raises:
        LicenseError: If it is not a license, or was not signed by one of the keys.
    """
    from keylock.crypto.signing import Home
    from keylock.errors import LicenseError
    from keylock.licensing import StoredLicense, read_unverified, verify_ignoring_time

    license, signed_by = read_unverified(token)
    keys = read_issuers(issuer) or [*_keys_beside(argument), *own_issuers(home)]
    if not keys:
        signature = f"not checked: it names the issuer {signed_by}; give the vendor's public key with --issuer"
        return {"signature": signature, **describe(StoredLicense(license=license, issuer=""), now)}
    license = verify_ignoring_time(token, keys)
    signature = f"good, by {signed_by}"
    shown = describe(StoredLicense(license=license, issuer=""), now)
    if store is not None or Home(home.expanduser()).licenses_path.is_file():
        try:
            with open_store(store, home) as licenses:
                shown = describe(licenses.get(license.id), now)
        except LicenseError:
            note("this license is not in the store: whether it was revoked is unknown")
    return {"signature": signature, **shown}


def _keys_beside(argument: str) -> "Sequence[VerifyingKey]":
    from keylock.crypto.issuers import load_keys
    from keylock.licensing.handing_over import issuers_beside
    from keylock.licensing.pem import is_token

    if argument == "-" or is_token(argument):
        return ()
    beside = issuers_beside(Path(argument))
    return load_keys(beside) if beside.is_file() else ()


def describe(stored: "StoredLicense", now: datetime) -> dict[str, object]:
    """Returns a license and what was done to it, as plain values."""
    shown: dict[str, object] = {"status": stored.status(now).value, **stored.license.model_dump(mode="json")}
    if stored.revoked_at is not None:
        shown |= {"revoked_at": stored.revoked_at.isoformat(), "revoked_why": stored.revoked_why}
    if stored.suspended_at is not None:
        shown |= {"suspended_at": stored.suspended_at.isoformat(), "suspended_why": stored.suspended_why}
    if stored.refuse_before is not None:
        shown["refuse_before"] = stored.refuse_before.isoformat()
    return shown
