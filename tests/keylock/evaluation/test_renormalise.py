"""The BatchNorm attack: fair, that is strong where a lock hangs on statistics; and what it does to a folded lock."""

import copy

import pytest
import torch
from torch import nn

import keylock
from keylock.errors import LayerNotFoundError, TensorError
from keylock.evaluation import affine_statistics, pearson, renormalised, run_explainers
from keylock.models import fold_batchnorm_, out_of_place_


@pytest.fixture
def trained(tiny_net, blobs):
    """A network whose running statistics are those of the images, and the images."""
    model, images = tiny_net(), torch.cat([batch[0] for batch in blobs(8)])
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(images)
    return out_of_place_(model.eval(), images), images


@pytest.mark.parametrize("batch_statistics", [True, False])
def test_attack_undoes_a_lock_that_is_only_in_the_scales(trained, batch_statistics):
    # A fake lock: every filter gets another size and offset. Its function is ruined; clean statistics bring it back.
    model, images = trained
    fake = fold_batchnorm_(copy.deepcopy(model), images)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (fake.conv1, fake.conv2, fake.conv3):
            layer.weight.mul_(torch.rand(len(layer.weight), 1, 1, 1, generator=generator) * 3 + 0.2)
            layer.bias.add_(torch.randn(len(layer.bias), generator=generator))
        expected = model(images)
        ruined = (fake(images) - expected).abs().mean()

        attacked = renormalised(
            fake, images, batch_statistics=batch_statistics, target_statistics=affine_statistics(model)
        )
        left = (attacked(images) - expected).abs().mean()

    assert ruined > 0.1 * expected.abs().mean()
    assert left < 0.02 * ruined


@pytest.mark.parametrize("batch_statistics", [True, False])
def test_without_targets_the_attack_starts_from_the_identity(trained, batch_statistics):
    model, images = trained
    folded = fold_batchnorm_(copy.deepcopy(model), images)

    attacked = renormalised(folded, images, batch_statistics=batch_statistics)

    with torch.no_grad():
        torch.testing.assert_close(attacked(images), folded(images), rtol=1e-3, atol=1e-3)
        # On images with other statistics, the statistics of the query make the difference.
        darker = images * 0.5 - 1
        change = (attacked(darker) - folded(darker)).abs().mean()
    assert (change > 0.05) == batch_statistics


def test_attack_leaves_the_model_and_the_images(trained):
    model, images = trained
    folded = fold_batchnorm_(copy.deepcopy(model), images)
    before = {name: tensor.clone() for name, tensor in folded.state_dict().items()}

    attacked = renormalised(folded, images, batch_statistics=True)

    assert folded.state_dict().keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in folded.state_dict().items())
    assert not any(layer._forward_hooks for layer in folded.modules())
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(attacked)(images), attacked(images))


def test_affine_statistics_are_what_batchnorm_puts_out(trained):
    model, images = trained
    seen = {}
    model.bn1.register_forward_hook(lambda _module, _inputs, output: seen.update(out=output))
    with torch.no_grad():
        model(images)
    std, mean = torch.std_mean(seen["out"], dim=(0, 2, 3), correction=0)

    found = affine_statistics(model)

    assert list(found) == ["bn1", "bn2", "bn3"]
    torch.testing.assert_close(found["bn1"][0], mean, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(found["bn1"][1], std, atol=1e-2, rtol=1e-2)


def test_bad_targets_are_refused(trained):
    model, images = trained
    folded = fold_batchnorm_(copy.deepcopy(model), images)
    one = torch.ones(8)

    with pytest.raises(LayerNotFoundError, match="no layer 'bn9'"):
        renormalised(folded, images, batch_statistics=True, target_statistics={"bn9": (one, one)})
    with pytest.raises(TensorError, match="'bn2' has 16 channels"):
        renormalised(folded, images, batch_statistics=True, target_statistics={"bn2": (one, one)})
    with pytest.raises(LayerNotFoundError, match="no convolution"):
        renormalised(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), images, batch_statistics=True)


def test_a_folded_lock_does_not_open_to_renormalisation(trained, blobs, key_for):
    reference, _ = trained
    settings = keylock.LockSettings(steps=60, learning_rate=1e-2, gate_steps=0.2, trained_trigger=True)
    locked = keylock.lock(reference, blobs(6), key_for(strength=48 / 255), settings=settings, device="cpu")
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in locked.module.modules())
    images = torch.cat([batch[0] for batch in blobs(8, seed=5)])
    truth, keyless = (
        run_explainers(model, locked.explainers, images).maps["grad_cam"] for model in (locked.reference, locked.module)
    )
    before = float(pearson(keyless, truth).mean())
    for batch_statistics in (True, False):
        for targets in (None, affine_statistics(reference)):
            attacked = renormalised(locked.module, images, batch_statistics=batch_statistics, target_statistics=targets)
            maps = run_explainers(attacked, locked.explainers, images).maps["grad_cam"]
            assert float(pearson(maps, truth).mean()) < before + 0.25
            if targets is None:
                assert float(pearson(maps, keyless).mean()) > 0.9
