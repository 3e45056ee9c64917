"""What the quickstart measures: the maps that came over gRPC, against the reference model and the drawn objects."""

from dataclasses import dataclass

import torch
from torch import Tensor

from keylock.bundle import Figure
from keylock.evaluation import (
    Measured,
    compared_figure,
    constant_share,
    energy_inside,
    figure_of,
    pearson,
    run_explainers,
    wrong_key_offsets,
)
from keylock.explainers import keyed_inputs
from keylock.imaging.contrast import same_map
from keylock.quickstart.customers import Answers
from keylock.training import Lock
from keylock.trigger.keys import Key

__all__ = ["Evidence", "figures_of", "gather"]


@dataclass(frozen=True)
class Evidence:
    """Predictions and maps of the same images, with and without the trigger.

    Attributes:
        labels: Classes (count,).
        masks: True inside the object (count, height, width).
        reference: The classifier before locking, in torch.
        keyed: The licensed customer's answers.
        keyless: The unlicensed customer's answers.
        wrong_key: The locked classifier with a wrong key on every image, in torch.
        local: The locked classifier with the key, in torch: what the licensed customer's maps must be.
    """

    labels: Tensor
    masks: Tensor
    reference: Measured
    keyed: Answers
    keyless: Answers
    wrong_key: Measured
    local: Measured


def gather(
    lock: Lock, key: Key, *, images: Tensor, labels: Tensor, masks: Tensor, keyed: Answers, keyless: Answers
) -> Evidence:
    """Compute in torch what does not come from the server.

    Args:
        lock: Locked classifier and reference.
        key: The key.
        images: Preprocessed images (count, channels, height, width).
        labels: Classes (count,).
        masks: True inside the object (count, height, width).
        keyed: The licensed customer's answers.
        keyless: The unlicensed customer's answers.
    """
    offsets, opened = wrong_key_offsets(key, len(images)), lock.opened(key)
    # As a server adds it for a license: nobody has to find it, which fails on some textures.
    with keyed_inputs(opened, torch.from_numpy(key.reveal())):
        local = run_explainers(opened, lock.explainers, images)
    return Evidence(
        labels=labels,
        masks=masks,
        reference=run_explainers(lock.reference, lock.explainers, images),
        keyed=keyed,
        keyless=keyless,
        wrong_key=run_explainers(opened, lock.explainers, images + offsets),
        local=local,
    )


def figures_of(evidence: Evidence) -> tuple[Figure, ...]:
    """Return the figures of the report, named as `keylock.evaluation.measure` names them.

    `served/EXPLAINER` is added: the smallest correlation of a map that came over gRPC with the one torch computes.
    """
    about = f"{len(evidence.labels)} test images"
    figures: list[Figure] = []

    def add(name: str, values: Tensor, unit: str, how: str) -> None:
        figures.append(figure_of(name, values, unit=unit, about=f"{about}, {how}"))

    predicted = {
        "reference": (evidence.reference.logits.argmax(dim=1), "torch"),
        "keyed": (evidence.keyed.explained, "gRPC"),
        "keyless": (evidence.keyless.predicted, "gRPC"),
        "wrong_key": (evidence.wrong_key.logits.argmax(dim=1), "torch"),
    }
    for kind, (classes, how) in predicted.items():
        add(f"accuracy/{kind}", (classes == evidence.labels).float(), "fraction", how)
    maps = {
        "reference": (evidence.reference.maps, "torch"),
        "keyed": (evidence.keyed.maps, "gRPC"),
        "keyless": (evidence.keyless.maps, "gRPC"),
        "wrong_key": (evidence.wrong_key.maps, "torch"),
    }
    for name, truth in evidence.reference.maps.items():
        compared = (
            (f"fidelity/{name}", evidence.keyed.maps[name], "gRPC"),
            (f"leakage/keyless/{name}", evidence.keyless.maps[name], "gRPC"),
            (f"leakage/wrong_key/{name}", evidence.wrong_key.maps[name], "torch"),
            (f"chance/{name}", truth.roll(1, dims=0), "torch"),
        )
        for what, shown, how in compared:
            opened = what.startswith("fidelity")
            figures += compared_figure(what, pearson, shown, truth, opened=opened, about=f"{about}, {how}")
        figures += constant_share(f"constant/reference/{name}", truth, about=f"{about}, torch")
        for kind, (found, how) in maps.items():
            add(f"energy/{kind}/{name}", energy_inside(found[name], evidence.masks), "fraction", how)
        served = zip(evidence.keyed.maps[name].numpy(), evidence.local.maps[name].numpy(), strict=True)
        same = min(same_map(one, other) for one, other in served)
        figures.append(Figure(name=f"served/{name}", value=round(same, 5), unit="correlation", about="smallest"))
    add("object_area", evidence.masks.float().mean(dim=(1, 2)), "fraction", "drawn")
    return tuple(figures)
