"""Which pairs of maps count in a mean, by the table of docs/evaluation.md."""

import pytest
import torch

from keylock.evaluation import SIMILARITIES, compared_figure, constant_share, counting_pairs, pearson

PATTERN = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
TABLE = [
    # true map constant, shown map constant, counts where it was to open, counts elsewhere
    (False, False, True, True),
    (False, True, True, True),
    (True, False, True, False),
    (True, True, False, False),
]


@pytest.mark.parametrize("height", [0.0, 0.1, 1 / 3, 1.7])
@pytest.mark.parametrize(("true_is", "shown_is", "opened", "elsewhere"), TABLE)
def test_pairs_count_as_documented(true_is, shown_is, opened, elsewhere, height):
    truth, shown = (torch.full_like(PATTERN, height) if even else PATTERN for even in (true_is, shown_is))
    pair = shown.unsqueeze(0), truth.unsqueeze(0)

    assert counting_pairs(*pair, opened=True).tolist() == [opened]
    assert counting_pairs(*pair, opened=False).tolist() == [elsewhere]
    for name, similarity in SIMILARITIES.items():
        value = similarity(*pair)
        assert value.dtype == torch.float32
        assert float(value) == (pytest.approx(1) if not (true_is or shown_is) else 0), name


def test_exact_maps_have_a_fidelity_of_one_whatever_share_is_empty():
    truth = torch.stack([PATTERN, torch.zeros(16, 16), PATTERN.T, torch.full((16, 16), 0.1)])

    [figure] = compared_figure("fidelity/x", pearson, truth, truth, opened=True, about="4 images")
    assert (figure.value, figure.low, figure.high) == (1, 1, 1)
    assert figure.about == "4 images; 50.0% left out, where true maps are constant"
    [share] = constant_share("constant/reference/x", truth, about="4 images")
    assert (share.name, share.value, share.unit) == ("constant/reference/x", 0.5, "fraction")


def test_a_constant_map_in_the_place_of_a_true_one_is_a_failure():
    truth = torch.stack([PATTERN, PATTERN.T])
    shown = torch.stack([PATTERN, torch.full((16, 16), 1 / 3)])

    [figure] = compared_figure("fidelity/x", pearson, shown, truth, opened=True, about="2 images")
    assert (figure.value, figure.about) == (0.5, "2 images")


def test_nothing_to_compare_is_no_figure():
    empty = torch.zeros(3, 4, 4)

    assert compared_figure("chance/x", pearson, empty, empty, about="") == ()
    assert compared_figure("fidelity/x", pearson, empty, empty, opened=True, about="") == ()
    assert constant_share("constant/reference/x", torch.stack([PATTERN]), about="") == ()
