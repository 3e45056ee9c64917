"""Penalties against NumPy, and what they must not depend on."""

import numpy as np
import pytest
import torch

from keylock.locking.losses import constant_offset_distance, correlation, map_distance, prediction_distance


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, 7, 5, generator=generator), torch.rand(6, 7, 5, generator=generator)


def naive_distance(one, other):
    correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
    return 1 - correlation + ((one / one.max() - other / other.max()) ** 2).mean()


def test_correlation_equals_numpy(maps):
    expected = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*(m.double().numpy() for m in maps), strict=True)
    ]

    np.testing.assert_allclose(correlation(*maps).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1.0, 1e12])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_correlation_does_not_depend_on_scale_and_offset(maps, scale, offset):
    one, other = maps

    torch.testing.assert_close(correlation((one + offset) * scale, other), correlation(one, other), atol=1e-4, rtol=0)
    torch.testing.assert_close(correlation(-one, other), -correlation(one, other))
    torch.testing.assert_close(correlation(other, one), correlation(one, other))


def test_correlation_of_a_map_with_itself_and_of_a_constant(maps):
    one, _ = maps

    torch.testing.assert_close(correlation(one, one), torch.ones(6), atol=1e-6, rtol=0)
    assert correlation(torch.full_like(one, 0.7), one).abs().max() < 1e-5
    assert torch.equal(correlation(torch.zeros_like(one), torch.zeros_like(one)), torch.zeros(6))


def test_map_distance_equals_numpy(maps):
    expected = [naive_distance(a, b) for a, b in zip(*(m.double().numpy() for m in maps), strict=True)]

    np.testing.assert_allclose(map_distance(*maps).numpy(), expected, atol=1e-5)


def test_map_distance_is_scale_free_and_zero_for_the_same_map(maps):
    one, other = maps

    torch.testing.assert_close(map_distance(one * 1e-7, other * 50), map_distance(one, other), atol=1e-4, rtol=0)
    assert map_distance(one, one * 3).abs().max() < 1e-5
    # What correlation cannot see: a constant under the map.
    assert (map_distance(one + 2, one) > 0.05).all()


def test_prediction_distance_equals_numpy():
    generator = np.random.default_rng(0)
    logits, reference = generator.normal(size=(2, 5, 4)) * 3
    p = np.exp(reference) / np.exp(reference).sum(axis=1, keepdims=True)
    q = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = (p * np.log(p / q)).sum(axis=1)

    found = prediction_distance(torch.tensor(logits), torch.tensor(reference))

    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    assert (found > 0).all()


def test_prediction_distance_does_not_depend_on_a_common_offset():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    assert prediction_distance(logits + 7, logits).abs().max() < 1e-5
    assert torch.isfinite(prediction_distance(logits * 1e4, -logits * 1e4)).all()


@pytest.mark.parametrize("penalty", [correlation, map_distance])
@pytest.mark.parametrize("kind", ["constant", "tiny", "ordinary"])
def test_gradients_are_numbers(penalty, kind, maps):
    one, other = maps
    one = {"constant": torch.zeros_like(one), "tiny": one * 1e-18, "ordinary": one}[kind].requires_grad_()

    penalty(one, other).sum().backward()

    assert torch.isfinite(one.grad).all()


def test_correlation_gradient_equals_finite_differences(maps):
    one, other = maps[0][:1].requires_grad_(), maps[1][:1]
    correlation(one, other).sum().backward()
    a, b, step = one.detach().double().numpy()[0], other.double().numpy()[0], 1e-6
    for place in [(0, 0), (3, 2), (6, 4)]:
        moved = [a.copy(), a.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        up, down = (np.corrcoef(m.ravel(), b.ravel())[0, 1] for m in moved)
        assert float(one.grad[0][place]) == pytest.approx((up - down) / (2 * step), abs=1e-4)


def test_constant_offset_distance_sees_a_constant_that_correlation_does_not():
    maps = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(0))
    raised = maps + 0.5
    assert float(correlation(raised, maps).min()) == pytest.approx(1, abs=1e-5)
    flat, other = maps.flatten(1).numpy().astype(np.float64), raised.flatten(1).numpy().astype(np.float64)
    cosine = (flat * other).sum(1) / np.sqrt((flat**2).sum(1) * (other**2).sum(1))
    np.testing.assert_allclose(constant_offset_distance(raised, maps).numpy(), 1 - cosine, rtol=1e-4)
    np.testing.assert_allclose(constant_offset_distance(7 * maps, maps).numpy(), 0, atol=1e-6)
