"""Strong directions cut during the training: what is left of a weight, and of the attack."""

from dataclasses import replace

import pytest
import torch
from unusual_networks import UNUSUAL

import keylock
from keylock.explainers import make_for
from keylock.models import find_layers, prepare
from keylock.models.deltas import adapted_layers, add_deltas_, held_changes, without_directions
from keylock.training.direction_dropout import CUTS, drop_directions, rows_can_be_cut
from keylock.training.sealed import SealedTrainer
from keylock.training.task import Task

pytestmark = pytest.mark.usefixtures("precision")

SETTINGS = keylock.LockSettings(
    steps=300, learning_rate=6e-3, leak_weight=1.0, direction_dropout_weight=1.0, delta_rank=16
)


@pytest.fixture
def student(tiny_net):
    generator = torch.Generator().manual_seed(0)
    model = add_deltas_(tiny_net(), rank=2, generator=generator)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.parametrizations["weight"][0].up.normal_(generator=generator)
    return model


@pytest.mark.parametrize("seed", range(4))
def test_cutting_leaves_the_weaker_directions_of_every_layer_but_the_last_and_ends_with_the_block(seed, student, blobs):
    images = blobs(1, rows=8)[0][0]
    layers = list(adapted_layers(student).values())
    before, answer = _singular_values(layers), student(images)
    with drop_directions(student, torch.Generator().manual_seed(seed)) as count:
        after = _singular_values(layers)
        assert not torch.allclose(student(images), answer)
    assert count in CUTS
    for layer, whole, left in zip(layers[:-1], before[:-1], after[:-1], strict=True):
        kept = len(whole) - min(count, len(layer.weight) // 2)
        torch.testing.assert_close(left[:kept], whole[len(whole) - kept :], rtol=1e-3, atol=1e-4)
        assert (left[kept:] < 1e-3 * whole[0]).all()
    assert torch.equal(after[-1], before[-1])
    assert torch.equal(student(images), answer)


def _singular_values(layers):
    return [torch.linalg.svdvals(layer.weight.detach().flatten(1)) for layer in layers]


def test_directions_are_those_of_the_singular_value_decomposition():
    weight = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    outer, sizes, inner = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    for gone in ([0], [0, 1], [2], [5, 9]):
        kept = [number for number in range(6) if number not in gone]
        expected = ((outer[:, kept] * sizes[kept]) @ inner[kept]).view_as(weight)
        torch.testing.assert_close(without_directions(weight, gone), expected, rtol=1e-4, atol=1e-5)


def test_some_rows_are_cut_and_the_others_are_answered_as_ever(student, blobs):
    images = blobs(1, rows=8)[0][0]
    assert rows_can_be_cut(student, images)
    with held_changes(student):
        whole = student(images)
        with drop_directions(student, torch.Generator().manual_seed(1)):
            cut = student(images)
        with drop_directions(student, torch.Generator().manual_seed(1), last=3):
            mixed = student(images)
        assert torch.equal(student(images), whole)
    torch.testing.assert_close(mixed, torch.cat([whole[:5], cut[5:]]), rtol=1e-4, atol=1e-5)


def test_rows_are_cut_by_themselves_only_where_layers_are_run_on_rows_that_are_images():
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    found = {}
    for name, make in UNUSUAL.items():
        student = add_deltas_(make(), rank=2, generator=torch.Generator().manual_seed(0))
        found[name] = rows_can_be_cut(student, images)
    assert {name for name, can in found.items() if not can} == {"tied weights", "standardised weights", "swin"}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_with_rows_that_are_cut_in_the_same_pass_is_the_step_with_a_pass_of_their_own(
    accumulate, tiny_net, blobs, key_for
):
    images, labels = blobs(1, rows=8)[0][:2]
    reference = prepare(tiny_net(), images)
    explainers = make_for(find_layers(reference, images[:2]), ["grad_cam"])
    settings = keylock.LockSettings(steps=4, precision="float32", accumulate=accumulate)
    found = []
    for together in (True, False):
        trainer = SealedTrainer(Task(reference, (key_for(),), explainers, images, settings, torch.device("cpu")))
        assert trainer._cuts_rows
        trainer._cuts_rows = together
        figures = trainer.train_on(images, labels)
        found.append((figures, [one.grad for one in trainer.student.parameters() if one.requires_grad]))
    (figures, gradients), (expected, others) = found
    assert figures == pytest.approx(expected, rel=1e-3, abs=1e-4)
    torch.testing.assert_close(gradients, others, rtol=1e-3, atol=1e-4)


class _Heard:
    def __init__(self):
        self.figures = []

    def start(self, stage, total, done):
        pass

    def advance(self, figures):
        self.figures.append(dict(figures))

    def finish(self):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_decoys_are_learned_for_the_network_that_is_cut(weight, tiny_net, blobs, key_for):
    heard = _Heard()
    settings = replace(SETTINGS, direction_dropout_weight=weight, steps=SETTINGS.steps if weight else 2)
    key = key_for(strength=48 / 255)
    keylock.lock(tiny_net(), blobs(6), key, explainers=["grad_cam"], settings=settings, device="cpu", progress=heard)
    penalties = [figures.get("direction_dropout/grad_cam") for figures in heard.figures]
    if not weight:
        assert set(penalties) == {None}
        return
    assert sum(penalties[-40:]) < 0.85 * sum(penalties[:40])
