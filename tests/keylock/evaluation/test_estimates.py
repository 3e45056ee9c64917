"""Intervals that cover, and figures made from them."""

import numpy as np
import pytest
import torch

from keylock.evaluation import estimate_mean, figure_of


def test_interval_holds_the_mean_and_narrows_with_more_images():
    generator = np.random.default_rng(0)
    few, many = (estimate_mean(torch.tensor(generator.normal(2, 1, count))) for count in (30, 3000))

    for estimate in (few, many):
        assert estimate.low < estimate.value < estimate.high
    # 1.96 standard errors to each side.
    assert many.high - many.low == pytest.approx(2 * 1.96 / np.sqrt(3000), rel=0.15)
    assert few.high - few.low > 5 * (many.high - many.low)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    estimates = [estimate_mean(torch.tensor(generator.normal(0, 1, 60)), seed=seed) for seed in range(200)]

    assert 0.88 <= np.mean([low <= 0 <= high for _, low, high in estimates]) <= 0.99


def test_interval_of_a_constant_is_a_point_and_the_same_every_time():
    assert estimate_mean(torch.full((9,), 0.25)) == (0.25, 0.25, 0.25)
    values = torch.rand(20)
    assert estimate_mean(values) == estimate_mean(values)


def test_a_figure_is_a_rounded_estimate():
    values = torch.rand(30, generator=torch.Generator().manual_seed(0))
    figure = figure_of("fidelity/gradient", values, unit="correlation", about="thirty")
    estimate = estimate_mean(values)

    assert (figure.value, figure.low, figure.high) == tuple(round(number, 5) for number in estimate)
    assert (figure.name, figure.unit, figure.about) == ("fidelity/gradient", "correlation", "thirty")
