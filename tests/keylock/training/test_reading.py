"""Batches as loaders yield them: named, nested, with labels of every usual form."""

from collections import UserDict, namedtuple

import pytest
import torch

from keylock.errors import DataError
from keylock.training.reading import checked, first_batches

SHAPE = (3, 4, 4)
IMAGES, LABELS = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0, 1, 0])
Pair = namedtuple("Pair", ["picture", "kind"])


@pytest.mark.parametrize(
    "batch",
    [
        {"pixel_values": IMAGES, "labels": LABELS},
        {"image": IMAGES, "label": LABELS, "path": ["a"] * 6},
        UserDict(pixel_values=IMAGES, labels=LABELS),
        Pair(IMAGES, LABELS),
        (IMAGES, LABELS, "names", {"more": 1}),
        [IMAGES, LABELS],
    ],
    ids=["Hugging Face", "another dict", "BatchFeature", "named tuple", "longer", "list"],
)
def test_images_and_labels_are_found(batch):
    images, labels = checked(batch, SHAPE, 2)

    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS.int(),
        LABELS.to(torch.uint8),
        LABELS.bool(),
        LABELS.float(),
        LABELS[:, None],
        LABELS[:, None].float(),
        torch.nn.functional.one_hot(LABELS),
        torch.nn.functional.one_hot(LABELS).double(),
        LABELS.tolist(),
        LABELS.numpy(),
    ],
    ids=["int32", "uint8", "bool", "float", "column", "float column", "one-hot", "float one-hot", "list", "NumPy"],
)
def test_labels_become_class_indices(labels):
    _, found = checked((IMAGES, labels), SHAPE, 2)

    assert found.dtype == torch.int64
    assert torch.equal(found, LABELS)


def test_half_precision_images_become_float32():
    images, _ = checked((IMAGES.half(), LABELS), SHAPE, 2)

    assert images.dtype == torch.float32


class Drained:
    """Hands out the same generator's batches, whoever asks."""

    def __init__(self):
        self.batches = iter([(IMAGES, LABELS)] * 3)

    def __iter__(self):
        return (batch for batch in self.batches)


def test_a_loader_that_is_empty_the_second_time_is_refused():
    with pytest.raises(DataError, match="only once, and locking takes many rounds"):
        first_batches(Drained(), rows=1000)

    assert len(first_batches([(IMAGES, LABELS)] * 3, rows=7)) == 2
