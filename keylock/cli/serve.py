"""`keylock serve`: a server for one bundle or several, until SIGTERM or Ctrl-C."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from keylock.cli._console import note, print_json
from keylock.cli._options import takes
from keylock.cli._serve_options import ServeOptions

if TYPE_CHECKING:
    from keylock.crypto.signing import Home
    from keylock_server import ServerSettings

__all__ = ["serve"]

_RECEIPT_KEY_LIFE: Final = timedelta(days=366)


@takes(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve predictions to everybody and true saliency maps to callers with a license, over gRPC.

    Stops on SIGTERM or Ctrl-C, after the running calls have finished. More settings: docs/server.md.
    """
    from keylock_server import serve as run

    settings = options.settings()
    _set_up_log(options.log_level, options.log_format)
    settings = _complete(settings, options.home)
    _take_secrets()
    run(settings, on_ready=lambda described: _announce(described, as_json=options.as_json), prepare=_set_up_tracing)


def _set_up_tracing() -> None:
    # In each process that serves: exporting spans begins a thread.
    from keylock_server.operations.tracing import set_up_tracing

    set_up_tracing()


def _take_secrets() -> None:
    """Takes secrets that the settings have by now out of the variables, which workers and other processes would get."""
    import os

    from keylock.cli._secrets import PASSPHRASE_VARIABLE, SEED_VARIABLE
    from keylock.crypto.secrecy import take_variable

    # An address of a store may have a password in it.
    for name in (PASSPHRASE_VARIABLE, SEED_VARIABLE, "KEYLOCK_LICENSE_STORE", "KEYLOCK_SERVER_LICENSE_STORE"):
        take_variable(os.environ, name)


def _complete(settings: "ServerSettings", path: Path | None) -> "ServerSettings":
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


def _set_up_log(level: str, form: str) -> None:
    import logging
    import warnings

    from keylock.errors import InputError
    from keylock_server.transport.logs import JsonFormatter, TextFormatter

    levels = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
    if level not in levels:
        raise InputError(f"the log level {level!r} is unknown: choose one of {', '.join(levels)}")
    if form not in ("text", "json"):
        raise InputError(f"the log format {form!r} is unknown: choose text or json")
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.getLogger("keylock_server").setLevel(levels[level])
    # Image readers warn about oddities of images that callers send; these are no concern of the server's log.
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _announce(described: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(described)
        return
    workers = f" by {len(described['workers'])} workers" if "workers" in described else ""
    for model in described["models"]:
        with_key = "without the key" if model["key_id"] is None else f"with the key {model['key_id']}"
        typer.echo(f"serving {model['model']} on {described['target']} {with_key}{workers}; Ctrl-C stops", color=False)
