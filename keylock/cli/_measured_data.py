"""The data a lock is measured on: split as it was for training, so that no training image is measured on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keylock.bundle import Manifest
    from keylock.data import DataSource

__all__ = ["open_data_of", "seed_of"]


def seed_of(manifest: "Manifest") -> int:
    """Return the seed that the training of a bundle drew and split its data with."""
    seed: Any = manifest.training.get("seed", 0)
    return seed if isinstance(seed, int) and seed >= 0 else 0


def open_data_of(data: str, root: Path, manifest: "Manifest") -> "DataSource":
    """Open data as the training of a bundle did.

    Args:
        data: What `--data` says.
        root: What `--data-root` says.
        manifest: Of the bundle.

    Raises:
        DataError: The data cannot be used.
    """
    from keylock.data import open_data

    height, width = manifest.preprocessing.size
    return open_data(data, root=root, seed=seed_of(manifest), image_size=height if height == width else None)
