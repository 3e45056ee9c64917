"""What a data source is made of: image sets with labels, class names, and how the images reach a model.

A `DataSource` that exists is usable: every rule a data set must keep is checked when one is made.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keylock.data.files import ImageFiles
from keylock.data.regions import ObjectRegions, resize_mask
from keylock.errors import DataError
from keylock.imaging.preprocessing import Preprocessing
from keylock.text.class_names import normalise_class_names

__all__ = ["MIN_TEST_IMAGES", "Augmentation", "DataSource", "ImageSet", "split_by_share", "stratified_order"]

MIN_TEST_IMAGES = 10
"""Fewer test images than this make every measured figure meaningless."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are varied.

    Attributes:
        flip: Mirror every second image, left to right.
        crop_padding: Shift images by up to this many pixels in each direction; the edge pixels are repeated.
    """

    flip: bool = False
    crop_padding: int = 0


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images.

    Attributes:
        images: RGB pixels (count, height, width, 3), uint8, or files that are decoded when they are needed.
        labels: Class indices (count,), int64.
        masks: True where the object is (count, height, width), or files and boxes that say so; None where that is not
            known.
    """

    images: NDArray[np.uint8] | ImageFiles
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | ObjectRegions | None = None

    def __post_init__(self) -> None:
        counts = {len(self.images), len(self.labels)} | ({len(self.masks)} if self.masks is not None else set())
        if len(counts) != 1:
            raise DataError(f"images, labels and masks must be equally many, got {sorted(counts)}: pair them up")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.intp]) -> "ImageSet":
        """Return some of the images, in the order given."""
        images = self.images.take(indices) if isinstance(self.images, ImageFiles) else self.images[indices]
        masks = self.masks.take(indices) if isinstance(self.masks, ObjectRegions) else self.masks
        if isinstance(masks, np.ndarray):
            masks = masks[indices]
        return ImageSet(images, self.labels[indices], masks)

    def resized(self, preprocessing: Preprocessing, indices: NDArray[np.intp] | None = None) -> NDArray[np.uint8]:
        """Bring images to the size and the channels of a model, without normalising them.

        Args:
            preprocessing: Gives the size and the number of channels.
            indices: Which images (n,); all of them by default.

        Returns:
            Pixels (n, H, W, C), uint8. It is a view of `images` where nothing had to change.

        Raises:
            DataError: Files cannot be read or decoded.
        """
        if isinstance(self.images, ImageFiles):
            return self.images.resized(preprocessing, indices)
        chosen = self.images if indices is None else self.images[indices]
        if preprocessing.channels == 3 and chosen.shape[1:3] == preprocessing.size:
            return chosen
        pixels = np.empty((len(chosen), *preprocessing.size, preprocessing.channels), dtype=np.uint8)
        for row, image in enumerate(chosen):
            pixels[row] = preprocessing.resized(image)
        return pixels

    def resized_masks(
        self, preprocessing: Preprocessing, indices: NDArray[np.intp] | None = None
    ) -> NDArray[np.bool_] | None:
        """Bring the object masks to the size of a model, with the scaling and the crop that the images get.

        Args:
            preprocessing: Gives the size and how to get there.
            indices: Which masks (n,); all of them by default.

        Returns:
            Masks (n, H, W), or None where the set has none.

        Raises:
            DataError: Mask files cannot be read, or do not fit their images.
        """
        if self.masks is None:
            return None
        if isinstance(self.masks, ObjectRegions):
            return self.masks.resized(preprocessing, indices)
        chosen = self.masks if indices is None else self.masks[indices]
        if chosen.shape[1:] == preprocessing.size:
            return chosen
        masks = np.empty((len(chosen), *preprocessing.size), dtype=bool)
        for row, mask in enumerate(chosen):
            masks[row] = resize_mask(mask, preprocessing)
        return masks

    def resized_bytes(self, preprocessing: Preprocessing) -> int:
        """Return how much memory `resized` of the whole set takes."""
        height, width = preprocessing.size
        return len(self) * height * width * preprocessing.channels


