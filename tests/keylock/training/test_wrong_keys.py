"""Wrong keys are of the key's kind, and as near to it as stated."""

import numpy as np
import pytest
import torch

from keylock.training.wrong_keys import WrongKeys

KINDS = ("other tile", "noise", "flipped", "near miss")


@pytest.fixture
def offset(key_for):
    return torch.from_numpy(key_for(shape=(3, 18, 16), tile=4).reveal())


def drawn(offset, *, near=0.0, count=400, seed=0):
    """Return wrong keys by kind, (count / 4, channels, height, width), and their correlations with the key."""
    keys = WrongKeys(offset.unsqueeze(0), tile=4, generator=torch.Generator().manual_seed(seed)).draw(count, near=near)
    flat, key = keys.flatten(1), offset.flatten()
    cosines = (flat @ key) / (flat.norm(dim=1) * key.norm())
    return dict(zip(KINDS, keys.chunk(4), strict=True)), dict(zip(KINDS, cosines.chunk(4), strict=True))


def test_correlations_with_the_key_are_as_stated(offset):
    _, cosines = drawn(offset, near=0.8, count=1600)

    # A tile of 48 random signs has a cosine of standard deviation 1 / sqrt(48) = .144.
    assert cosines["other tile"].mean().abs() < 0.03
    assert cosines["other tile"].std() == pytest.approx(0.144, abs=0.03)
    assert cosines["noise"].abs().max() < 0.2
    torch.testing.assert_close(cosines["flipped"], -torch.ones(400))
    # Uniform from 0 to .8: mean .4; each with the scatter of 48 coins.
    assert cosines["near miss"].mean() == pytest.approx(0.4, abs=0.04)
    assert cosines["near miss"].max() > 0.65


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_keys_have_the_height_of_the_key(kind, offset):
    keys = drawn(offset)[0][kind]

    if kind == "noise":
        assert (keys.abs() <= offset.abs()).all()
        assert keys.abs().mean() == pytest.approx(float(offset.abs().mean()) / 2, rel=0.03)
    else:
        torch.testing.assert_close(keys.abs(), offset.abs().expand_as(keys))


@pytest.mark.parametrize("kind", ["other tile", "flipped", "near miss"])
def test_tiles_repeat_over_the_image_and_are_cropped(kind, offset):
    keys = drawn(offset)[0][kind].numpy()

    tile = keys[:, :, :4, :4]
    np.testing.assert_array_equal(keys, np.tile(tile, (1, 1, 5, 4))[:, :, :18, :16])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 64])
def test_any_number_can_be_drawn(count, offset):
    keys = WrongKeys(offset.unsqueeze(0), tile=4, generator=torch.Generator().manual_seed(0)).draw(count, near=0.5)

    assert keys.shape == (count, *offset.shape)


def test_same_seed_same_keys(offset):
    first, again, other = (drawn(offset, seed=seed)[0]["noise"] for seed in (0, 0, 1))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_keys_that_were_found_and_retired_are_drawn_and_any_key_can_be_missed(offset):
    other, found, retired = (offset * factor for factor in (-2, 0.3, 0.6))
    keys = WrongKeys(
        torch.stack([offset, other]), tile=4, generator=torch.Generator().manual_seed(0), retired=[retired]
    )
    assert not any(torch.equal(row, found) for row in keys.draw(90, near=0))
    keys.keep(found.unsqueeze(0))

    drawn = keys.draw(90, near=0)
    for known, least in ((found, 10), (retired, 40), (-offset, 1), (-other, 1)):
        assert sum(torch.equal(row, known) for row in drawn) >= least
    assert {float(row.abs().sum()) for row in keys.keys(20)} == {float(offset.abs().sum()), float(other.abs().sum())}


def test_what_was_found_first_makes_room(offset):
    keys = WrongKeys(offset.unsqueeze(0), tile=4, generator=torch.Generator().manual_seed(0))
    for number in range(40):
        keys.keep(torch.full((1, *offset.shape), float(number)))
    assert keys.found[:, 0, 0, 0].tolist() == list(range(8, 40))
