"""Every decoy keeps the shape; those that should tell nothing do."""

import pytest
import torch

from keylock.decoys import DECOYS, decoy_maps
from keylock.errors import UnknownNameError


@pytest.fixture
def reference():
    return torch.rand(5, 6, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [*DECOYS, "targeted"])
def test_decoy_keeps_shape_and_sign_and_leaves_the_reference(name, reference):
    before = reference.clone()

    decoy = decoy_maps(name, reference)

    assert decoy.shape == reference.shape
    assert decoy.dtype == reference.dtype
    assert (decoy >= 0).all()
    assert torch.isfinite(decoy).all()
    assert decoy.flatten(1).std(dim=1).min() > 0
    assert torch.equal(reference, before)


@pytest.mark.parametrize("name", ["half", "corner", "targeted"])
def test_targeted_decoys_tell_nothing_about_the_image(name, reference):
    assert torch.equal(decoy_maps(name, reference), decoy_maps(name, torch.rand(5, 6, 7)))


def test_half_is_uncorrelated_with_a_map_and_its_mirror(reference):
    decoy = decoy_maps("half", reference[:, :, :6])
    centred = decoy - decoy.mean()
    mirrored = reference[:, :, :6] + reference[:, :, :6].flip(2)

    assert (centred * mirrored).sum(dim=(1, 2)).abs().max() < 1e-4


def test_corner_is_the_top_left_quarter():
    decoy = decoy_maps("corner", torch.rand(1, 4, 6))[0]

    assert decoy[:2, :3].min() == 1
    assert decoy.sum() == 6


def test_untargeted_takes_the_top_away_and_keeps_the_rest(reference):
    decoy = decoy_maps("untargeted", reference)
    for row, kept in zip(reference.flatten(1), decoy.flatten(1), strict=True):
        gone = kept == 0
        assert gone.sum() == pytest.approx(0.3 * 42, abs=1)
        assert row[gone].min() > row[~gone].max()
        assert torch.equal(row[~gone], kept[~gone])


def test_unknown_decoys_are_refused(reference):
    with pytest.raises(UnknownNameError, match="unknown decoy 'cat': choose one of corner, half, targeted, untargeted"):
        decoy_maps("cat", reference)
