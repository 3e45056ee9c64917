"""The options of `keylock explain-many`, as one object, and the settings of a server that they are."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from keylock.cli._connection import ExplainIfOption
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

__all__ = ["BulkOptions"]

_SETTINGS: Final = (
    "config",
    "key_file",
    "key_passphrase_file",
    "key_seed_file",
    "key_provider",
    "sealed_key",
    "offline_license",
    "keyless",
    "license_store",
    "receipt_key",
    "device",
    "runtime",
    "variant",
)
"""Options that are settings of a server, of the same names."""

# A receipt has the digests of so many images at most.
_MOST_IMAGES: Final = 4096


@dataclass(frozen=True, kw_only=True)
class BulkOptions:
    """What `keylock explain-many` was told; the help says what each is. Settings that were not given are None."""

    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle: a folder or a .klb file.")]
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="PATH|URL", help="A folder of images, Parquet with an image in each row, or s3://..."
        ),
    ]
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", help="A new folder for the results, or that of the job to go on with."
        ),
    ]
    explainer: Annotated[
        str | None,
        typer.Option("--explainer", "-e", metavar="NAME", help="Saliency method; the bundle's first if left out."),
    ] = None
    target: Annotated[
        str | None,
        typer.Option(
            "--target", "-t", metavar="CLASS", help="Label or index of the class to explain; else the predicted one."
        ),
    ] = None
    prediction: Annotated[
        str,
        typer.Option(
            "--prediction",
            metavar="public|keyed",
            help="The prediction beside a map: the one that everybody gets, or that of the network with the key.",
        ),
    ] = "public"
    explain_if: ExplainIfOption = None
    max_units: Annotated[
        int | None,
        typer.Option(
            "--max-units", min=0, metavar="N", help="Charge at most N units for the job, over all its runs; then stop."
        ),
    ] = None
    map_dtype: Annotated[str, typer.Option(metavar="float32|float16|uint8", help="Type of the elements of maps.")] = (
        "float32"
    )
    column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of Parquet with the images. [image, or the only one]")
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Explain the first N images alone.")] = None
    block_size: Annotated[
        int | None,
        typer.Option(
            min=1, max=_MOST_IMAGES, metavar="N", help="Images in a block: one file, one charge, one receipt. [256]"
        ),
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, max=4096, metavar="N", help="Images in one run of the network.")] = (
        32
    )
    workers: Annotated[int | None, typer.Option(min=1, max=4096, metavar="N", help="Workers. [one for each core]")] = (
        None
    )
    threads: Annotated[int, typer.Option(min=1, max=1024, metavar="N", help="Cores of each worker.")] = 1
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A Ray cluster to use, also ray://HOST:PORT or auto. [this machine]"),
    ] = None
    license_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The license that pays, one charge for each block.")
    ] = None
    offline_license: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An offline license, which pays and has the key of a public copy."),
    ] = None
    no_charge: Annotated[
        bool, typer.Option("--no-charge", help="Charge nobody: for the holder of the key, with its own pictures.")
    ] = False
    keyless: Annotated[
        bool | None, typer.Option("--keyless", help="Explain without the key: decoys, which nobody pays for.")
    ] = None
    key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Key file that opens the sealed key.")] = None
    key_passphrase_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with the passphrase that opens the sealed key. [env: KEYLOCK_KEY_PASSPHRASE]"
        ),
    ] = None
    key_seed_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the key seed, instead of the sealed key.")
    ] = None
    key_provider: Annotated[
        str | None,
        typer.Option(
            metavar="KIND:ARGUMENT", help="Anything else that opens it: hpke:FILE, vault:MOUNT/KEY, aws-kms:KEY, ..."
        ),
    ] = None
    sealed_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A sealed key of its own, for a public copy of the bundle.")
    ] = None
    home: VendorHomeOption = None
    issuer: IssuersOption = None
    license_store: Annotated[
        str | None, typer.Option(metavar="URL", help="License store, the server's. [that of --home]")
    ] = field(default=None, repr=False)
    receipt_key: ReceiptKeyOption = None
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Settings of the server (TOML): prices, limits of images, and the rest."),
    ] = None
    device: Annotated[
        str | None,
        typer.Option(metavar="cpu|cuda|tensorrt", help="Device to compute on; each worker takes one GPU. [cpu]"),
    ] = None
    runtime: RuntimeOption = None
    variant: VariantOption = None
    as_json: JsonOption = False

    def settings(self) -> "ServerSettings":
        """Return the settings of a server: the options, over those of the environment and of `--config`.

        Raises:
            InputError: A setting is out of range, or the file cannot be read.
        """
        from keylock_server import ServerSettings

        given = {name: getattr(self, name) for name in _SETTINGS}
        settings = ServerSettings.load(**given, bundle=self.bundle, issuers=tuple(self.issuer) if self.issuer else None)
        # Those are workers of a server, in a machine of its own; here each worker has the cores that it is given.
        return settings.model_copy(update={"workers": 1, "batches": 1, "threads": self.threads})
