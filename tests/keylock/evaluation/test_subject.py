"""Figures of a lock against direct computation, input by input."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch

from keylock.errors import InputError
from keylock.evaluation import (
    INPUTS,
    SIMILARITIES,
    Subject,
    deletion_and_insertion,
    energy_inside,
    enlarge,
    pointing_game,
    wrong_key_offsets,
)
from keylock.explainers import make
from keylock.locking.losses import is_constant
from keylock.models import prepare

COUNT = 70


@pytest.fixture(scope="module")
def explainer():
    return make("grad_cam", layer="act2")


@pytest.fixture
def subject(tiny_net, smooth_images, key_for):
    reference = prepare(tiny_net(), smooth_images(2, 16))
    locked = copy.deepcopy(reference)
    with torch.no_grad():
        noise = torch.randn(locked.conv2.weight.shape, generator=torch.Generator().manual_seed(1))
        locked.conv2.weight.add_(0.2 * noise)
    return Subject(
        module=locked,
        reference=reference,
        key=key_for(strength=1.0),
        images=smooth_images(COUNT, 16),
        labels=torch.arange(COUNT) % 3,
        masks=torch.rand(COUNT, 16, 16, generator=torch.Generator().manual_seed(2)) > 0.7,
        about="seventy images",
    )


def added(subject):
    """What is added to each image, (count, channels, height, width), a second time and in one piece."""
    offset = torch.from_numpy(subject.key.reveal())
    # Three parts of 23, 23 and 24 images, each with a wrong key of its own.
    edges = [0, 23, 46, 70]
    drawn = wrong_key_offsets(subject.key, 3, seed=subject.seed)
    wrong = torch.cat([drawn[place].expand(b - a, -1, -1, -1) for place, (a, b) in enumerate(pairwise(edges))])
    return {"keyed": offset, "keyless": 0 * offset, "wrong_key": wrong, "flipped_key": -offset}


def test_accuracy_and_agreement_are_shares_of_the_images(subject):
    figures = {figure.name: figure.value for figure in subject.predictions()}

    def share(one, other):
        return pytest.approx(float((one == other).float().mean()), abs=1e-5)

    with torch.no_grad():
        expected = subject.reference(subject.images).argmax(dim=1)
        assert figures["accuracy/reference"] == share(expected, subject.labels)
        for kind, offset in added(subject).items():
            found = subject.module(subject.images + offset).argmax(dim=1)
            assert figures[f"accuracy/{kind}"] == share(found, subject.labels)
            assert figures[f"agreement/{kind}"] == share(found, expected)
    assert len(figures) == 9
    assert len({figures[f"accuracy/{kind}"] for kind in INPUTS}) > 1


def test_maps_are_compared_input_by_input_and_held_against_the_objects(subject, explainer):
    compared = subject.compare("cam", explainer)
    figures = {figure.name: figure for figure in compared.figures}
    targets = torch.full((COUNT,), -1)
    truth = explainer.explain(subject.reference, subject.images, targets).maps
    maps = {
        kind: explainer.explain(subject.module, subject.images + offset, targets).maps
        for kind, offset in added(subject).items()
    }

    names = {f"{name}/{kind}/cam" for name in SIMILARITIES for kind in (*INPUTS, "chance")}
    names |= {f"{name}/{kind}/cam" for name in ("energy", "pointing") for kind in ("reference", *INPUTS, "random")}
    even = {kind: is_constant(found).float().mean() for kind, found in {**maps, "reference": truth}.items()}
    names |= {f"constant/{kind}/cam" for kind, share in even.items() if share}
    assert figures.keys() == names
    for kind, share in even.items():
        if share:
            assert figures[f"constant/{kind}/cam"].value == pytest.approx(float(share), abs=1e-5)
    for kind, found in maps.items():
        for name, function in SIMILARITIES.items():
            pair = (enlarge(found, (16, 16)), enlarge(truth, (16, 16))) if name == "ssim" else (found, truth)
            assert figures[f"{name}/{kind}/cam"].value == pytest.approx(float(function(*pair).mean()), abs=1e-4)
        assert len(compared.samples[kind]) == 6
        torch.testing.assert_close(compared.samples[kind], found[:6], rtol=1e-4, atol=1e-6)
    for kind, found in {**maps, "reference": truth}.items():
        energy, pointing = energy_inside(found, subject.masks), pointing_game(found, subject.masks)
        assert figures[f"energy/{kind}/cam"].value == pytest.approx(float(energy.mean()), abs=1e-4)
        assert figures[f"pointing/{kind}/cam"].value == pytest.approx(float(pointing.mean()), abs=1e-4)
    area = float(subject.masks.float().mean())
    assert figures["energy/random/cam"].value == pytest.approx(area, abs=0.02)
    assert subject.object_area()[0].value == pytest.approx(area, abs=1e-5)
    assert figures["pcc/chance/cam"].value < figures["pcc/keyless/cam"].value < 1
    assert len({figures[f"pcc/{kind}/cam"].value for kind in INPUTS}) == 4
    for figure in compared.figures:
        assert figure.low <= figure.value <= figure.high
        assert figure.about == "seventy images"


def test_chance_never_compares_an_image_with_itself(subject, explainer):
    # 33 images would leave one alone behind a part of 32.
    few = Subject(**{**vars(subject), "images": subject.images[:33], "labels": subject.labels[:33], "masks": None})
    edges = [0, 16, 33]
    truth = explainer.explain(few.reference, few.images, torch.full((33,), -1)).maps
    others = torch.cat([truth[a:b].roll(1, dims=0) for a, b in pairwise(edges)])
    figures = {figure.name: figure.value for figure in few.compare("cam", explainer).figures}

    assert figures["pcc/chance/cam"] == pytest.approx(float(SIMILARITIES["pcc"](others, truth).mean()), abs=1e-4)
    assert not any(name.startswith(("energy", "pointing")) for name in figures)
    assert few.object_area() == ()


def test_faithfulness_explains_what_a_caller_is_told_and_is_judged_twice(subject, explainer):
    figures = {figure.name: figure for figure in subject.faithfulness("cam", explainer, count=8, steps=4)}
    images, offset = subject.images[:8], torch.from_numpy(subject.key.reveal())
    with torch.no_grad():
        told = subject.module(images).argmax(dim=1)

    kinds = ("reference", "keyed", "keyless", "random")
    curves = ("deletion", "insertion", "deletion_by_reference", "insertion_by_reference")
    assert figures.keys() == {f"{curve}/{kind}/cam" for curve in curves for kind in kinds}
    maps = explainer.explain(subject.module, images + offset, told).maps
    for suffix, judge in (("", subject.module), ("_by_reference", subject.reference)):
        areas = deletion_and_insertion(judge, images, maps, told, generator=torch.Generator(), steps=4)
        for curve in ("deletion", "insertion"):
            # Equal pixels come in another order here.
            expected = float(getattr(areas, curve).mean())
            assert figures[f"{curve}{suffix}/keyed/cam"].value == pytest.approx(expected, abs=0.02)
    values = [figure.value for figure in figures.values()]
    assert len(set(values)) > 12
    assert 0 <= min(values) <= max(values) <= 1
    assert all(figure.about == "the first 8 of seventy images" for figure in figures.values())


def test_one_image_is_refused(subject):
    with pytest.raises(InputError, match="1 images have no two maps"):
        Subject(**{**vars(subject), "images": subject.images[:1]})


def test_models_are_left_as_they_were(subject, explainer):
    before = {name: tensor.clone() for name, tensor in subject.module.state_dict().items()}
    subject.compare("cam", explainer)
    subject.faithfulness("cam", explainer, count=4, steps=2)

    assert not subject.module._forward_pre_hooks
    assert all(np.array_equal(before[name], tensor) for name, tensor in subject.module.state_dict().items())
