"""Energy and pointing against sums and searches in NumPy, and the floor of random maps."""

import numpy as np
import pytest
import torch

from keylock.evaluation import energy_inside, pointing_game, random_maps


@pytest.fixture
def maps():
    return torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def masks():
    return torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.6


def test_energy_inside_equals_sums(maps, masks):
    expected = [(m * k).sum() / m.sum() for m, k in zip(maps.numpy(), masks.numpy(), strict=True)]

    np.testing.assert_allclose(energy_inside(maps, masks).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(energy_inside(maps * 1e-9, masks).numpy(), expected, rtol=1e-4)


def test_energy_of_small_empty_and_constant_maps():
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[:, :4] = True
    masks[:, 4, :4] = True
    area = masks.float().mean()
    top = torch.zeros(1, 2, 2)
    top[:, 0] = 1

    assert float(energy_inside(torch.zeros(1, 2, 2), masks)) == pytest.approx(float(area))
    assert float(energy_inside(torch.ones(1, 2, 2), masks)) == pytest.approx(float(area))
    assert energy_inside(top, masks) > 0.85


@pytest.mark.parametrize("tolerance", [0, 1, 3])
def test_pointing_game_equals_a_search_around_the_largest_pixel(tolerance, maps):
    # Sparse, so that a tolerance of one pixel decides some of them and not all.
    masks = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(4)) > 0.93
    expected = []
    for saliency, mask in zip(maps.numpy(), masks.numpy(), strict=True):
        top, left = np.unravel_index(saliency.argmax(), saliency.shape)
        near = mask[max(0, top - tolerance) : top + tolerance + 1, max(0, left - tolerance) : left + tolerance + 1]
        expected.append(float(near.any()))

    found = pointing_game(maps, masks, tolerance=tolerance).tolist()

    assert found == expected
    assert tolerance != 1 or 0 < sum(found) < 5


def test_pointing_of_ties_is_their_share_inside(masks):
    area = masks.float().mean(dim=(1, 2))
    two = torch.zeros(1, 4, 4)
    two[0, 0, 0] = two[0, 3, 3] = 1
    half = torch.zeros(1, 4, 4, dtype=torch.bool)
    half[:, :2] = True

    torch.testing.assert_close(pointing_game(torch.ones(5, 8, 8), masks), area)
    assert pointing_game(two, half).tolist() == [0.5]


def test_random_maps_have_no_preference_and_come_from_the_generator(maps):
    masks = torch.zeros(2000, 16, 16, dtype=torch.bool)
    masks[:, 4:12, 4:12] = True
    like = torch.zeros(2000, 16, 16)
    drawn = random_maps(like, generator=torch.Generator().manual_seed(3))

    assert torch.equal(drawn, random_maps(like, generator=torch.Generator().manual_seed(3)))
    # A quarter of the area is inside, and a map of noise finds that much, though the object is in the middle.
    assert float(pointing_game(drawn, masks).mean()) == pytest.approx(0.25, abs=0.04)
    assert float(energy_inside(drawn, masks).mean()) == pytest.approx(0.25, abs=0.01)
