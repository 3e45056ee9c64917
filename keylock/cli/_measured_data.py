"""What `evaluate`, `audit` and `retire` take alike: the vendor's bundle and its secrets, and the data to measure on.

The data is split as it was for training, so that no training image is measured on.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keylock.cli._console import note_all

if TYPE_CHECKING:
    from keylock.bundle import Manifest
    from keylock.data import DataSource

__all__ = [
    "DataOption",
    "DataRootOption",
    "KeyFileOption",
    "KeySeedFileOption",
    "PassphraseFileOption",
    "ReferenceOption",
    "VendorBundleArgument",
    "open_data_of",
    "seed_of",
]

VendorBundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="The vendor's bundle: a folder or a .klb file.")
]
DataOption = Annotated[
    str, typer.Option(metavar="DATA", help="shapes, cifar10, fashion-mnist, an image folder or an .npz file.")
]
DataRootOption = Annotated[Path, typer.Option(metavar="DIR", help="Where the named data sets lie.")]
ReferenceOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights of the reference model. [those in BUNDLE.work]")
]
KeySeedFileOption = Annotated[Path | None, typer.Option(metavar="FILE", help="File with the key seed.")]
KeyFileOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Key file that opens the sealed key. [BUNDLE.key]")
]
PassphraseFileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File with the passphrase that opens it. [env: KEYLOCK_KEY_PASSPHRASE]"),
]


def seed_of(manifest: "Manifest") -> int:
    """Return the seed that the training of a bundle drew and split its data with."""
    seed: Any = manifest.training.get("seed", 0)
    return seed if isinstance(seed, int) and seed >= 0 else 0


def open_data_of(
    data: str, root: Path, manifest: "Manifest", *, train_count: int | None = None, test_count: int | None = None
) -> "DataSource":
    """Open data as the training of a bundle did.

    Args:
        data: What `--data` says.
        root: What `--data-root` says.
        manifest: Of the bundle.
        train_count: What `--train-images` says.
        test_count: What `--test-images` says.

    Raises:
        DataError: The data cannot be used.
    """
    from keylock.data import open_data

    height, width = manifest.preprocessing.size
    source = open_data(
        data,
        root=root,
        seed=seed_of(manifest),
        image_size=height if height == width else None,
        train_count=train_count,
        test_count=test_count,
        bits=manifest.preprocessing.bits,
    )
    note_all(source.notes)
    return source
