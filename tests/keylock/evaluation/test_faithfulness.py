"""Deletion and insertion against a loop over single images, and on a model that looks at one pixel."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from keylock.errors import InputError
from keylock.evaluation import deletion, deletion_and_insertion


def generator():
    return torch.Generator().manual_seed(0)


def looks_at_one_pixel(images):
    """Class 1 where the pixel (2, 3) is bright; blur and removal both take that away."""
    return torch.stack([torch.zeros(len(images)), 20 * images[:, 0, 2, 3] - 10], dim=1)


@pytest.fixture
def one_pixel():
    images = torch.zeros(2, 1, 8, 8)
    images[:, 0, 2, 3] = 1
    right, wrong = torch.rand(2, 8, 8, generator=generator()).clone().unbind(0)
    right[2, 3], wrong[2, 3] = 2, -1
    return images, torch.stack([right, wrong])


def test_a_map_that_marks_the_pixel_deletes_at_once_and_one_that_hides_it_at_last(one_pixel):
    images, maps = one_pixel
    steps = 64
    found = deletion_and_insertion(
        looks_at_one_pixel, images, maps, torch.ones(2, dtype=torch.int64), generator=generator(), steps=steps
    )

    # One trapezoid from "seen" to "gone" at the first of 64 steps, or at the last.
    seen, gone = 1 / (1 + math.exp(-10)), 1 / (1 + math.exp(10))
    first = (seen + gone) / 2 / steps
    assert found.deletion.tolist() == pytest.approx([first + gone * 63 / 64, first + seen * 63 / 64], abs=1e-5)
    assert found.insertion[0] > 0.95
    assert found.insertion[1] < 0.05


def test_equals_a_loop_over_images_and_steps(tiny_net, smooth_images):
    model, images = tiny_net(), smooth_images(3, 16)
    maps = torch.rand(3, 16, 16, generator=generator())
    targets = torch.tensor([2, 0, 1])
    found = deletion_and_insertion(model, images, maps, targets, generator=generator(), steps=5)

    row = torch.exp(-((torch.arange(11) - 5.0) ** 2) / 50)
    kernel = (row[:, None] * row[None, :] / (row.sum() ** 2)).expand(3, 1, 11, 11)
    blurred = F.conv2d(F.pad(images, (5, 5, 5, 5), mode="replicate"), kernel, groups=3)
    for name, start, end in (("deletion", images, torch.zeros_like(images)), ("insertion", blurred, images)):
        for place in range(3):
            order = np.argsort(-maps[place].numpy().ravel())
            points = []
            for step in range(6):
                shown = start[place].clone()
                chosen = order[: round(step / 5 * 256)]
                shown.flatten(1)[:, chosen] = end[place].flatten(1)[:, chosen]
                with torch.no_grad():
                    points.append(float(model(shown[None]).softmax(dim=1)[0, targets[place]]))
            area = sum((a + b) / 2 for a, b in itertools.pairwise(points)) / 5
            assert float(getattr(found, name)[place]) == pytest.approx(area, abs=1e-5)
    alone = deletion(model, images, maps, targets, generator=generator(), steps=5)
    assert torch.equal(alone, found.deletion)


def test_pixels_a_map_does_not_tell_apart_come_in_random_order(one_pixel):
    images = one_pixel[0][:1].expand(400, -1, -1, -1)
    found = deletion_and_insertion(
        looks_at_one_pixel,
        images,
        torch.zeros(400, 2, 2),
        torch.ones(400, dtype=torch.int64),
        generator=generator(),
        steps=8,
    )

    # The pixel stands in the upper half; the order of the rows would delete it early in every image.
    assert float(found.deletion.mean()) == pytest.approx(0.5, abs=0.05)
    assert found.deletion.std() > 0.2


def test_no_step_is_refused(one_pixel):
    images, maps = one_pixel
    with pytest.raises(InputError, match="0 steps"):
        deletion_and_insertion(
            looks_at_one_pixel, images, maps, torch.ones(2, dtype=torch.int64), generator=generator(), steps=0
        )
