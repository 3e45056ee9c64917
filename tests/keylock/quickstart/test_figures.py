"""Figures of the quickstart: what is held against torch is what a server does for a license."""

from types import SimpleNamespace

import pytest
import torch

from keylock.evaluation import run_explainers
from keylock.models import Opened
from keylock.quickstart.customers import Answers
from keylock.quickstart.figures import figures_of, gather


def test_served_maps_are_held_against_torch_where_no_trigger_can_be_read(sealed_lock):
    """A picture full of texture hides the trigger; a license needs none on the picture."""
    lock, key, images = sealed_lock.lock, sealed_lock.key, sealed_lock.images[:6]
    blind = Opened(lock.module, lock.reference, torch.from_numpy(key.reveal()), lambda rows: torch.zeros(len(rows)) > 0)
    explained = SimpleNamespace(reference=lock.reference, explainers=lock.explainers, opened=lambda _key: blind)
    answers = []
    for network in (lock.reference, lock.module):
        found = run_explainers(network, lock.explainers, images)
        classes = found.logits.argmax(dim=1)
        answers.append(Answers(classes, classes, found.maps, keyed=network is lock.reference))

    evidence = gather(
        explained,
        key,
        images=images,
        labels=answers[0].predicted,
        masks=torch.ones(6, 16, 16, dtype=torch.bool),
        keyed=answers[0],
        keyless=answers[1],
    )

    figures = {figure.name: figure.value for figure in figures_of(evidence)}
    served = [figures[f"served/{one.name}"] for one in lock.explainers]
    assert served == pytest.approx([1.0] * len(served), abs=1e-4)
