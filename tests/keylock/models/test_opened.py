"""opened.py: each row runs by the weights that it is for, and the rows that the trigger opens are the reference's."""

import copy
import pickle
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from keylock.errors import InputError
from keylock.explainers import explain_many, make, make_for
from keylock.models import Opened, added_to_inputs, delta_between, find_layers, merged, open_with
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key, KeySeed

ROWS = 6


@pytest.fixture(scope="module")
def lock(sealed_lock):
    return sealed_lock.lock


@pytest.fixture(scope="module")
def key(sealed_lock):
    return sealed_lock.key


@pytest.fixture(scope="module")
def images(sealed_lock):
    return sealed_lock.images[:ROWS]


@pytest.fixture
def opened(lock, key):
    return lock.opened(key)


def exactly(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def nearly(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_published_network_with_the_delta_is_the_reference(lock, images):
    found = merged(lock.module, lock.delta)
    assert (lock.module(images) - lock.reference(images)).abs().max() > 0.1
    nearly(found(images), lock.reference(images))
    for name, tensor in lock.reference.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=0, atol=1e-6)


def test_merging_leaves_the_published_network_as_it_is(lock):
    before = {name: tensor.clone() for name, tensor in lock.module.state_dict().items()}
    found = merged(lock.module, lock.delta)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.zero_()
    for name, tensor in lock.module.state_dict().items():
        exactly(tensor, before[name])


def test_a_delta_of_another_network_is_refused(lock, key):
    with pytest.raises(InputError, match="two models"):
        merged(nn.Sequential(nn.Conv2d(3, 2, 1)), lock.delta)
    with pytest.raises(InputError, match="two models"):
        open_with(nn.Sequential(nn.Conv2d(3, 2, 1)), lock.delta, key, lock.statistics)
    with pytest.raises(InputError, match="two models"):
        delta_between(lock.module, nn.Sequential(nn.Conv2d(3, 2, 1)))
    with pytest.raises(InputError, match="nothing to seal"):
        delta_between(lock.reference, copy.deepcopy(lock.reference))


class Tied(nn.Module):
    """Two layers of one weight, and a table of whole numbers, of which there is no delta."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight
        self.register_buffer("order", torch.arange(4).flip(0))

    def forward(self, rows):
        return self.two(torch.relu(self.one(rows[:, self.order])))


def test_a_shared_weight_stays_shared_and_whole_numbers_stay_as_they_are():
    torch.manual_seed(0)
    reference = Tied()
    published = copy.deepcopy(reference)
    with torch.no_grad():
        published.one.weight.add_(torch.randn(4, 4))
    delta = delta_between(published, reference)
    assert delta.names == ("one.weight", "two.weight")
    found, rows = merged(published, delta), torch.randn(5, 4)
    assert found.one.weight is found.two.weight
    nearly(found(rows), reference(rows))


def test_rows_with_the_trigger_are_the_references_and_all_others_the_published_networks(lock, key, images, opened):
    nearly(opened(key.apply(images)), lock.reference(images))
    exactly(opened(images), lock.module(images))
    mask = torch.tensor([True, False, False, True, True, False])
    found = opened(key.apply(images, mask))
    nearly(found[mask], lock.reference(images[mask]))
    nearly(found[~mask], lock.module(images[~mask]))


def test_a_row_of_a_batch_is_what_it_is_alone(key, images, opened):
    rows = key.apply(images, torch.arange(ROWS) % 2 == 0)
    nearly(opened(rows), torch.cat([opened(rows[index : index + 1]) for index in range(ROWS)]))
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    nearly(opened(rows[order]), opened(rows)[order])


def test_another_key_the_key_turned_round_and_part_of_it_open_nothing(lock, key, images, opened):
    other = Key.derive(KeySeed(bytes(32)), shape=key.shape, std=(0.25,) * 3)
    for rows in (other.apply(images), images - torch.from_numpy(key.reveal())):
        exactly(opened(rows), lock.module(rows))
    quarter = images + 0.25 * torch.from_numpy(key.reveal())
    exactly(opened(quarter), lock.module(quarter))


def test_no_rows_give_no_logits(images, opened):
    assert opened(images[:0]).shape == (0, 3)


@pytest.mark.parametrize("present", [True, False])
def test_the_key_that_is_added_opens_and_cancels_exactly(present, lock, key, images, opened):
    offset = torch.from_numpy(key.reveal())
    with added_to_inputs(opened, offset if present else torch.zeros_like(offset)):
        found = opened(images)
    # Not merely close: a sum and a difference of the key would leave its rounding on the image.
    exactly(found, opened.network(images) if present else lock.module(images))
    exactly(opened(images), lock.module(images))


def test_a_perturbation_of_each_row_decides_for_its_own_row(lock, key, images, opened):
    pattern, rows = torch.from_numpy(key.reveal()), torch.tensor([1, 0, 0, 1, 1, 0])
    with added_to_inputs(opened, rows.view(-1, 1, 1, 1) * pattern):
        found = opened(images)
    chosen = rows > 0
    nearly(found[chosen], lock.reference(images[chosen]))
    nearly(found[~chosen], lock.module(images[~chosen]))


def test_what_else_is_added_stays_on_the_image(lock, key, images, opened):
    shade = 0.1 * torch.ones(key.shape)
    with added_to_inputs(opened, shade):
        exactly(opened(images), lock.module(images + shade))
        nearly(opened(key.apply(images)), lock.reference(images + shade))
        with added_to_inputs(opened, torch.from_numpy(key.reveal())):
            nearly(opened(images), lock.reference(images + shade))
        exactly(opened(images), lock.module(images + shade))


def test_what_is_added_ends_with_the_block_even_when_it_fails(lock, key, images, opened):
    with pytest.raises(ZeroDivisionError), added_to_inputs(opened, torch.from_numpy(key.reveal())):
        1 / 0  # noqa: B018
    exactly(opened(images), lock.module(images))


def test_gradients_reach_the_rows_of_both_networks(lock, key, images, opened):
    mask = torch.arange(ROWS) % 2 == 0
    rows = key.apply(images, mask).requires_grad_()
    opened(rows)[:, 1].sum().backward()
    for model, chosen, shown in ((lock.reference, mask, images), (lock.module, ~mask, images)):
        alone = shown[chosen].clone().requires_grad_()
        model(alone)[:, 1].sum().backward()
        torch.testing.assert_close(rows.grad[chosen], alone.grad, rtol=1e-3, atol=1e-7)


@contextmanager
def _keyed(opened, key, how, images, mask):
    """Bring the key onto some rows, or all: on the images themselves, or added to everything that is run."""
    if how == "on the image":
        yield key.apply(images, mask), mask
        return
    with added_to_inputs(opened, torch.from_numpy(key.reveal())):
        yield images, torch.ones_like(mask)


# Loops mask, blend and shade images, and what they make must be run as the image was.
@pytest.mark.parametrize("how", ["on the image", "added"])
def test_all_explainers_at_once_explain_each_row_by_the_network_it_is_for(how, lock, key, images, opened):
    layers = find_layers(lock.module, images[:2])
    explainers = [
        *make_for(layers, ["grad_cam", "gradient", "visual_backprop"]),
        make("rise", masks=6, cells=4),
        make("occlusion", patch=8, stride=4),
        make("smooth_grad", samples=2),
        make("integrated_gradients", steps=3),
    ]
    mask, targets = torch.arange(ROWS) % 3 != 1, torch.arange(ROWS) % 4 - 1
    with _keyed(opened, key, how, images, mask) as (rows, mask):
        logits, maps = explain_many(opened, explainers, rows, targets)
    assert list(maps) == [one.name for one in explainers]
    for model, chosen in ((lock.reference, mask), (lock.module, ~mask)):
        if not chosen.any():
            continue
        expected_logits, expected = explain_many(model, explainers, images[chosen], targets[chosen])
        nearly(logits[chosen], expected_logits)
        for name, found in maps.items():
            assert _apart(found[chosen], expected[name]) < 2e-3, name


def _apart(one, other):
    """Return how far apart maps are, as a share of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def test_a_loss_on_its_maps_reaches_the_weights_of_both(lock, key, images):
    published = copy.deepcopy(lock.module).requires_grad_(True)
    opened = open_with(published, lock.delta, key, lock.statistics)
    explainers = make_for(find_layers(published, images[:2]), ["gradient"])
    rows = key.apply(images, torch.arange(ROWS) % 2 == 0)
    _, maps = explain_many(opened, explainers, rows, torch.zeros(ROWS, dtype=torch.int64), create_graph=True)
    maps["gradient"].sum().backward()
    for network in (opened.published, opened.network):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_rows_are_read_once_before_an_explainer_varies_them(lock, key, images):
    asked = []

    def reads(rows):
        asked.append(len(rows))
        return torch.arange(len(rows)) % 2 == 0

    opened = Opened(lock.module, merged(lock.module, lock.delta), torch.from_numpy(key.reveal()), reads)
    rise = make("rise", masks=6, cells=4)
    rise.explain(opened, key.apply(images), torch.full((ROWS,), -1))
    assert asked == [ROWS]


def test_it_holds_secrets_and_the_key_is_in_no_state_dict(lock, key, opened):
    offset = torch.from_numpy(key.reveal())
    assert not any(
        tensor.shape == offset.shape and torch.equal(tensor, offset) for tensor in opened.state_dict().values()
    )
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.dumps(opened)


def test_the_published_network_is_used_and_its_mode_kept(lock, key):
    published = copy.deepcopy(lock.module)
    for training in (True, False):
        published.train(training)
        opened = open_with(published, lock.delta, key, lock.statistics)
        assert opened.published is published
        assert (opened.training, opened.network.training) == (training, training)


def test_half_of_the_delta_is_not_the_reference(lock, key, images):
    arrays = lock.delta.reveal()
    part = Delta({name: arrays[name] for name in list(arrays)[: len(arrays) // 2]})
    found = open_with(lock.module, part, key, lock.statistics)(key.apply(images))
    assert (found - lock.reference(images)).abs().max() > 1e-2
    assert np.isfinite(found.detach().numpy()).all()
