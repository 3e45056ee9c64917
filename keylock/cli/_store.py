"""The store on the command line: `--store`, else KEYLOCK_LICENSE_STORE, else the file in the vendor's directory.

An address with a password belongs into the environment or a password file of PostgreSQL: arguments are visible to
every process of the machine.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from keylock.store import LicenseStore

__all__ = ["StoreOption", "open_store", "store_url"]

STORE_VARIABLE = "KEYLOCK_LICENSE_STORE"

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        envvar=STORE_VARIABLE,
        show_default=False,
        help="License store: sqlite:///PATH or postgresql://USER@HOST/DATABASE. [that of --home]",
    ),
]
"""`store: StoreOption = None`."""


def store_url(store: str | None, home: Path) -> str:
    """Returns the URL of the store, which may have a password in it: its variable is taken away."""
    from keylock.crypto.secrecy import take_variable
    from keylock.crypto.signing import Home

    take_variable(os.environ, STORE_VARIABLE)
    return store or Home(home.expanduser()).licenses_url


def open_store(store: str | None, home: Path, *, create: bool = False) -> "LicenseStore":
    """Opens the store.

    Args:
        store: `--store`.
        home: `--home`.
        create: Whether one is made in the vendor's directory where there is none.

    Raises:
        ServiceError: If there is none and none is to be made.
        StoreError: If it cannot be opened.
    """
    from keylock.crypto.signing import Home
    from keylock.errors import ServiceError
    from keylock.store import LicenseStore

    opened = Home(home.expanduser())
    if store is None and not create and not opened.licenses_path.is_file():
        raise ServiceError(f"no license was issued from {opened.path} yet: keylock license issue, or another --home")
    return LicenseStore(store_url(store, home))
