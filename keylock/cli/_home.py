"""The vendor's directory on the command line: `--home`, else KEYLOCK_HOME, else ~/.keylock."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from keylock.crypto.signing import Home, VerifyingKey

__all__ = ["DEFAULT_HOME", "HomeOption", "IssuerOption", "open_home", "own_issuers", "read_issuers"]

DEFAULT_HOME = Path("~/.keylock")

HomeOption = Annotated[
    Path,
    typer.Option(metavar="DIR", envvar="KEYLOCK_HOME", help="The vendor's directory: issuer key and licenses."),
]
"""`home: HomeOption = DEFAULT_HOME`."""

IssuerOption = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Public key of a trusted issuer (PEM or JWKS); may be repeated."),
]
"""`issuer: IssuerOption = None`."""


def open_home(path: Path, *, create: bool = False) -> "Home":
    """Returns the vendor's directory.

    Raises:
        SignatureError: If it has no issuer key and none is to be made.
    """
    from keylock.crypto.signing import Home

    return Home.open(path, create=create)


def read_issuers(paths: Sequence[Path] | None) -> "list[VerifyingKey] | None":
    """Returns the keys in the files of `--issuer`, or None where the option was not given.

    Raises:
        SignatureError: If a file holds no public key.
    """
    from keylock.crypto.issuers import load_keys

    return [key for path in paths for key in load_keys(path)] if paths else None


def own_issuers(path: Path) -> "list[VerifyingKey]":
    """Returns the public keys of the vendor's directory, that of today first; none where there is none.

    Raises:
        SignatureError: If one is there and unreadable.
    """
    from keylock.crypto.issuers import home_keys
    from keylock.crypto.signing import Home

    return list(home_keys(Home(path.expanduser())))
