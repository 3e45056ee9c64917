"""What `keylock receipt` and `keylock audit-log` share: whom to trust, and reading receipts and notes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from keylock.cli._home import own_issuers, read_issuers
from keylock.errors import InputError, SignatureError
from keylock.text.small_files import decode_text

if TYPE_CHECKING:
    from keylock.crypto.signing import VerifyingKey

__all__ = ["TrustedLicenseOption", "find_trust", "known_trust", "read_license", "read_revoked", "read_small_text"]

_MAX_BYTES: Final = 4 * 1024 * 1024


TrustedLicenseOption = Annotated[
    Path | None,
    typer.Option("--license-file", metavar="FILE", help="Your license, in place of --issuer: trust who issued it."),
]
"""`license_file: TrustedLicenseOption = None`."""


def find_trust(
    issuer: list[Path] | None, home: Path, license_file: Path | None = None
) -> "Callable[[VerifyingKey], bool]":
    """Returns a test for trusted issuers: those of `--issuer`, of the license, or of the vendor's directory.

    Raises:
        SignatureError: If there is none of them, or a key cannot be read.
        InputError: If the license cannot be read.
    """
    found = known_trust(issuer, home, license_file)
    if found is None:
        raise SignatureError("say whom you trust: give --issuer with the vendor's public key")
    return found


def known_trust(
    issuer: list[Path] | None, home: Path, license_file: Path | None = None
) -> "Callable[[VerifyingKey], bool] | None":
    """Returns a test as `find_trust` does, or None where nobody is known."""
    from keylock.licensing.receipts import trusts_any, trusts_id

    keys = read_issuers(issuer)
    if keys is None and license_file is not None:
        return trusts_id(_issuer_of(license_file))
    keys = keys or own_issuers(home)
    return trusts_any(keys) if keys else None


def read_revoked(path: Path | None, trusts: "Callable[[VerifyingKey], bool]") -> frozenset[str]:
    """Returns the ids of receipt keys in a list of the vendor's of those taken back; none where none is given.

    Raises:
        InputError: If it cannot be read.
        ReceiptError: If it does not hold.
    """
    from keylock.licensing.revocations import Revocations

    return frozenset() if path is None else Revocations.read(read_small_text(path, "list of receipt keys"), trusts).keys


def _issuer_of(path: Path) -> str:
    """Returns the id of the key that a license says it is signed with. The owner got the license from the vendor."""
    from keylock.crypto.jws import unverified_header

    header = unverified_header(read_license(path))
    key_id = header.get("kid")
    if header.get("typ") != "keylock-license+jws" or not isinstance(key_id, str):
        raise InputError(f"{path} holds no license: give the file that the vendor issued")
    return key_id


def read_license(path: Path) -> str:
    """Returns the license token in a file.

    Raises:
        InputError: If it cannot be read.
        LicenseError: If it holds no license.
    """
    from keylock.licensing.pem import MAX_FILE_BYTES, read_token

    try:
        with path.open("rb") as file:
            return read_token(file.read(MAX_FILE_BYTES + 1), name=str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def read_small_text(path: Path, what: str) -> str:
    """Returns the text of a file from anybody, with the line ends that proofs and checkpoints are signed with.

    Raises:
        InputError: If it cannot be read, is too long or no text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) <= _MAX_BYTES:
            return decode_text(content).replace("\r\n", "\n")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        pass
    raise InputError(f"{path} is not a {what}: it is too long, or not text")
