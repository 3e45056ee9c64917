"""The sealed adapter in torch: deltas give the reference back exactly, the gate decides row by row."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from keylock.adapters import Adapter, KeyGate
from keylock.errors import LayerNotFoundError, ModelError
from keylock.explainers import explain_together, make
from keylock.keys import Key, KeySeed
from keylock.models import added_to_inputs, attach_adapter
from keylock.models.adapted import adapter_of
from keylock.models.low_rank import adapted_layers, add_low_rank_, merge_low_rank_, take_back
from keylock.training.key_gate import fit_key_gate


class Net(nn.Module):
    """Every kind of layer that gets a delta: strided, depthwise, pointwise, without bias, linear."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.pointwise = nn.Conv2d(12, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        features = torch.relu(self.first(images))
        features = torch.relu(self.pointwise(torch.relu(self.depthwise(features))))
        return self.head(features.mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def made():
    """A reference, a student with random deltas, clean images, the key and the adapter."""
    torch.manual_seed(0)
    reference = Net().eval()
    student = add_low_rank_(copy.deepcopy(reference), rank=2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if parameter.requires_grad and not name.endswith("down"):
                parameter.add_(torch.randn(parameter.shape) * 0.5)
    key = Key.derive(KeySeed(bytes(range(32))), shape=(3, 16, 16), std=(0.25, 0.25, 0.25), tile=4)
    images = torch.nn.functional.interpolate(torch.randn(64, 3, 4, 4), size=16, mode="bilinear")
    adapter = Adapter(take_back(student, reference), fit_key_gate(images, key))
    return reference, merge_low_rank_(copy.deepcopy(student)).eval(), images, key, adapter


def test_before_training_the_student_is_the_reference(made):
    reference, _, images, _, _ = made
    student = add_low_rank_(copy.deepcopy(reference), rank=2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(student(images), reference(images), rtol=0, atol=0)


def test_with_key_and_adapter_the_answer_is_the_references(made):
    reference, public, images, key, adapter = made
    full = attach_adapter(public, adapter, key)

    assert (public(images) - reference(images)).abs().max() > 0.1
    torch.testing.assert_close(full(key.apply(images)), reference(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["grad_cam", "gradient"])
def test_keyed_maps_are_the_references(name, made):
    reference, public, images, key, adapter = made
    explainer = make(name, **({"layer": "pointwise"} if name == "grad_cam" else {}))
    targets = torch.full((len(images),), 2)
    _, found = explain_together(attach_adapter(public, adapter, key), [explainer], key.apply(images), targets)
    _, expected = explain_together(reference, [explainer], images, targets)
    torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-6)


def test_the_adapter_alone_and_the_key_alone_change_nothing(made):
    _, public, images, key, adapter = made
    full = attach_adapter(public, adapter, key)
    other = Key.derive(KeySeed(bytes(32)), shape=(3, 16, 16), std=(0.25, 0.25, 0.25), tile=4)

    torch.testing.assert_close(full(images), public(images), rtol=0, atol=0)
    torch.testing.assert_close(full(other.apply(images)), public(other.apply(images)), rtol=0, atol=0)
    half = images + 0.5 * torch.from_numpy(key.reveal())
    torch.testing.assert_close(full(half), public(half), rtol=0, atol=0)


def test_rows_open_one_by_one(made):
    reference, public, images, key, adapter = made
    full = attach_adapter(public, adapter, key)
    mixed = torch.cat([images[:3], key.apply(images[3:6])])
    expected = torch.cat([public(images[:3]), reference(images[3:6])])
    torch.testing.assert_close(full(mixed), expected, rtol=1e-4, atol=1e-5)

    state = adapter_of(full)
    with state.present_for(torch.tensor([1, 1, 1, 0, 0, 1])):
        found = full(mixed)
    assert state.rows is None
    expected = torch.cat([public(mixed[:5]), reference(images[5:6])])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_announced_key_opens_whatever_is_on_the_image_and_no_other_does(made):
    reference, public, images, key, adapter = made
    full, offset = attach_adapter(public, adapter, key), torch.from_numpy(key.reveal())
    noisy = images + 4 * torch.randn(images.shape, generator=torch.Generator().manual_seed(5))

    with added_to_inputs(full, offset):
        hidden = full(noisy)
    assert (hidden - reference(noisy)).abs().max() > 0.1
    with added_to_inputs(full, offset, announced=True):
        torch.testing.assert_close(full(noisy), reference(noisy), rtol=1e-3, atol=1e-4)
    almost = offset.clone()
    almost[:, :4, :4] *= -1
    with added_to_inputs(full, almost, announced=True):
        torch.testing.assert_close(full(images), public(images + almost), rtol=1e-4, atol=1e-4)
    with added_to_inputs(full, -offset, announced=True):
        torch.testing.assert_close(full(noisy), public(noisy - offset), rtol=0, atol=0)
    assert adapter_of(full).announced is None


def test_a_copy_stands_on_its_own(made):
    _, public, images, key, adapter = made
    full = attach_adapter(public, adapter, key)
    copied = copy.deepcopy(full)
    with torch.no_grad():
        adapter_of(copied).tolerance.zero_()
    torch.testing.assert_close(copied(key.apply(images)), public(key.apply(images)), rtol=0, atol=0)
    assert (full(key.apply(images)) - public(key.apply(images))).abs().max() > 0.1


def test_small_layers_and_layers_with_groups_keep_the_whole_delta(made):
    *_, adapter = made
    deltas, _ = adapter.reveal()
    assert deltas["depthwise"].up is None
    assert deltas["depthwise"].bias is None
    assert deltas["pointwise"].up.shape == (16, 2)
    assert deltas["first"].down.shape == (2, 3, 3, 3)


def test_tensors_and_back(made):
    *_, adapter = made
    again = Adapter.from_tensors(adapter.tensors())
    assert again.layers == adapter.layers
    for name, array in adapter.tensors().items():
        np.testing.assert_array_equal(again.tensors()[name], array)
    with pytest.raises(TypeError, match="secret"):
        copy.deepcopy(adapter)
    assert "Adapter(4 layers)" in repr(adapter)


def test_an_adapter_of_another_model_is_refused(made):
    _, public, _, key, adapter = made
    with pytest.raises(LayerNotFoundError, match="has no layer 'first'"):
        attach_adapter(nn.Sequential(nn.Conv2d(3, 2, 1)), adapter, key)
    with pytest.raises(ModelError, match="has an adapter already"):
        attach_adapter(attach_adapter(public, adapter, key), adapter, key)
    deltas, gate = adapter.reveal()
    with pytest.raises(ModelError, match="neither a convolution nor linear"):
        attach_adapter(nn.Sequential(nn.ReLU()), Adapter({"0": deltas["first"]}, gate), key)


def test_a_gate_is_plain_numbers():
    gate = KeyGate(np.ones((1, 2, 2), np.float32), 0.5, 0.1)
    assert Adapter({}, gate).tensors()["gate.bias"].shape == ()


class Standardised(nn.Conv2d):
    """Computes with another weight than its own: twice the delta is not twice the change."""

    def forward(self, images):
        weight = self.weight / self.weight.std()
        return torch.nn.functional.conv2d(images, weight, self.bias, padding=1)


class Unusual(nn.Module):
    def __init__(self):
        super().__init__()
        self.standardised = Standardised(3, 8, 3)
        self.wrapped = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.patched = nn.Conv2d(8, 8, 1)
        self.patched.forward = self.patched.forward
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding="same"))
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        features = self.patched(self.wrapped(torch.relu(self.standardised(images))))
        return self.head(torch.relu(self.normed(features)).mean(dim=(2, 3)))


def test_only_layers_that_are_linear_in_their_weight_get_a_delta():
    assert list(adapted_layers(Unusual())) == ["normed", "head"]


def test_layers_without_a_delta_do_not_spoil_the_answer(made):
    _, _, images, key, _ = made
    torch.manual_seed(0)
    reference = Unusual().eval()
    parametrize.remove_parametrizations(reference.normed, "weight")
    student = add_low_rank_(copy.deepcopy(reference), rank=2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for layer in (student.normed, student.head):
            layer.parametrizations.weight[0].up.normal_()
    public = merge_low_rank_(copy.deepcopy(student)).eval()

    full = attach_adapter(public, Adapter(take_back(student, reference), fit_key_gate(images, key)), key)

    assert (public(images) - reference(images)).abs().max() > 0.1
    torch.testing.assert_close(full(key.apply(images)), reference(images), rtol=1e-4, atol=1e-5)


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ModelError, match="sealed_adapter=False"):
        add_low_rank_(nn.Sequential(Standardised(3, 8, 3)), rank=2, generator=torch.Generator())
