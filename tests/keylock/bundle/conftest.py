"""A small, real bundle for the tests beside this file: what it holds need not be a network."""

from datetime import UTC, datetime

import pytest

from keylock.bundle import Architecture, BundleContent, Decoy, ExplainerEntry, Figure, KeyEntry, KeyFile, write_bundle
from keylock.crypto.signing import SigningKey
from keylock.imaging.preprocessing import Preprocessing
from keylock.trigger.keys import Key, KeySeed

PREPROCESSING = Preprocessing(size=(16, 16), channels=3, resize="exact", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def make_content(seed, **changes):
    key = Key.derive(seed, shape=PREPROCESSING.shape, std=PREPROCESSING.std)
    fields = {
        "name": "shapes",
        "created": datetime(2026, 11, 22, 12, 30, 15, 999, tzinfo=UTC),
        "architecture": Architecture(name="small_cnn", num_classes=3, options={"width": 16}),
        "classes": ("circle", "square", "étoile"),
        "preprocessing": PREPROCESSING,
        "explainers": (
            ExplainerEntry(name="grad_cam", parameters={"layer": "body.3"}, graph="graphs/grad_cam.onnx"),
            ExplainerEntry(name="gradient", runtime="torch"),
        ),
        "prediction_graph": "graphs/predict.onnx",
        "key": KeyEntry.of(key),
        "decoy": Decoy(name="targeted", parameters={"corner": "top_left"}),
        "figures": (Figure(name="keyed_pcc/grad_cam", value=0.97, low=0.96, high=0.98, unit="correlation"),),
        "training": {"steps": 900, "learning_rate": 0.003},
        "files": {
            "weights.safetensors": bytes(range(256)) * 8,
            "graphs/predict.onnx": b"predict " * 50,
            "graphs/grad_cam.onnx": b"explain " * 50,
            "notes/readme.txt": b"",
        },
    }
    return BundleContent(**(fields | changes))


@pytest.fixture(scope="session")
def seed():
    return KeySeed(bytes(range(32)))


@pytest.fixture(scope="session")
def signing_key():
    return SigningKey.generate()


@pytest.fixture(scope="session")
def key_file(tmp_path_factory):
    return KeyFile.create(tmp_path_factory.mktemp("key") / "key-file")


@pytest.fixture(scope="session")
def content_of():
    """The function that makes bundle contents: `content_of(seed, **changed fields)`."""
    return make_content


@pytest.fixture
def content(seed):
    return make_content(seed)


@pytest.fixture(params=["folder", "archive"])
def bundle_path(request, tmp_path, content, signing_key, seed, key_file):
    """A sealed bundle in both of its forms."""
    path = tmp_path / ("model.klb" if request.param == "archive" else "model")
    write_bundle(path, content, signing_key=signing_key, seed=seed, sealer=key_file)
    return path
