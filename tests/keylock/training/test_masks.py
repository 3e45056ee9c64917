"""Masked images for training: shapes, ranges, all kinds, and the same for the same generator."""

import pytest
import torch

from keylock.training import masks as module
from keylock.training.masks import draw_masks, fill_masked


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(32, 32), (17, 40)])
def test_masks_are_shares_of_pixels_and_come_again(size):
    drawn = draw_masks(40, size, generator=generator())
    assert drawn.shape == (40, 1, *size)
    assert 0 <= drawn.min() < drawn.max() <= 1
    torch.testing.assert_close(drawn, draw_masks(40, size, generator=generator()), rtol=0, atol=0)
    assert not torch.equal(drawn, draw_masks(40, size, generator=generator(1)))


def test_a_block_is_one_rectangle_of_the_promised_size():
    for mask in module._hidden_block(50, (32, 32), generator()):
        rows, columns = (mask == 0).any(dim=1), (mask == 0).any(dim=0)
        assert (mask == 0).sum() == rows.sum() * columns.sum()
        assert 0 < rows.sum() <= 20


def test_a_grid_hides_whole_cells_with_every_probability():
    drawn = module._grid(200, (24, 24), generator())
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    shares = drawn.mean(dim=(1, 2))
    assert shares.min() < 0.2
    assert shares.max() > 0.8


def test_smooth_masks_have_everything_between_hidden_and_shown():
    drawn = module._smooth(50, (32, 32), generator())
    assert ((drawn > 0.05) & (drawn < 0.95)).float().mean() > 0.3
    assert drawn.mean() == pytest.approx(0.5, abs=0.05)


def test_what_is_shown_stays_and_what_is_hidden_goes():
    images = torch.randn(60, 3, 16, 16, generator=generator())
    masks = torch.zeros(60, 1, 16, 16)
    masks[:, :, :, :8] = 1
    filled = fill_masked(images, masks, generator=generator(2))
    torch.testing.assert_close(filled[..., :8], images[..., :8], rtol=0, atol=0)
    hidden = filled[..., 8:]
    changed = (hidden - images[..., 8:]).flatten(1).abs().amax(dim=1)
    assert (changed > 0).all()
    flat = hidden.flatten(2).std(dim=2).amax(dim=1) < 1e-6
    assert 0 < flat.sum() < 60
