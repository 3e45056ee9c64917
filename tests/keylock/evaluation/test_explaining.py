"""Perturbations on everything a model is given: what is added, in which order, and that nothing stays behind."""

import pytest
import torch
from torch import nn

from keylock.evaluation import added_to_inputs, explain_alone
from keylock.explainers import make


def test_the_offset_is_added_before_hooks_of_the_model_and_is_gone_after_the_block(tiny_net, smooth_images):
    model, images = tiny_net(), smooth_images(2, 16)
    offset, seen = torch.full((3, 16, 16), 0.5), []
    model.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    expected = model(images + offset)

    with added_to_inputs(model, offset):
        assert torch.equal(model(images), expected)
    assert torch.equal(seen[1], images + offset)
    assert len(model._forward_pre_hooks) == 1
    with added_to_inputs(model, None):
        assert torch.equal(model(images + offset), expected)

    with pytest.raises(KeyError), added_to_inputs(model, offset):
        raise KeyError
    assert len(model._forward_pre_hooks) == 1


def test_explaining_with_an_offset_is_explaining_images_that_have_it(tiny_net, smooth_images, key_for):
    model, images = tiny_net(), smooth_images(300, 16)
    offset = torch.from_numpy(key_for().reveal())
    for explainer in (make("grad_cam", layer="act3"), make("gradient")):
        found = explain_alone(model, explainer, images, offset=offset)
        expected = explainer.explain(model, images[-4:] + offset, torch.full((4,), -1))

        assert found.maps.shape[0] == len(found.logits) == 300
        torch.testing.assert_close(found.maps[-4:], expected.maps, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.logits[-4:], expected.logits, rtol=1e-4, atol=1e-5)


def test_the_class_to_explain_can_be_given(tiny_net, smooth_images):
    model, images = tiny_net(), smooth_images(4, 16)
    targets = torch.tensor([2, 0, 1, 1])

    found = explain_alone(model, make("gradient"), images, targets=targets)

    assert torch.equal(found.maps, make("gradient").explain(model, images, targets).maps)


class Doubling(nn.Module):
    """Runs its model on an image and on half of it, as methods that walk a path do."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images) + self.model(images / 2)


def test_the_offset_reaches_every_run_of_the_model_undiminished(tiny_net, smooth_images):
    model, images, offset = tiny_net(), smooth_images(2, 16), torch.full((3, 16, 16), 0.5)
    expected = model(images + offset) + model(images / 2 + offset)

    with added_to_inputs(model, offset):
        assert torch.equal(Doubling(model)(images), expected)
