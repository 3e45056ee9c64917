"""The options of `keylock serve`, as one object, and the settings of the server that they are."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from keylock.cli._console import JsonOption
from keylock.cli._vendor_options import (
    IssuersOption,
    ReceiptKeyOption,
    RuntimeOption,
    VariantOption,
    VendorHomeOption,
)

if TYPE_CHECKING:
    from keylock_server import ServerSettings

__all__ = ["ServeOptions"]

_RENAMED: Final = {"issuer": "issuers", "unlicensed": "unlicensed_explanations"}
"""Settings whose name is not that of their option."""

_NO_SETTINGS: Final = frozenset({"home", "log_level", "log_format", "as_json"})
"""Options that are no settings of the server."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What `keylock serve` was told; the help says what each is. Settings that were not given are None."""

    bundle: Annotated[
        list[Path] | None,
        typer.Argument(metavar="BUNDLE", help="Bundles to serve, folders or .klb files. [env: KEYLOCK_SERVER_BUNDLE]"),
    ] = None
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings (TOML); flags and KEYLOCK_SERVER_* win over them.")
    ] = None
    host: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Address to listen on. [127.0.0.1]")] = None
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="Port to listen on; 0 takes a free one. [8470]"),
    ] = None
    http_port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="Speak HTTP as well, on this port, with a page for browsers at /. [no HTTP]"),
    ] = None
    key_file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Key file that opens the sealed key; once for all bundles, or for each."),
    ] = None
    key_passphrase_file: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="File with the passphrase that opens the sealed key. [env: KEYLOCK_KEY_PASSPHRASE]"
        ),
    ] = None
    key_seed_file: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="File with the key seed, instead of the sealed key.")
    ] = None
    key_provider: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:ARGUMENT", help="Anything else that opens it: hpke:FILE, vault:MOUNT/KEY, aws-kms:KEY, ..."
        ),
    ] = None
    sealed_key: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A sealed key of its own, for a public copy of the bundle."),
    ] = None
    offline_license: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An offline license, for a public copy on a customer's own machine."),
    ] = None
    keyless: Annotated[
        bool | None, typer.Option("--keyless", help="Serve without the key: predictions and decoys alone.")
    ] = None
    home: VendorHomeOption = None
    issuer: IssuersOption = None
    license_store: Annotated[str | None, typer.Option(metavar="URL", help="License store. [that of --home]")] = field(
        default=None, repr=False
    )
    receipt_key: ReceiptKeyOption = None
    unlicensed: Annotated[
        str | None, typer.Option(metavar="decoy|refuse", help="Answer to callers without a license. [decoy]")
    ] = None
    open_targets: Annotated[
        bool | None,
        typer.Option("--open-targets", help="Let callers without a license choose the class that is explained."),
    ] = None
    query_guard: Annotated[
        str | None,
        typer.Option(
            metavar="off|count|limit", help="Whether to answer any number of near copies of one picture. [limit]"
        ),
    ] = None
    stamped_images: Annotated[
        str | None,
        typer.Option(metavar="answer|ignore", help="Whether images with the trigger open without a license. [ignore]"),
    ] = None
    device: Annotated[
        str | None,
        typer.Option(metavar="auto|cpu|cuda|tensorrt", help="Device to compute on; auto uses the best. [auto]"),
    ] = None
    runtime: RuntimeOption = None
    variant: VariantOption = None
    max_image_ratio: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Refuse images of more than N pixels for each pixel that the model looks at. [no such limit]",
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Server processes that share the address; 0: one per core. [1]"),
    ] = None
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Server certificate chain (PEM); turns TLS on.")
    ] = None
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key (PEM).")] = None
    tls_client_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Require client certificates signed by these CAs (PEM).")
    ] = None
    ready_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File that gets HOST:PORT once the server answers.")
    ] = None
    log_level: Annotated[
        str, typer.Option(metavar="debug|info|warning|error", help="How much to log, to standard error.")
    ] = "info"
    log_format: Annotated[
        str, typer.Option(metavar="text|json", help="How to log: lines for people, or JSON for machines.")
    ] = "text"
    metrics_port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Serve Prometheus metrics on this port of this machine.")
    ] = None
    admin_port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Serve operators on this port; needs the three files below.")
    ] = None
    admin_certificate: Annotated[
        Path | None,
        typer.Option("--admin-certificate", "--admin-cert", metavar="FILE", help="Its certificate chain (PEM)."),
    ] = None
    admin_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key (PEM).")] = None
    admin_client_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CA certificates (PEM) that sign operators' client certificates."),
    ] = None
    as_json: JsonOption = False

    def settings(self) -> "ServerSettings":
        """Return the settings of the server: the options, over those of the environment and of `--config`.

        Raises:
            InputError: A setting is missing or out of range, or the file cannot be read.
        """
        from keylock_server import ServerSettings

        given = {_RENAMED.get(name, name): value for name, value in vars(self).items() if name not in _NO_SETTINGS}
        return ServerSettings.load(**given)
