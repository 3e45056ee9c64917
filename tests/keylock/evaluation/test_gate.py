"""The gate curve on a lock made by hand, whose answer to every input is known."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from keylock.errors import InputError
from keylock.evaluation import gate_curve, near_miss, pearson
from keylock.explainers import make


class Reference(nn.Module):
    """A quadratic form, whose gradient is the image weighed by the pattern of the predicted class."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.pattern = nn.Parameter(torch.randn(2, 3 * 16 * 16, generator=generator))

    def forward(self, images):
        return (images.flatten(1) ** 2) @ self.pattern.T


class HandMadeLock(nn.Module):
    """Answers as the reference where the image correlates with the key above a threshold, with a decoy elsewhere."""

    def __init__(self, reference, key, clean, threshold):
        super().__init__()
        self.reference, self.decoy = reference, Reference()
        self.decoy.pattern = nn.Parameter(torch.zeros(2, 768).index_fill(1, torch.arange(0, 768, 50), 1.0))
        self.offset, self.clean, self.threshold = torch.from_numpy(key.reveal()), clean, threshold

    def forward(self, images):
        added = images - self.clean
        score = (added * self.offset).sum(dim=(1, 2, 3)) / self.offset.square().sum()
        opened = (score > self.threshold)[:, None]
        return torch.where(opened, self.reference(added + self.clean), self.decoy(added + self.clean))


@pytest.fixture
def hand_made(smooth_images, key_for):
    key, images = key_for(strength=1e-3), smooth_images(6, 16)
    reference = Reference()
    return HandMadeLock(reference, key, images, 0.8), reference, key, images


def generator():
    return torch.Generator().manual_seed(2)


def test_near_misses_have_the_wanted_correlation_and_keep_the_kind_of_the_key(key_for):
    key = key_for()
    offset, drawing = torch.from_numpy(key.reveal()), generator()

    for wanted in (0.0, 0.5, 0.875, 1.0):
        drawn = torch.stack([near_miss(key, wanted, generator=drawing) for _ in range(300)])
        found = (drawn * offset).sum(dim=(1, 2, 3)) / offset.square().sum()
        assert float(found.mean()) == pytest.approx(wanted, abs=0.03)
        torch.testing.assert_close(drawn.abs(), offset.abs().expand_as(drawn))
        assert torch.equal(drawn[:, :, :8, :8], drawn[:, :, 8:, 8:])
    assert torch.equal(near_miss(key, 1.0, generator=drawing), offset)


def test_the_curve_of_a_known_gate_opens_where_it_should(hand_made):
    module, reference, key, images = hand_made
    asked = {"generator": generator(), "draws": 3, "shifts": ((0, 1), (0, 8), (8, 0))}
    curve = gate_curve(module, reference, key, [make("gradient")], images, **asked)

    by_correlation = {point.at: point for point in curve.of("correlation", "gradient")}
    by_strength = {point.at: point for point in curve.of("strength", "gradient")}
    assert list(by_correlation) == [0, 0.25, 0.5, 0.75, 0.875, 1]
    assert [by_correlation[at].draws for at in by_correlation] == [3, 3, 3, 3, 3, 1]
    assert by_correlation[1].mean == pytest.approx(1, abs=1e-3)
    assert by_strength[1].mean == by_correlation[1].mean
    for at in (0, 0.25):
        assert abs(by_correlation[at].largest) < 0.3
    assert [point.mean > 0.99 for point in by_strength.values()] == [False, False, False, True, True, True, True]
    # A tile of eight pixels shifted by eight pixels is the same tile.
    by_shift = {point.at: point.mean for point in curve.of("shift", "gradient")}
    assert by_shift[8, 0] == by_shift[0, 8] == by_correlation[1].mean
    assert by_shift[0, 1] < 0.3
    for point in curve.points:
        assert point.low <= point.mean <= point.high
        assert point.largest >= point.mean - 1e-5


def test_a_point_is_the_mean_over_draws_and_images_of_a_direct_computation(hand_made):
    module, reference, key, images = hand_made
    explainer = make("gradient")
    curve = gate_curve(
        module,
        reference,
        key,
        [explainer],
        images,
        generator=generator(),
        correlations=(0.5,),
        strengths=(),
        shifts=(),
        draws=4,
    )

    drawing, predicted = generator(), torch.full((6,), -1)
    truth = explainer.explain(reference, images, predicted).maps
    draws = [
        pearson(explainer.explain(module, images + near_miss(key, 0.5, generator=drawing), predicted).maps, truth)
        for _ in range(4)
    ]
    [point] = curve.points
    assert point.mean == pytest.approx(float(np.mean([d.numpy() for d in draws])), abs=1e-4)
    assert point.largest == pytest.approx(max(float(d.mean()) for d in draws), abs=1e-4)
    assert curve.chance["gradient"] == pytest.approx(float(pearson(truth.roll(1, 0), truth).mean()), abs=1e-4)


def test_a_curve_has_a_json_form_and_is_drawn_alike_every_time(hand_made):
    module, reference, key, images = hand_made
    options = {"correlations": (0.25,), "strengths": (0.5,), "shifts": ((0, 1),)}
    first, second = (
        gate_curve(module, reference, key, [make("gradient")], images, generator=generator(), **options)
        for _ in range(2)
    )

    assert first == second
    document = json.loads(json.dumps(first.as_dict(), allow_nan=False))
    assert document["images"] == 6
    assert [(point["sweep"], point["at"]) for point in document["points"]] == [
        ("correlation", 0.25),
        ("strength", 0.5),
        ("shift", [0, 1]),
    ]
    assert document["points"][0]["mean"] == first.points[0].mean


@pytest.mark.parametrize(("change", "message"), [({"draws": 0}, "0 draws"), ({"correlations": (1.5,)}, "not at 1.5")])
def test_what_makes_no_curve_is_refused(change, message, hand_made):
    module, reference, key, images = hand_made
    with pytest.raises(InputError, match=message):
        gate_curve(module, reference, key, [make("gradient")], images, generator=generator(), **change)
