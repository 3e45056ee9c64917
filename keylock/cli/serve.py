"""`keylock serve`: a server for one bundle or several, until SIGTERM or Ctrl-C."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from keylock.cli._console import JsonOption, note, print_json

if TYPE_CHECKING:
    from keylock.crypto.signing import Home
    from keylock_server import ServerSettings

__all__ = ["serve"]

T = TypeVar("T")

_RECEIPT_KEY_LIFE: Final = timedelta(days=366)


def serve(
    bundle: Annotated[
        list[Path] | None,
        typer.Argument(metavar="BUNDLE", help="Bundles to serve, folders or .klb files. [env: KEYLOCK_SERVER_BUNDLE]"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings (TOML); flags and KEYLOCK_SERVER_* win over them.")
    ] = None,
    host: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Port to listen on; 0 takes a free one. [8470]")
    ] = None,
    key_file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Key file that opens the sealed key; once for all bundles, or for each."),
    ] = None,
    key_passphrase_file: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="File with the passphrase that opens the sealed key. [env: KEYLOCK_KEY_PASSPHRASE]"
        ),
    ] = None,
    key_seed_file: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="File with the key seed, instead of the sealed key.")
    ] = None,
    key_provider: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:ARGUMENT", help="Anything else that opens it: hpke:FILE, vault:MOUNT/KEY, aws-kms:KEY, ..."
        ),
    ] = None,
    sealed_key: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A sealed key of its own, for a public copy of the bundle."),
    ] = None,
    offline_license: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An offline license, for a public copy on a customer's own machine."),
    ] = None,
    keyless: Annotated[
        bool, typer.Option("--keyless", help="Serve without the key: predictions and decoys alone.")
    ] = False,
    home: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="KEYLOCK_HOME",
            help="The vendor's directory: trusts its issuer, uses its licenses. [~/.keylock]",
        ),
    ] = None,
    issuer: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Public key trusted to sign the bundle and licenses; may be repeated."),
    ] = None,
    license_store: Annotated[str | None, typer.Option(metavar="URL", help="License store. [that of --home]")] = None,
    receipt_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Key that signs receipts, with its certificate. [receipts.pem in --home]"),
    ] = None,
    unlicensed: Annotated[
        str | None, typer.Option(metavar="decoy|refuse", help="Answer to callers without a license. [decoy]")
    ] = None,
    stamped_images: Annotated[
        str | None,
        typer.Option(metavar="answer|ignore", help="Whether images with the trigger open without a license. [ignore]"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="auto|cpu|cuda|tensorrt", help="Device to compute on; auto uses the best. [auto]"),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(metavar="float32|float16|int8", help="Precision to compute in, where the bundle has such graphs."),
    ] = None,
    max_image_ratio: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Refuse images of more than N pixels for each pixel that the model looks at. [no such limit]",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Server processes that share the address; 0: one per core. [1]"),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Server certificate chain (PEM); turns TLS on.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key (PEM).")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Require client certificates signed by these CAs (PEM).")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File that gets HOST:PORT once the server answers.")
    ] = None,
    log_level: Annotated[
        str, typer.Option(metavar="debug|info|warning|error", help="How much to log, to standard error.")
    ] = "info",
    log_format: Annotated[
        str, typer.Option(metavar="text|json", help="How to log: lines for people, or JSON for machines.")
    ] = "text",
    metrics_port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Serve Prometheus metrics on this port of this machine.")
    ] = None,
    admin_port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Serve operators on this port; needs the three files below.")
    ] = None,
    admin_certificate: Annotated[
        Path | None,
        typer.Option("--admin-certificate", "--admin-cert", metavar="FILE", help="Its certificate chain (PEM)."),
    ] = None,
    admin_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key (PEM).")] = None,
    admin_client_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CA certificates (PEM) that sign operators' client certificates."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve predictions to everybody and true saliency maps to callers with a license, over gRPC.

    Stops on SIGTERM or Ctrl-C, after the running calls have finished. More settings: docs/server.md.
    """
    from keylock_server import ServerSettings
    from keylock_server import serve as run

    settings = ServerSettings.load(
        config=config,
        bundle=_one_or_several(bundle),
        host=host,
        port=port,
        key_file=_one_or_several(key_file),
        key_passphrase_file=_one_or_several(key_passphrase_file),
        key_seed_file=_one_or_several(key_seed_file),
        key_provider=_one_or_several(key_provider),
        sealed_key=_one_or_several(sealed_key),
        offline_license=offline_license,
        keyless=keyless or None,
        issuers=tuple(issuer) if issuer else None,
        license_store=license_store,
        receipt_key=receipt_key,
        unlicensed_explanations=unlicensed,
        stamped_images=stamped_images,
        device=device,
        variant=variant,
        max_image_ratio=max_image_ratio,
        workers=workers,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        ready_file=ready_file,
        metrics_port=metrics_port,
        admin_port=admin_port,
        admin_certificate=admin_certificate,
        admin_key=admin_key,
        admin_client_ca=admin_client_ca,
    )
    _set_up_log(log_level, log_format)
    settings = _complete(settings, home)
    _take_secrets()
    run(settings, on_ready=lambda described: _announce(described, as_json=as_json), prepare=_set_up_tracing)


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


def _one_or_several(given: Sequence[T] | None) -> T | tuple[T, ...] | None:
    if not given:
        return None
    return given[0] if len(given) == 1 else tuple(given)


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
