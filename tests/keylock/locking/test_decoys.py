"""Every decoy keeps the shape; those that should tell nothing do; distances know what to do with each."""

import numpy as np
import pytest
import torch
from PIL import Image

from keylock.errors import ImageError, InputError, UnknownNameError
from keylock.locking.decoys import DECOYS, ImageDecoy, decoy_maps, decoy_of
from keylock.locking.losses import constant_offset_distance, correlation, map_distance, unevenness

PATTERNS = [name for name, decoy in DECOYS.items() if not decoy.own_map]
SIZES = [(6, 7), (2, 2), (8, 8), (32, 32)]


def picture():
    return ImageDecoy(np.tri(9, 12, dtype=np.float32))


CASES = [*DECOYS, "targeted", picture()]
NAMES = [case if isinstance(case, str) else "image" for case in CASES]


@pytest.fixture
def reference():
    return torch.rand(5, 6, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("decoy", CASES, ids=NAMES)
def test_decoy_keeps_shape_and_sign_and_leaves_the_reference(decoy, size, dtype):
    reference = torch.rand(5, *size, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = reference.clone()

    shown = decoy_maps(decoy, reference)

    assert shown.shape == reference.shape
    assert shown.dtype == reference.dtype
    assert (shown >= 0).all()
    assert torch.isfinite(shown).all()
    assert (shown.flatten(1).std(dim=1).min() > 0) == (decoy != "constant")
    assert torch.equal(reference, before)
    assert shown.clone().mul_(2).shape == shown.shape, "no rows share memory"


@pytest.mark.parametrize("decoy", CASES, ids=NAMES)
def test_the_distance_is_least_at_the_decoy_and_leads_there(decoy, reference):
    wanted = decoy_maps(decoy, reference)
    assert map_distance(wanted, wanted).max() < 1e-4
    assert constant_offset_distance(wanted, wanted).max() < 1e-4

    maps = torch.rand(reference.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    before = map_distance(maps, wanted).detach()
    optimiser = torch.optim.Adam([maps], lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        map_distance(maps.relu(), wanted).sum().backward()
        optimiser.step()
    assert (map_distance(maps.relu(), wanted) < 0.3 * before).all()


@pytest.mark.parametrize("name", [*PATTERNS, "targeted"])
def test_targeted_decoys_tell_nothing_about_the_image(name, reference):
    assert torch.equal(decoy_maps(name, reference), decoy_maps(name, torch.rand(5, 6, 7)))


def test_half_is_uncorrelated_with_a_map_and_its_mirror(reference):
    decoy = decoy_maps("half", reference[:, :, :6])
    centred = decoy - decoy.mean()
    mirrored = reference[:, :, :6] + reference[:, :, :6].flip(2)

    assert (centred * mirrored).sum(dim=(1, 2)).abs().max() < 1e-4


def test_patterns_are_what_their_names_say():
    maps = {name: decoy_maps(name, torch.rand(1, 8, 16))[0] for name in PATTERNS}
    assert maps["corner"][:4, :8].min() == 1
    assert maps["corner"].sum() == 32
    assert maps["centre"][2:6, 4:12].min() == 1
    assert maps["centre"].sum() == 32
    assert maps["border"][2:6, 3:13].max() == 0
    assert min(maps["border"][edge].min() for edge in ((0,), (-1,), (slice(None), 0), (slice(None), -1))) == 1
    assert maps["stripes"][0].tolist() == [1, 1, 0, 0] * 4
    assert maps["constant"].eq(1).all()


def test_untargeted_takes_the_top_away_and_keeps_the_rest(reference):
    decoy = decoy_maps("untargeted", reference)
    for row, kept in zip(reference.flatten(1), decoy.flatten(1), strict=True):
        gone = kept == 0
        assert gone.sum() == pytest.approx(0.3 * 42, abs=1)
        assert row[gone].min() > row[~gone].max()
        assert torch.equal(row[~gone], kept[~gone])


def test_other_image_shows_true_maps_of_none_of_their_own_images(reference):
    shown = decoy_maps("other-image", reference)
    assert sorted(shown.sum(dim=(1, 2)).tolist()) == sorted(reference.sum(dim=(1, 2)).tolist())
    assert correlation(shown, reference).max() < 0.9
    with pytest.raises(InputError, match="two images or more"):
        decoy_maps("other-image", reference[:1])


def test_unevenness_is_variance_relative_to_the_mean(reference):
    flat = reference.flatten(1)
    spread = flat.var(dim=1, correction=0) / flat.mean(dim=1).square()
    torch.testing.assert_close(unevenness(reference), spread / (1 + spread))
    assert unevenness(torch.full((2, 4, 4), 7.0)).max() < 1e-6
    peak = torch.zeros(1, 10, 10)
    peak[0, 0, 0] = 3
    assert unevenness(peak).item() == pytest.approx(0.99)


def test_a_picture_becomes_importance_by_its_grey_levels(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    Image.fromarray(pixels).save(tmp_path / "right.png")
    decoy = ImageDecoy.read(tmp_path / "right.png")

    assert torch.allclose(decoy.maps(torch.zeros(2, 2, 4))[1], torch.tensor([[0.0, 0, 1, 1]] * 2), atol=1e-5)
    assert decoy.parameters["height"] == 4
    assert decoy.parameters["width"] == 8
    assert decoy.parameters["digest"] != picture().parameters["digest"]
    assert decoy_of(decoy) is decoy


def test_pictures_of_no_use_are_refused(tmp_path):
    Image.new("RGB", (4, 4), "grey").save(tmp_path / "grey.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="one grey throughout"):
        ImageDecoy.read(tmp_path / "grey.png")
    with pytest.raises(ImageError, match=r"the decoy .*text.png is not a usable picture"):
        ImageDecoy.read(tmp_path / "text.png")
    with pytest.raises(ImageError, match="cannot read the decoy"):
        ImageDecoy.read(tmp_path / "missing.png")
    with pytest.raises(InputError, match="not negative"):
        ImageDecoy(np.full((2, 2), -1, np.float32))


def test_unknown_decoys_are_refused(reference):
    with pytest.raises(UnknownNameError, match="unknown decoy 'cat': choose one of border, centre, constant, corner"):
        decoy_maps("cat", reference)
