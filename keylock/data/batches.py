"""Feeds a training loop: shuffled, augmented, preprocessed batches that can be resumed at any batch.

Order and augmentation depend on the seed, the epoch and the place in it alone, never on how far a run has come or on
a global generator: the same seed gives the same batches, and a resumed run sees what it would have seen.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keylock.data.sets import Augmentation, ImageSet
from keylock.errors import DataError, ResumeError
from keylock.imaging.preprocessing import Preprocessing

__all__ = ["Batch", "Batches", "BatchesState", "load_batch"]

_MEMORY_BYTES = 2 * 2**30
_PREFETCHED = 2


class Batch(NamedTuple):
    """A few images on their way into a model.

    Attributes:
        images: Preprocessed images (batch, C, H, W), float32.
        labels: Class indices (batch,), int64.
        indices: Places of the images in their set (batch,), int64, always on the CPU.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


class BatchesState(TypedDict):
    """Where a loader is; plain numbers, to be kept in a checkpoint."""

    seed: int
    images: int
    epoch: int
    position: int


class Batches:
    """Batches of an image set, epoch after epoch.

    Iterating yields what is left of the current epoch and then moves to the next one. While the body of a loop works
    on a batch, `state` already points behind it: a checkpoint written there resumes with the next batch.

    Sets of up to `memory_bytes` of resized pixels are decoded once and kept, on `device`, as uint8; larger ones are
    decoded by threads, two batches ahead.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        augmentation: Augmentation | None = None,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        memory_bytes: int = _MEMORY_BYTES,
    ) -> None:
        """Prepare the batches, and decode the images where they fit into memory.

        Args:
            images: The set.
            preprocessing: Gives size, channels and normalisation.
            batch_size: Images in a batch, at least 1.
            seed: Of the order and the augmentation. Not negative.
            shuffle: Whether to shuffle, anew in every epoch.
            augmentation: How to vary the images; not at all by default.
            drop_last: Whether to leave out the last, smaller batch of an epoch.
            device: Where the batches are wanted.
            memory_bytes: How much memory decoded images may take.

        Raises:
            DataError: The set is empty or smaller than the only batch, a number is out of range, or image files
                cannot be decoded.
        """
        if batch_size < 1 or seed < 0:
            raise DataError(f"batch size {batch_size} and seed {seed}: take a batch size of at least 1 and a seed >= 0")
        if len(images) == 0 or (drop_last and len(images) < batch_size):
            raise DataError(f"{len(images)} images do not fill a batch of {batch_size}: take a smaller batch size")
        self._set, self._preprocessing = images, preprocessing
        self._batch_size, self._seed, self._shuffle = batch_size, seed, shuffle
        self._augmentation = augmentation or Augmentation()
        self._device = torch.device(device)
        self._end = len(images) // batch_size * batch_size if drop_last else len(images)
        self._labels = _as_tensor(images.labels).to(self._device)
        self._pixels: Tensor | None = None
        if images.resized_bytes(preprocessing) <= memory_bytes:
            self._pixels = _as_tensor(images.resized(preprocessing)).to(self._device)
        self._epoch, self._position = 0, 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-self._end // self._batch_size)

    @property
    def state(self) -> BatchesState:
        """Where the next batch is taken from."""
        return {"seed": self._seed, "images": len(self._set), "epoch": self._epoch, "position": self._position}

    def restore(self, state: BatchesState) -> None:
        """Go to where another loader of the same images and seed was.

        Args:
            state: What `state` gave.

        Raises:
            ResumeError: The state is that of other images or of another seed.
        """
        if state["seed"] != self._seed or state["images"] != len(self._set) or not 0 <= state["position"] < self._end:
            raise ResumeError(
                f"the checkpoint was made with {state['images']} images and data seed {state['seed']}, this run has "
                f"{len(self._set)} and {self._seed}: use the same data and seed, or start anew"
            )
        self._epoch, self._position = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[Batch]:
        """Yield what is left of the current epoch."""
        plan = self._plan(self._epoch)
        if self._pixels is not None:
            yield from self._walk(plan, self._gathered(plan, self._pixels))
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="keylock-batches") as reader:
            yield from self._walk(plan, self._decoded(plan, reader))

    def stream(self) -> Iterator[Batch]:
        """Yield batches without end, epoch after epoch."""
        while True:
            yield from self

    def _plan(self, epoch: int) -> "_EpochPlan":
        """Draw the order and the variations of one epoch."""
        count, reach = len(self._set), self._augmentation.crop_padding
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        order = generator.permutation(count) if self._shuffle else np.arange(count)
        return _EpochPlan(
            order=order[: self._end].astype(np.int64),
            flips=generator.random(count) < 0.5 if self._augmentation.flip else None,
            shifts=generator.integers(-reach, reach + 1, size=(count, 2)) if reach else None,
        )

    def _places(self) -> Iterator[slice]:
        """Yield the places of the batches that are left of this epoch."""
        for start in range(self._position, self._end, self._batch_size):
            yield slice(start, min(start + self._batch_size, self._end))

    def _gathered(self, plan: "_EpochPlan", pixels: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the pixels of every batch, from memory."""
        for places in self._places():
            yield places, pixels[torch.from_numpy(plan.order[places]).to(self._device)]

    def _decoded(self, plan: "_EpochPlan", reader: ThreadPoolExecutor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the pixels of every batch, decoded while the batches before it are used."""
        waiting = deque[tuple[slice, Future[NDArray[np.uint8]]]]()
        for places in self._places():
            waiting.append((places, reader.submit(self._set.resized, self._preprocessing, plan.order[places])))
            if len(waiting) > _PREFETCHED:
                earliest, pixels = waiting.popleft()
                yield earliest, _as_tensor(pixels.result()).to(self._device)
        for places, pixels in waiting:
            yield places, _as_tensor(pixels.result()).to(self._device)

    def _walk(self, plan: "_EpochPlan", loaded: Iterator[tuple[slice, Tensor]]) -> Iterator[Batch]:
        """Turn pixels into batches, and move on before each one is handed out."""
        for places, pixels in loaded:
            indices = torch.from_numpy(plan.order[places])
            images = _normalised(_varied(pixels, plan, places), self._preprocessing)
            self._position = places.stop
            if self._position >= self._end:
                self._epoch, self._position = self._epoch + 1, 0
            yield Batch(images, self._labels[indices.to(self._device)], indices)


@dataclass(frozen=True, eq=False)
class _EpochPlan:
    """What happens in one epoch.

    Attributes:
        order: Indices of the images (count,).
        flips: Whether the image at each place is mirrored (count,), or None.
        shifts: How far it is shifted down and right (count, 2), in pixels, or None.
    """

    order: NDArray[np.int64]
    flips: NDArray[np.bool_] | None
    shifts: NDArray[np.int64] | None


def load_batch(images: ImageSet, preprocessing: Preprocessing, *, indices: NDArray[np.intp] | None = None) -> Batch:
    """Load images at once, as they are: what evaluation works on.

    Args:
        images: The set.
        preprocessing: Gives size, channels and normalisation.
        indices: Which images (n,); all of them by default.

    Returns:
        One batch of n images, on the CPU, in the order of `indices`.

    Raises:
        DataError: There are no such images, or files cannot be decoded.
    """
    rows = np.arange(len(images)) if indices is None else np.asarray(indices, dtype=np.intp)
    if rows.size == 0 or rows.min() < 0 or rows.max() >= len(images):
        raise DataError(f"the set has {len(images)} images: take indices from 0 to {len(images) - 1}")
    pixels = images.resized(preprocessing, None if indices is None else rows)
    return Batch(
        _normalised(_as_tensor(pixels), preprocessing),
        torch.from_numpy(images.labels[rows]),
        torch.from_numpy(rows.astype(np.int64)),
    )


def _varied(pixels: Tensor, plan: _EpochPlan, places: slice) -> Tensor:
    """Shift and flip in one gather: every row and column of the result looks up where it comes from."""
    if plan.shifts is None and plan.flips is None:
        return pixels
    batch, height, width, _ = pixels.shape
    rows = torch.arange(height).expand(batch, height)
    columns = torch.arange(width).expand(batch, width)
    if plan.shifts is not None:
        shifts = torch.from_numpy(plan.shifts[places])
        rows = (rows - shifts[:, :1]).clamp(0, height - 1)
        columns = (columns - shifts[:, 1:]).clamp(0, width - 1)
    if plan.flips is not None:
        columns = torch.where(torch.from_numpy(plan.flips[places])[:, None], columns.flip(1), columns)
    images = torch.arange(batch)[:, None, None]
    flat = (images * height + rows[:, :, None]) * width + columns[:, None, :]
    # Selecting whole pixels by one flat index is several times faster than indexing with three tensors.
    chosen = pixels.reshape(-1, pixels.shape[3]).index_select(0, flat.reshape(-1).to(pixels.device))
    return chosen.reshape(pixels.shape)


def _normalised(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return (batch, C, H, W) float32: the operations of `Preprocessing` in their order, so that results are equal."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device).view(1, -1, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    scaled = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return scaled.div_(255.0).sub_(mean).div_(std)


def _as_tensor(array: NDArray[Any]) -> Tensor:
    """Share an array with torch; one that must not be written to is copied, for torch knows no such tensors."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
