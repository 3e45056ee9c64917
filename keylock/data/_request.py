"""What every opener of a data set is handed, and the default preprocessing they share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from keylock.imaging.preprocessing import Preprocessing

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "DataRequest", "preprocessing_of_size"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """The checked arguments of `open_data`."""

    path: Path
    root: Path
    seed: int
    image_size: int | None
    train_count: int | None
    test_count: int | None
    test_share: float
    download: bool
    bits: int | None = None


def preprocessing_of_size(
    size: tuple[int, int], *, resize: Literal["exact", "shorter_side_crop"] = "exact", bits: int | None = None
) -> Preprocessing:
    """Return the default preprocessing for images of one size.

    Every source gets the ImageNet statistics: published weights expect them, and to a model that is trained afresh
    it makes no difference whether the mean is that of its own data or a near one.
    """
    return Preprocessing(size=size, channels=3, resize=resize, mean=IMAGENET_MEAN, std=IMAGENET_STD, bits=bits)
