"""Batches from any loader: where images and labels stand in them, and labels as class indices.

A batch is a tuple or list that begins with images and labels, or a dict or object that names them. Labels are class
indices (batch,) or (batch, 1), of integers or of whole floating-point numbers, as losses for two classes take them; or
one-hot rows (batch, classes).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keylock.errors import DataError, InputError

__all__ = ["NO_BATCH", "checked", "first_batches", "images_of", "indices_of", "place_of"]

NO_BATCH = "the loader yields no batch: check the data set and drop_last"
_IMAGES = ("pixel_values", "images", "image", "inputs", "input", "img", "imgs", "x", "data")
_LABELS = ("labels", "label", "targets", "target", "y", "class", "cls", "class_id")
_ONCE = (
    "the loader can be gone through only once, and locking takes many rounds: give a DataLoader, a list of batches or "
    "keylock's Batches"
)


def place_of(loader: Iterable[Any]) -> Any:  # noqa: ANN401 - whatever the loader calls its place
    """Return where a loader that can be resumed is: behind the batches it has handed out."""
    return loader.state if hasattr(loader, "state") and hasattr(loader, "restore") else None


def indices_of(batch: Any) -> Tensor | None:  # noqa: ANN401 - whatever the loader yields
    """Return the places of a batch's images in their data set, where the batch says them."""
    indices = getattr(batch, "indices", None)
    return indices if isinstance(indices, Tensor) else None


def first_batches(loader: Iterable[Any], *, rows: int) -> list[Any]:
    """Take whole batches of at least so many images, as long as there are any, without moving a resumable loader on.

    Raises:
        DataError: The loader yields nothing, or can be gone through only once.
    """
    if isinstance(loader, Iterator):
        raise DataError(_ONCE)
    place, taken, count = place_of(loader), [], 0
    for batch in loader:
        taken.append(batch)
        images, _ = _parts(batch)
        # What is not a batch of images is refused when its images are read.
        count += max(1, len(images)) if hasattr(images, "__len__") else 1
        if count >= rows:
            break
    if not taken:
        raise DataError(NO_BATCH)
    if place is not None:
        loader.restore(place)  # type: ignore[attr-defined]
    elif not isinstance(loader, list | tuple | torch.utils.data.DataLoader) and next(iter(loader), None) is None:
        raise DataError(_ONCE)
    return taken


def checked(batch: Any, shape: tuple[int, int, int], classes: int) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Return the images (batch, channels, height, width), float32, and class indices (batch,), int64, of a batch.

    Args:
        batch: Whatever a loader yields.
        shape: That of one preprocessed image, which the key has.
        classes: How many logits the model has.

    Raises:
        DataError: There are no images or labels in it, or of another kind.
        InputError: The images have another shape.
    """
    images = images_of(batch, shape)
    return images, _class_indices(_parts(batch)[1], len(images), classes)


def images_of(batch: Any, shape: tuple[int, int, int]) -> Tensor:  # noqa: ANN401
    """Return the images of a batch; see `checked`."""
    images, _ = _parts(batch)
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point() or not len(images):
        raise DataError(
            "the loader must yield images as floating-point tensors (batch, channels, height, width), not "
            f"{_kind(images)}"
        )
    if tuple(images.shape[1:]) != shape:
        raise InputError(
            f"the key is for images of shape {shape}, the loader yields {tuple(images.shape[1:])}: "
            "derive the key with shape=(channels, height, width) of the preprocessed images"
        )
    return images.float()


def _parts(batch: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """Return what stands for images and labels in a batch of whatever kind."""
    if isinstance(batch, Mapping):
        return _named(batch, _IMAGES, "images"), _named(batch, _LABELS, "labels")
    if isinstance(batch, Tensor):
        raise DataError("the loader yields images without labels: it must yield (images, labels)")
    try:
        return batch[0], batch[1]
    except (TypeError, KeyError, IndexError):
        raise DataError(f"the loader must yield (images, labels), not {_kind(batch)}") from None


def _named(batch: Mapping[Any, Any], names: tuple[str, ...], what: str) -> Any:  # noqa: ANN401
    found = [name for name in names if name in batch]
    if not found:
        raise DataError(
            f"the loader yields dicts without {what}: name them {names[0]!r} or {names[1]!r}; there are "
            f"{', '.join(repr(key) for key in batch) or 'no keys'}"
        )
    return batch[found[0]]


def _class_indices(given: Any, rows: int, classes: int) -> Tensor:  # noqa: ANN401
    """Return labels of any usual form as class indices (rows,), int64."""
    if isinstance(given, list | tuple | np.ndarray):
        try:
            given = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            given = type(given).__name__
    if not isinstance(given, Tensor) or given.shape[:1] != (rows,):
        raise DataError(f"the loader must yield labels as a tensor of class indices (batch,), not {_kind(given)}")
    labels = given.flatten(1) if given.dim() > 1 else given.unsqueeze(1)
    if labels.dtype == torch.bool:
        labels = labels.long()
    if labels.is_floating_point():
        if not torch.equal(labels, labels.round()):
            raise DataError(
                "the labels are not whole numbers: mixed and smoothed labels are not taken, so give class indices"
            )
        labels = labels.long()
    if labels.shape[1] == 1:
        indices = labels.squeeze(1)
    elif labels.shape[1] == classes and int(labels.min()) >= 0 and bool((labels.sum(dim=1) == 1).all()):
        indices = labels.argmax(dim=1)
    elif labels.shape[1] == classes and 0 <= int(labels.min()) <= int(labels.max()) <= 1:
        raise DataError("an image has several labels or none: keylock locks classifiers with one class for each image")
    else:
        raise DataError(
            f"the labels have the shape {tuple(given.shape)}: give class indices (batch,), or one-hot rows "
            f"(batch, {classes}), as the model has {classes} classes"
        )
    if not 0 <= int(indices.min()) <= int(indices.max()) < classes:
        raise DataError(
            f"the model has {classes} classes: labels must be 0 to {classes - 1}, and the loader yields "
            f"{int(indices.min())} to {int(indices.max())}"
        )
    return indices.long()


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return value if isinstance(value, str) else type(value).__name__
