"""Similarities of maps against naive versions in NumPy that share no code with them."""

import numpy as np
import pytest
import torch

from keylock.errors import TensorError
from keylock.evaluation import SIMILARITIES, enlarge, pearson, spearman, ssim, top_overlap


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(5, 8, 8, generator=generator)
    return first, 0.6 * first + 0.4 * torch.rand(5, 8, 8, generator=generator)


@pytest.fixture
def large_maps(maps):
    # Not square, so that an exchange of height and width would show.
    return tuple(enlarge(rows, (13, 17)) + 0.1 * torch.rand(5, 13, 17) for rows in maps)


def pairs(maps):
    return list(zip(*(rows.double().numpy() for rows in maps), strict=True))


def naive_ranks(values):
    """Ranks from 1, with the mean rank for equals, straight from the definition."""
    flat = values.ravel()
    return np.array([(flat < value).sum() + ((flat == value).sum() + 1) / 2 for value in flat])


def naive_ssim(first, second):
    """Equation 13 of Wang et al., window by window, with statistics around the mean and not by differences."""
    first, second = ((values - values.min()) / (values.max() - values.min()) for values in (first, second))
    row = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = np.outer(row, row) / np.outer(row, row).sum()
    found = []
    for top in range(first.shape[0] - 10):
        for left in range(first.shape[1] - 10):
            x, y = (values[top : top + 11, left : left + 11] for values in (first, second))
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            variance_x, variance_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
            covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
            luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
            found.append(luminance * (2 * covariance + 9e-4) / (variance_x + variance_y + 9e-4))
    return np.mean(found)


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1.7])
@pytest.mark.parametrize("size", [(12, 12), (31, 17), (224, 224)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_maps_are_like_nothing(name, value, size, dtype):
    even = torch.full((2, *size), value, dtype=dtype)
    rounded = even * (1 + 1e-6 * torch.rand(even.shape, generator=torch.Generator().manual_seed(0), dtype=dtype))
    shape = torch.rand(even.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    for first, second in ((even, even), (even, rounded), (rounded, rounded), (even, shape), (shape, rounded)):
        assert SIMILARITIES[name](first, second).tolist() == [0, 0]


def test_similarities_stay_in_their_range():
    shape = torch.rand(200, 12, 12, generator=torch.Generator().manual_seed(0))
    for name, similarity in SIMILARITIES.items():
        assert similarity(shape, shape).max() <= 1, name
        assert similarity(1e-30 * shape, 1e30 * shape).min() > 0.999, name
    assert pearson(shape, -shape).min() >= -1


def test_pearson_equals_numpy(maps):
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs(maps)]

    np.testing.assert_allclose(pearson(*maps).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("levels", [None, 5, 2])
def test_spearman_equals_pearson_of_naive_ranks_with_and_without_ties(levels, maps):
    if levels:
        maps = tuple((rows * levels).floor() for rows in maps)
    expected = [np.corrcoef(naive_ranks(a), naive_ranks(b))[0, 1] for a, b in pairs(maps)]

    np.testing.assert_allclose(spearman(*maps).numpy(), expected, atol=1e-5)


def test_spearman_known_answers():
    ascending = torch.tensor([[[1.0, 2, 3], [4, 5, 6]]])
    # Six places, sum of squared rank differences 8: 1 - 6 * 8 / (6 * 35).
    swapped = torch.tensor([[[2.0, 1, 4], [3, 6, 5]]])

    assert float(spearman(ascending, ascending.exp())) == pytest.approx(1, abs=1e-6)
    assert float(spearman(ascending, -ascending)) == pytest.approx(-1, abs=1e-6)
    assert float(spearman(ascending, swapped)) == pytest.approx(1 - 36 / 210, abs=1e-6)
    assert float(spearman(ascending, torch.ones_like(ascending))) == 0


def test_ssim_equals_the_naive_version(large_maps):
    expected = [naive_ssim(a, b) for a, b in pairs(large_maps)]

    np.testing.assert_allclose(ssim(*large_maps).numpy(), expected, atol=1e-6)
    assert 0.1 < np.mean(expected) < 0.95


def test_ssim_is_blind_to_scale_and_offset_alone(large_maps):
    maps, others = large_maps

    torch.testing.assert_close(ssim(maps, maps * 1e-7 + 3e-7), torch.ones(5), atol=1e-3, rtol=0)
    assert (ssim(maps, 1 - maps) < 0.2).all()
    torch.testing.assert_close(ssim(maps, others), ssim(others * 9, maps), atol=1e-5, rtol=0)
    constant = torch.ones(5, 13, 17)
    torch.testing.assert_close(ssim(constant, 2 * constant), torch.zeros(5))
    assert torch.isfinite(ssim(maps, constant)).all()


def test_ssim_of_maps_below_its_window_is_refused(maps):
    with pytest.raises(TensorError, match="11 pixels or more, not 8 x 8"):
        ssim(*maps)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 1.0])
def test_top_overlap_equals_sets(share, maps):
    count = max(1, round(share * 64))
    expected = [
        len(set(np.argsort(-a.ravel())[:count]) & set(np.argsort(-b.ravel())[:count])) / count for a, b in pairs(maps)
    ]

    np.testing.assert_allclose(top_overlap(*maps, share=share).numpy(), expected)
    assert (top_overlap(maps[0], maps[0] * 7 + 1, share=share) == 1).all()


@pytest.mark.parametrize("name", SIMILARITIES)
def test_every_similarity_is_largest_for_equal_maps_and_one_value_per_pair(name, large_maps):
    maps, others = large_maps
    same, different = SIMILARITIES[name](maps, maps), SIMILARITIES[name](maps, others)

    assert same.shape == different.shape == (5,)
    torch.testing.assert_close(same, torch.ones(5), atol=1e-5, rtol=0)
    assert (different < same).all()
    torch.testing.assert_close(SIMILARITIES[name](maps[2:3], others[2:3]), different[2:3])


def test_maps_of_the_right_size_are_not_interpolated():
    maps = torch.rand(2, 4, 6)

    assert torch.equal(enlarge(maps, (4, 6)), maps)
    assert enlarge(maps, (8, 9)).shape == (2, 8, 9)
