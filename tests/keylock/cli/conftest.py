"""What tests of several commands share."""

from datetime import UTC, datetime

import pytest

from keylock.bundle import Architecture, BundleContent, Decoy, KeyEntry
from keylock.imaging.preprocessing import Preprocessing
from keylock.trigger.keys import Key


@pytest.fixture(scope="session")
def smallest_content():
    """What makes the content of the smallest bundle there is of a key seed; nobody computes with it."""

    def content(seed):
        preprocessing = Preprocessing(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        return BundleContent(
            name="tiny",
            created=datetime(2026, 11, 24, tzinfo=UTC),
            architecture=Architecture(name="none", num_classes=2, module="graph_only"),
            classes=("a", "b"),
            preprocessing=preprocessing,
            explainers=(),
            prediction_graph="graphs/predict.onnx",
            key=KeyEntry.of(Key.derive(seed, shape=preprocessing.shape, std=preprocessing.std)),
            decoy=Decoy(name="half"),
            files={"graphs/predict.onnx": b"a graph"},
        )

    return content
