"""A whole run on tiny data, done once, and what is needed to do another."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

import keylock
from keylock.bundle import KeyFile
from keylock.crypto.signing import SigningKey
from keylock.data import DataSource
from keylock.data.sets import ImageSet
from keylock.data.shapes import SHAPE_CLASSES, draw_shapes
from keylock.imaging.preprocessing import Preprocessing
from keylock.pipeline import TrainPlan, train
from keylock.training import Silent
from keylock.trigger.keys import KeySeed

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Workshop:
    """What every run of these tests shares, and a way to run."""

    def __init__(self, folder: Path) -> None:
        self.seed = KeySeed(b"s" * 32)
        self.signing_key = SigningKey.generate()
        self.sealer = KeyFile.create(folder / "bundle.key")
        drawn = draw_shapes(count=112, size=16, seed=0)
        sets = [ImageSet(*(part[rows] for part in drawn)) for rows in (slice(0, 80), slice(80, 112))]
        self.data = DataSource(
            name="tiny shapes",
            classes=SHAPE_CLASSES,
            train=sets[0],
            test=sets[1],
            preprocessing=Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3),
        )

    def plan(self, out: Path, **changes: object) -> TrainPlan:
        plan = TrainPlan(
            out=out,
            name="shapes",
            data=self.data,
            architecture="resnet20",
            settings=keylock.LockSettings(steps=5),
            explainers=("grad_cam",),
            reference_steps=6,
            batch_size=16,
            device="cpu",
            measured_images=24,
            strength=16 / 255,
        )
        return replace(plan, **changes)

    def train(self, plan: TrainPlan, *, progress: object = None, **options: object):
        return train(
            plan,
            seed=options.pop("seed", self.seed),
            signing_key=self.signing_key,
            sealer=self.sealer,
            progress=progress or Silent(),
            now=lambda: NOW,
            trial_seconds=options.pop("trial_seconds", 0),
            **options,
        )


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="session")
def trained(workshop, tmp_path_factory):
    """The outcome of one whole run, with its plan."""
    plan = workshop.plan(tmp_path_factory.mktemp("trained") / "shapes.klb")
    return plan, workshop.train(plan)
