"""What a customer is handed: a license file, and beside it the public keys that check whatever its issuer signs."""

import json
from collections.abc import Sequence
from pathlib import Path

from keylock.crypto.issuers import load_keys, to_jwks
from keylock.crypto.secrecy import write_secret_file
from keylock.crypto.signing import VerifyingKey
from keylock.errors import InputError, SignatureError
from keylock.files.atomic import PUBLIC, write_file
from keylock.licensing.pem import armour

__all__ = ["check_place", "hand_over", "issuers_beside"]


def issuers_beside(license: Path) -> Path:
    """Returns where the public keys of a license's issuer are: `acme.issuers.jwks` beside `acme.license`."""
    return license.with_suffix(".issuers.jwks")


def check_place(path: Path) -> None:
    """Returns where a license can be written to a path, and the public keys of its issuer beside it.

    Raises:
        InputError: If a license is there already, or something else is where the keys go, or there is no folder.
    """
    beside = issuers_beside(path)
    if path.exists() or path.is_symlink():
        raise _taken(path)
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: its folder does not exist")
    try:
        # Keys that were handed over before are replaced; nothing else is.
        if beside.exists():
            load_keys(beside)
    except SignatureError:
        raise InputError(
            f"{beside} is where your public keys go, and holds something else: choose another path"
        ) from None


def hand_over(path: Path, token: str, keys: Sequence[VerifyingKey]) -> None:
    """Writes a license file of mode 0600, and the public keys of its issuer beside it.

    Args:
        path: Where the license goes.
        token: The license.
        keys: Of the issuer, that of today and those before it.

    Raises:
        InputError: If the license is there already, or something else is where the keys go, or they cannot be written.
    """
    check_place(path)
    beside = issuers_beside(path)
    try:
        write_secret_file(path, armour(token).encode("ascii"))
        write_file(beside, json.dumps(to_jwks(keys), indent=2) + "\n", mode=PUBLIC)
    except FileExistsError:
        raise _taken(path) from None
    except OSError as error:
        raise InputError(f"cannot write {error.filename or path}: {error.strerror}") from None


def _taken(path: Path) -> InputError:
    return InputError(f"{path} exists and is not overwritten: choose another path")
