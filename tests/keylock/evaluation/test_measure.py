"""Figures of a lock against direct computation."""

import copy

import numpy as np
import pytest
import torch

from keylock.evaluation import measure, run_explainers, wrong_key_offsets
from keylock.explainers import make
from keylock.models import prepare


@pytest.fixture
def pair(tiny_net, smooth_images):
    """A reference, and a somewhat different model in the place of the locked one."""
    reference = prepare(tiny_net(), smooth_images(2, 16))
    locked = copy.deepcopy(reference)
    with torch.no_grad():
        locked.conv3.weight.add_(
            0.3 * torch.randn(locked.conv3.weight.shape, generator=torch.Generator().manual_seed(1))
        )
    return reference, locked


def test_figures_have_the_names_and_values_of_a_direct_computation(pair, smooth_images, key_for):
    reference, locked = pair
    key, images, labels = key_for(), smooth_images(12, 16), torch.arange(12) % 3
    masks = torch.rand(12, 16, 16, generator=torch.Generator().manual_seed(2)) > 0.7
    used = [make("grad_cam", layer="act3"), make("gradient")]

    figures = measure(
        reference, locked, key=key, explainers=used, images=images, labels=labels, masks=masks, about="twelve"
    )

    values = {figure.name: figure.value for figure in figures}
    kinds = ("reference", "keyed", "keyless", "wrong_key")
    expected = {f"accuracy/{kind}" for kind in kinds} | {f"agreement/{kind}" for kind in kinds[1:]} | {"object_area"}
    for name in ("grad_cam", "gradient"):
        expected |= {f"fidelity/{name}", f"chance/{name}"}
        expected |= {f"leakage/{kind}/{name}" for kind in ("keyless", "wrong_key")}
        expected |= {f"top_overlap/{kind}/{name}" for kind in ("keyed", "keyless")}
        expected |= {f"energy/{kind}/{name}" for kind in kinds}
    assert values.keys() == expected
    assert len(values) == len(figures)
    assert all(figure.about == "twelve" and figure.low <= figure.value <= figure.high for figure in figures)

    inputs = {"keyless": images, "keyed": images + torch.from_numpy(key.reveal())}
    inputs["wrong_key"] = images + wrong_key_offsets(key, 12)
    truth = used[0].explain(reference, images, torch.full((12,), -1))
    for kind, rows in inputs.items():
        found = used[0].explain(locked, rows, torch.full((12,), -1))
        pairs = zip(found.maps.numpy(), truth.maps.numpy(), strict=True)
        similar = [np.corrcoef(a.ravel(), b.ravel())[0, 1] if a.std() and b.std() else 0.0 for a, b in pairs]
        name = "fidelity/grad_cam" if kind == "keyed" else f"leakage/{kind}/grad_cam"
        assert values[name] == pytest.approx(np.mean(similar), abs=1e-4)
        predicted = found.logits.argmax(dim=1)
        assert values[f"accuracy/{kind}"] == pytest.approx(float((predicted == labels).float().mean()), abs=1e-5)
        agreement = float((predicted == truth.logits.argmax(dim=1)).float().mean())
        assert values[f"agreement/{kind}"] == pytest.approx(agreement, abs=1e-5)
    assert values["object_area"] == pytest.approx(float(masks.float().mean()), abs=1e-5)
    shifted = zip(np.roll(truth.maps.numpy(), 1, axis=0), truth.maps.numpy(), strict=True)
    chance = [np.corrcoef(a.ravel(), b.ravel())[0, 1] if a.std() and b.std() else 0.0 for a, b in shifted]
    assert values["chance/grad_cam"] == pytest.approx(np.mean(chance), abs=1e-4)


def test_a_model_measured_against_itself_is_wholly_faithful(pair, smooth_images, key_for):
    reference, _ = pair
    figures = measure(
        reference,
        reference,
        key=key_for(strength=1e-6),
        explainers=[make("gradient")],
        images=smooth_images(6, 16),
        labels=torch.zeros(6, dtype=torch.int64),
    )
    values = {figure.name: figure.value for figure in figures}

    assert values["fidelity/gradient"] == pytest.approx(1, abs=1e-3)
    assert values["leakage/keyless/gradient"] == pytest.approx(1, abs=1e-3)
    assert values["agreement/keyed"] == 1
    assert values["chance/gradient"] < 0.9
    assert not any(name.startswith(("energy", "object")) for name in values)


def test_large_sets_are_explained_in_parts_alike(pair, smooth_images):
    reference, _ = pair
    images = smooth_images(300, 16)

    run = run_explainers(reference, [make("gradient")], images)

    assert run.logits.shape == (300, 3)
    last = make("gradient").explain(reference, images[-3:], torch.full((3,), -1))
    torch.testing.assert_close(run.maps["gradient"][-3:], last.maps, rtol=1e-4, atol=1e-7)


def test_wrong_keys_for_measuring_are_not_the_key(key_for):
    key = key_for()
    offset = torch.from_numpy(key.reveal())
    wrong = wrong_key_offsets(key, 200)
    cosines = (wrong.flatten(1) @ offset.flatten()) / (wrong.flatten(1).norm(dim=1) * offset.norm())

    assert wrong.shape == (200, *key.shape)
    assert (wrong.abs() <= offset.abs() + 1e-7).all()
    assert cosines.mean().abs() < 0.03
    assert cosines.abs().max() < 0.6
    torch.testing.assert_close(wrong[::2].abs(), offset.abs().expand(100, -1, -1, -1))
    assert torch.equal(wrong, wrong_key_offsets(key, 200))


@pytest.fixture
def partly_dark(smooth_images):
    """A network that sees bright images alone, and images of which every second is dark: their maps are empty."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate", bias=False),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 3),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator))
    images = smooth_images(8, 16)
    images[1::2] -= 20
    return network.eval().requires_grad_(requires_grad=False), images


def test_empty_true_maps_are_left_out_and_their_share_is_said(partly_dark, key_for):
    network, images = partly_dark
    key, labels, used = key_for(strength=0.01), torch.zeros(8, dtype=torch.int64), [make("grad_cam", layer="2")]

    exact = {f.name: f for f in measure(network, network, key=key, explainers=used, images=images, labels=labels)}
    assert exact["constant/reference/grad_cam"].value == exact["constant/keyed/grad_cam"].value == 0.5
    assert exact["fidelity/grad_cam"].value > 0.99
    assert exact["top_overlap/keyed/grad_cam"].value > 0.8
    for name in ("fidelity/grad_cam", "leakage/keyless/grad_cam", "leakage/wrong_key/grad_cam", "chance/grad_cam"):
        assert exact[name].about == "; 50.0% left out, where true maps are constant"

    class Bright(torch.nn.Sequential):
        """Shows something on dark images too."""

        def forward(self, rows):
            return super().forward(rows + 20 * (rows.mean(dim=(1, 2, 3), keepdim=True) < -10))

    bright = Bright(*network).eval()
    shown = {f.name: f for f in measure(network, bright, key=key, explainers=used, images=images, labels=labels)}
    # What is not there is shown on half of the images: half of the fidelity is gone. Nothing of it is leakage.
    assert shown["fidelity/grad_cam"].value == pytest.approx(exact["fidelity/grad_cam"].value / 2, abs=0.01)
    assert shown["leakage/keyless/grad_cam"].value == exact["leakage/keyless/grad_cam"].value