@dataclass(frozen=True, eq=False)
class DataSource:
    """A data set that training and evaluation can use.

    Attributes:
        name: Short name, kept in the manifest of what is trained on it.
        classes: Class names in the order of the labels, in the spelling of `keylock.text.class_names`.
        train: Images to train on.
        test: Images to measure on; none of them is in `train`, as far as the source says.
        preprocessing: The preprocessing that suits these images; a model may need another one.
        augmentation: The variations under which these images keep their class.
        notes: What was found and is not used, or is taken for something else than its name says, in sentences.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    preprocessing: Preprocessing
    augmentation: Augmentation = Augmentation()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            only = f" ({self.classes[0]!r})" if self.classes else ""
            raise DataError(
                f"{self.name}: found {len(self.classes)} class{only}, a classifier needs at least two; "
                "give each class a folder or label of its own"
            )
        object.__setattr__(self, "classes", normalise_class_names(self.classes, source=self.name))
        for split, images in (("training", self.train), ("test", self.test)):
            if not len(images):
                raise DataError(f"{self.name}: there is no {split} image; add some")
            low, high = int(images.labels.min()), int(images.labels.max())
            if low < 0 or high >= len(self.classes):
                wrong = low if low < 0 else high
                raise DataError(
                    f"{self.name}: a {split} label is {wrong}, but there are {len(self.classes)} classes: "
                    f"labels must be 0 to {len(self.classes) - 1}"
                )
        unseen = [name for i, name in enumerate(self.classes) if not (self.train.labels == i).any()]
        if unseen:
            raise DataError(f"{self.name}: class {unseen[0]!r} has no training image; add some, or remove the class")
        if len(self.test) < MIN_TEST_IMAGES:
            raise DataError(
                f"{self.name}: {len(self.test)} test images are too few to measure anything; "
                f"give at least {MIN_TEST_IMAGES}"
            )

    def limited(self, *, train_count: int | None = None, test_count: int | None = None, seed: int = 0) -> "DataSource":
        """Return a smaller source in which every class keeps its share.

        Args:
            train_count: At most so many training images; None keeps all.
            test_count: At most so many test images; None keeps all.
            seed: Chooses which.

        Returns:
            A source with the chosen images, in their old order.
        """
        return replace(
            self,
            train=_limited(self.train, train_count, seed=seed),
            test=_limited(self.test, test_count, seed=seed + 1),
        )

    def summary(self) -> dict[str, Any]:
        """Return what a manifest keeps of a data source: JSON-able, and no paths of the machine it was made on."""
        return {
            "name": self.name,
            "classes": len(self.classes),
            "train_images": len(self.train),
            "test_images": len(self.test),
            "masks": self.test.masks is not None,
            "bits": self.preprocessing.bits,
        }


def stratified_order(labels: NDArray[np.int64], *, seed: int) -> NDArray[np.intp]:
    """Return a random order of which every beginning holds the classes in nearly the proportions of the whole.

    Args:
        labels: Class indices (count,).
        seed: Not negative.

    Returns:
        A permutation (count,).
    """
    shuffled = np.random.default_rng([seed, 0x5B117]).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = shuffled[labels[shuffled] == label]
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    # Ties (the first image of every class, and so on) keep the shuffled order.
    order: NDArray[np.intp] = shuffled[np.argsort(place[shuffled], kind="stable")]
    return order


def split_by_share(images: ImageSet, *, test_share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split one set into training and test images.

    Args:
        images: The whole set.
        test_share: Share of the test images, between 0 and 1.
        seed: Chooses which images.

    Returns:
        Training set and test set; every class is divided in the same proportion.
    """
    order = stratified_order(images.labels, seed=seed)
    test_count = round(test_share * len(order))
    return images.take(np.sort(order[test_count:])), images.take(np.sort(order[:test_count]))


def _limited(images: ImageSet, count: int | None, *, seed: int) -> ImageSet:
    if count is None or count >= len(images):
        return images
    return images.take(np.sort(stratified_order(images.labels, seed=seed)[:count]))
