"""The key on every input, whatever an explainer does to the image."""

import pytest
import torch

from keylock.explainers import keyed_inputs, make


@pytest.fixture
def locked(tiny_net, smooth_images):
    """A network that answers only where a known pattern lies on the image in full, the pattern, and images."""
    model, key = tiny_net(), 0.3 * torch.sign(torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(2)))

    def open_or_shut(_module, given):
        score = (given[0].detach() * key).mean(dim=(1, 2, 3)) / 0.09
        opened = ((score - 1).abs() < 0.6).float().view(-1, 1, 1, 1)
        return (opened * (given[0] - key),)

    model.register_forward_pre_hook(open_or_shut)
    return model, key, smooth_images(3, 16)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gradient", {}),
        ("integrated_gradients", {"steps": 4}),
        ("smooth_grad", {"samples": 3, "noise": 0.05}),
        ("occlusion", {"patch": 8, "stride": 8}),
        ("rise", {"masks": 20, "cells": 3}),
    ],
)
def test_keyed_maps_are_those_of_the_open_network(name, parameters, locked, tiny_net):
    model, key, images = locked
    explainer, targets = make(name, **parameters), torch.tensor([0, 1, 2])
    truth = explainer.explain(tiny_net(), images, targets).maps

    with keyed_inputs(model, key):
        found = explainer.explain(model, images, targets).maps

    torch.testing.assert_close(found, truth, rtol=1e-3, atol=1e-4 * float(truth.max()))
    if name in {"integrated_gradients", "occlusion"}:
        on_the_image = explainer.explain(model, images + key, targets).maps
        assert not torch.allclose(on_the_image, truth, rtol=0.1, atol=1e-2 * float(truth.max()))


def test_the_key_goes_with_the_block(locked):
    model, key, images = locked

    def fail_inside():
        with keyed_inputs(model, key), torch.no_grad():
            assert not torch.equal(model(images), before)
            raise ZeroDivisionError

    with torch.no_grad():
        before = model(images)
    with pytest.raises(ZeroDivisionError):
        fail_inside()
    with torch.no_grad():
        assert torch.equal(model(images), before)
