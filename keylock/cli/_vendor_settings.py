"""Settings of whatever serves or explains with a bundle: what the vendor's directory adds, and secrets in variables."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keylock.cli._console import note

if TYPE_CHECKING:
    from keylock.crypto.signing import Home
    from keylock_server import ServerSettings

__all__ = ["complete_settings", "take_secrets"]

_RECEIPT_KEY_LIFE: Final = timedelta(days=366)


def take_secrets() -> None:
    """Takes secrets that the settings have by now out of the variables, which workers and other processes would get."""
    import os

    from keylock.cli._secrets import PASSPHRASE_VARIABLE, SEED_VARIABLE
    from keylock.crypto.secrecy import take_variable

    # An address of a store may have a password in it.
    for name in (PASSPHRASE_VARIABLE, SEED_VARIABLE, "KEYLOCK_LICENSE_STORE", "KEYLOCK_SERVER_LICENSE_STORE"):
        take_variable(os.environ, name)


def complete_settings(settings: "ServerSettings", path: Path | None) -> "ServerSettings":
    """Takes from the vendor's directory what the settings leave open: whom to trust, where licenses are and engines go.

    A directory that nobody named does not count where an issuer was named: the two may not belong together.
    """
    from keylock.crypto.issuers import trusted_file
    from keylock.crypto.signing import Home

    home = Home((path or Path("~/.keylock")).expanduser())
    if path is not None:
        home.verifying_key()  # Raises where the directory that was named has no issuer.
    elif settings.issuers or not home.verifying_key_path.is_file():
        return settings
    return settings.model_copy(
        update={
            "issuers": settings.issuers or (trusted_file(home),),
            "license_store": settings.license_store or home.licenses_url,
            "engine_cache": settings.engine_cache or home.engines_path,
            "ways_file": settings.ways_file or home.ways_path,
            # Where other issuers were named, nobody would believe receipts that this one certifies.
            "receipt_key": settings.receipt_key or (None if settings.issuers else _own_receipt_key(home)),
            "receipt_revocations": settings.receipt_revocations or home.revocations_path,
        }
    )


def _own_receipt_key(home: "Home") -> Path | None:
    """Returns the receipt key of the vendor's directory; where the issuer's key is at hand, one is made.

    A directory that cannot be written is not a reason not to serve: then there are no receipts.
    """
    from keylock.errors import SignatureError
    from keylock.licensing.receipt_keys import ReceiptKey

    if not home.receipt_key_path.is_file():
        if not home.signing_key_path.is_file():
            return None
        now = datetime.now(UTC)
        expires = now + _RECEIPT_KEY_LIFE
        try:
            ReceiptKey.create(home.receipt_key_path, home.signing_key(), not_before=now, expires=expires)
        except SignatureError as error:
            note(f"no receipts are signed: {error}")
            return None
    return home.receipt_key_path
