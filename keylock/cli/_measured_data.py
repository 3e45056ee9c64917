"""What `evaluate`, `audit` and `retire` take alike: the vendor's bundle, and the data to measure on.

The data is split as it was for training, so that no training image is measured on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keylock.cli._console import note_all

if TYPE_CHECKING:
    from keylock.bundle import Manifest
    from keylock.data import DataSource

__all__ = ["DataOptions", "ReferenceOption", "VendorBundleArgument", "open_data_of", "seed_of"]

VendorBundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="The vendor's bundle: a folder or a .klb file.")
]
ReferenceOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights of the reference model. [those in BUNDLE.work]")
]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where the data is; the help says what each is."""

    data: Annotated[
        str, typer.Option(metavar="DATA", help="shapes, cifar10, fashion-mnist, an image folder or an .npz file.")
    ] = "shapes"
    data_root: Annotated[Path, typer.Option(metavar="DIR", help="Where the named data sets lie.")] = Path("data")


def seed_of(manifest: "Manifest") -> int:
    """Return the seed that the training of a bundle drew and split its data with."""
    seed: Any = manifest.training.get("seed", 0)
    return seed if isinstance(seed, int) and seed >= 0 else 0


def open_data_of(
    given: DataOptions, manifest: "Manifest", *, train_count: int | None = None, test_count: int | None = None
) -> "DataSource":
    """Open data as the training of a bundle did.

    Args:
        given: `--data` and `--data-root`.
        manifest: Of the bundle.
        train_count: What `--train-images` says.
        test_count: What `--test-images` says.

    Raises:
        DataError: The data cannot be used.
    """
    from keylock.data import open_data

    height, width = manifest.preprocessing.size
    source = open_data(
        given.data,
        root=given.data_root,
        seed=seed_of(manifest),
        image_size=height if height == width else None,
        train_count=train_count,
        test_count=test_count,
        bits=manifest.preprocessing.bits,
    )
    note_all(source.notes)
    return source
