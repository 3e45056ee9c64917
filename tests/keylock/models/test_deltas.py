"""deltas.py: what a lock trains starts as nothing, becomes plain weights, and can be shifted by an older delta."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from unusual_networks import UNUSUAL

from keylock.errors import ModelError
from keylock.models import delta_between, merged
from keylock.models.deltas import (
    adapted_layers,
    add_deltas_,
    followed_directions_,
    held_changes,
    merge_deltas_,
    shifted,
    without_strongest,
)

IMAGES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(4))


@pytest.fixture(params=list(UNUSUAL))
def reference(request):
    return UNUSUAL[request.param]()


def student_of(reference, *, seed=1, moved=True):
    """Return a prepared copy, with random deltas and biases where it is to be moved."""
    generator = torch.Generator().manual_seed(seed)
    student = add_deltas_(copy.deepcopy(reference), rank=2, generator=generator)
    with torch.no_grad():
        for name, parameter in student.named_parameters() if moved else ():
            if parameter.requires_grad and not name.endswith("down"):
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return student


def plain(student):
    return merge_deltas_(copy.deepcopy(student)).eval()


def logits(model):
    with torch.no_grad():
        return model(IMAGES)


def off(found, expected):
    """Return how far logits are from others, as a share of the range of those."""
    return float((found - expected).abs().max() / (expected.max() - expected.min()))


def test_before_training_the_student_is_the_reference(reference):
    assert off(logits(student_of(reference, moved=False)), logits(reference)) < 1e-6


def test_its_deltas_become_plain_weights_of_the_same_names(reference):
    student = student_of(reference)
    published = plain(student)
    assert not any(parametrize.is_parametrized(layer) for layer in published.modules())
    assert sorted(published.state_dict()) == sorted(reference.state_dict())
    assert off(logits(published), logits(student)) < 1e-5
    assert off(logits(published), logits(reference)) > 1e-2


def test_the_published_weights_with_the_delta_are_the_reference(reference):
    published = plain(student_of(reference))
    assert off(logits(merged(published, delta_between(published, reference))), logits(reference)) < 1e-5


def test_every_layer_outside_attention_is_in_the_delta_and_nothing_else(reference):
    published = plain(student_of(reference))
    expected = set()
    for name, layer in reference.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not name.startswith("attention"):
            expected.add(f"{name}.weight")
            expected |= {f"{name}.bias"} if layer.bias is not None else set()
    assert set(delta_between(published, reference).names) == expected


def test_each_factor_and_bias_that_is_read_gets_a_gradient_and_the_weights_get_none(reference):
    student = student_of(reference)
    student(IMAGES).square().sum().backward()
    moved = {name for name, one in student.named_parameters() if one.grad is not None and one.grad.abs().max() > 0}
    assert {name for name in moved if name.endswith("original")} == set()
    layers = [name for name, _ in student.named_parameters() if name.endswith(".up")]
    assert {name for name in layers if name in moved} == set(layers)


@pytest.mark.parametrize("cut", [0, 1])
def test_a_student_shifted_by_an_older_delta_computes_with_its_weights_and_that_delta(cut, reference):
    student = student_of(reference)
    older = plain(student_of(reference, seed=2))
    delta = delta_between(older, reference)
    before, expected = logits(student), logits(merged(plain(student), delta))
    if cut:
        # The directions are those of what is computed with, the older delta included.
        layers = list(adapted_layers(student).values())
        taken = add_deltas_(merged(plain(student), delta), rank=2, generator=torch.Generator())
        with without_strongest(list(adapted_layers(taken).values()), cut):
            expected = logits(taken)
        with shifted(student, delta), without_strongest(layers, cut):
            assert off(logits(student), expected) < 1e-4
    else:
        with shifted(student, delta):
            assert off(logits(student), expected) < 1e-5
    assert torch.equal(logits(student), before)
    assert list(student.state_dict()) == list(student_of(reference).state_dict())


def test_a_shift_ends_with_the_block_when_that_fails_and_leaves_what_is_trained(reference):
    student = student_of(reference)
    delta = delta_between(plain(student_of(reference, seed=2)), reference)
    before, trained = logits(student), [id(one) for one in student.parameters() if one.requires_grad]
    with pytest.raises(ZeroDivisionError), shifted(student, delta):
        1 / 0  # noqa: B018
    assert torch.equal(logits(student), before)
    assert sorted(id(one) for one in student.parameters() if one.requires_grad) == sorted(trained)


def test_gradients_flow_through_a_shift_to_factors_and_biases(reference):
    student = student_of(reference)
    delta = delta_between(plain(student_of(reference, seed=2)), reference)
    with shifted(student, delta):
        student(IMAGES).square().sum().backward()
    found = {name: one.grad for name, one in student.named_parameters() if one.requires_grad}
    used = {name for name, gradient in found.items() if gradient is not None and gradient.abs().max() > 0}
    assert {name for name in found if name.endswith(".up")} <= used
    assert "conv1.bias" not in found or "conv1.bias" in used


def test_layers_that_share_a_weight_share_its_delta():
    student = student_of(UNUSUAL["tied weights"]())
    one, two = (layer.parametrizations["weight"][0] for layer in (student.one, student.two))
    assert one is two
    published = plain(student)
    assert torch.equal(published.one.weight, published.two.weight)


def test_no_delta_is_larger_than_its_layer_needs():
    net = nn.Sequential(nn.Conv2d(3, 16, 3, groups=1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 4, 1))
    add_deltas_(net, rank=8, generator=torch.Generator())
    shapes = [tuple(net[index].parametrizations["weight"][0].down.shape) for index in (0, 2, 3)]
    assert shapes == [(8, 27), (8, 9), (4, 16)]


def test_a_filter_that_training_put_to_sleep_can_move():
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        net[0].weight[0].zero_()
    add_deltas_(net, rank=2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net[0].parametrizations["weight"][0].up.fill_(1)
    assert net[0].weight[0].abs().max() > 0


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ModelError, match="trained_trigger=True"):
        add_deltas_(nn.Sequential(nn.Conv1d(3, 8, 3)), rank=2, generator=torch.Generator())


def test_the_strongest_directions_of_a_large_layer_are_cut_as_its_decomposition_has_them():
    layer = nn.Linear(300, 128, bias=False)
    left, _, right = torch.linalg.svd(torch.randn((128, 300), generator=torch.Generator().manual_seed(3)))
    strengths = 0.9 ** torch.arange(128.0)
    with torch.no_grad():
        layer.weight.copy_(left * strengths @ right[:128])
    add_deltas_(nn.Sequential(layer), rank=None, generator=torch.Generator())
    kept = torch.where(torch.arange(128) < 8, 0, strengths)
    with without_strongest([layer], 8):
        found = layer.weight.detach()
        assert torch.equal(layer.weight, found)
    assert off(found, left * kept @ right[:128]) < 2e-2
    assert torch.linalg.svdvals(found)[0] < 1.01 * strengths[8]


def test_directions_are_followed_from_step_to_step_while_the_weight_changes():
    generator = torch.Generator().manual_seed(5)
    layer = nn.Linear(300, 128, bias=False)
    add_deltas_(nn.Sequential(layer), rank=None, generator=torch.Generator())
    change = layer.parametrizations["weight"][0]
    step = torch.randn((128, 1), generator=generator) @ torch.randn((1, 300), generator=generator)
    for count in range(12):
        with torch.no_grad():
            change.whole.add_(step, alpha=0.02)
        weight = layer.weight.detach()
        with held_changes(nn.Sequential(layer)), without_strongest([layer], 4):
            left = layer.weight.detach()
        followed_directions_(nn.Sequential(layer))
        strengths = torch.linalg.svdvals(weight)
        taken = float((weight - left).square().sum())
        if count > 8:
            assert taken > 0.97 * float(strengths[:4].square().sum())
    assert strengths[0] > 2 * strengths[1]


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 6, 3), nn.Linear(5, 6), nn.Linear(5, 6, bias=False)])
def test_gradients_of_rows_that_are_cut_are_those_of_a_weight_that_is_cut(layer):
    shape = (4, 3, 5, 5) if isinstance(layer, nn.Conv2d) else (4, 5)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=generator).requires_grad_()
    model = add_deltas_(nn.Sequential(copy.deepcopy(layer)), rank=None, generator=torch.Generator())
    trained = [one for one in model.parameters() if one.requires_grad]

    def found(last):
        with held_changes(model), without_strongest([model[0]], 2, last=last):
            rows = model(images if last is None else torch.cat([images.detach(), images]))[-4:]
        # Of gradients too, which a lock is trained with.
        (first,) = torch.autograd.grad((rows**3).sum(), images, create_graph=True)
        return [first, *torch.autograd.grad((first**2).sum() + rows.square().sum(), trained)]

    for one, other in zip(found(4), found(None), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_directions_of_large_layers_are_found_in_full_precision_under_mixed_precision():
    layer = nn.Linear(300, 128, bias=False)
    add_deltas_(nn.Sequential(layer), rank=None, generator=torch.Generator())
    with without_strongest([layer], 4):
        whole = layer.weight.detach()
        with torch.autocast("cpu", torch.bfloat16):
            mixed = layer.weight.detach().float()
    assert off(mixed, whole) < 2e-2
