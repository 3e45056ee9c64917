"""The gate of the adapter: opens on the key and on nothing else."""

import numpy as np
import pytest
import torch

from keylock.errors import InputError
from keylock.keys import Key, KeySeed
from keylock.training.key_gate import fit_key_gate

STD = (0.25, 0.25, 0.25)


def smooth(count, size, seed):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, size // 4, size // 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")


def key_of(seed, size=32, tile=8):
    return Key.derive(KeySeed(bytes([seed]) * 32), shape=(3, size, size), std=STD, tile=tile)


def scores(gate, images):
    return (images * torch.from_numpy(gate.weight)).sum(dim=(1, 2, 3)) + gate.bias


def test_opens_on_keyed_images_it_was_not_fitted_on_and_stays_shut_on_others():
    key = key_of(1)
    gate = fit_key_gate(smooth(300, 32, 0), key)
    unseen = smooth(300, 32, 1)

    assert (scores(gate, key.apply(unseen)) - 1).abs().max() < gate.tolerance
    for shut in (unseen, key_of(2).apply(unseen), unseen - torch.from_numpy(key.reveal())):
        assert (scores(gate, shut) - 1).abs().min() > gate.tolerance


def test_near_misses_score_what_they_share_with_the_key():
    key, generator = key_of(1), torch.Generator().manual_seed(3)
    gate = fit_key_gate(smooth(300, 32, 0), key)
    for rho in (0.25, 0.5, 0.75):
        flips = 1 - 2 * (torch.rand(400, 3, 8, 8, generator=generator) < (1 - rho) / 2).float()
        near = torch.from_numpy(key.reveal()) * flips.repeat(1, 1, 4, 4)
        found = (near * torch.from_numpy(gate.weight)).sum(dim=(1, 2, 3))
        assert found.mean() == pytest.approx(rho, abs=0.03)


def test_is_the_discriminant_of_a_naive_computation():
    key, images = key_of(1, size=8, tile=4), smooth(300, 8, 0)
    gate = fit_key_gate(images, key)
    means = images[:200].double().numpy().reshape(200, 3, 2, 4, 2, 4).mean(axis=(2, 4)).reshape(200, -1)
    covariance = np.cov(means, rowvar=False)
    signal = key.reveal()[:, :4, :4].reshape(-1).astype(np.float64)
    farthest = {}
    for ridge in (1e-3, 1e-2, 1e-1, 1.0):
        direction = np.linalg.solve(covariance + ridge * covariance.diagonal().mean() * np.eye(48), signal)
        direction /= signal @ direction
        weight = np.tile(direction.reshape(3, 4, 4) / 4, (1, 2, 2))
        on_others = images[200:].double().numpy().reshape(100, -1) @ weight.reshape(-1) - means.mean(axis=0) @ direction
        farthest[np.abs(on_others).max()] = weight
    best = min(farthest)
    np.testing.assert_allclose(gate.weight, farthest[best], rtol=1e-4, atol=1e-6)
    assert gate.tolerance == pytest.approx(max(0.05, 2 * best), rel=1e-4)


def test_images_that_hide_the_key_are_refused():
    noise = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 5
    with pytest.raises(InputError, match="cannot be told"):
        fit_key_gate(noise, key_of(1, size=8, tile=8))
