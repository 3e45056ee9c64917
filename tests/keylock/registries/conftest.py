"""Registries and bundles for the tests beside this file."""

import os
from datetime import UTC, datetime

import numpy as np
import pytest
from oci_registry import start

from keylock.bundle import Architecture, BundleContent, Decoy, KeyEntry, KeyFile, write_bundle
from keylock.crypto.signing import SigningKey
from keylock.imaging.preprocessing import Preprocessing
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key, KeySeed

PREPROCESSING = Preprocessing(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """A registry that asks for no login."""
    pytest.importorskip("requests", reason="pip install '.[oci]'")
    running = start(tmp_path_factory.mktemp("registry"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def signing_key():
    return SigningKey.generate()


@pytest.fixture(scope="session")
def make_bundle(signing_key, tmp_path_factory):
    """Writes a bundle with a sealed key and a sealed delta; files of `size` bytes of noise stand for a model."""

    def make(path, size=20_000):
        seed = KeySeed.generate()
        key = Key.derive(seed, shape=PREPROCESSING.shape, std=PREPROCESSING.std)
        delta = Delta({"body.weight": np.ones((4, 4), np.float32)})
        content = BundleContent(
            name="noise",
            created=datetime(2026, 11, 30, tzinfo=UTC),
            architecture=Architecture(name="none", num_classes=2, module="graph_only"),
            classes=("a", "b"),
            preprocessing=PREPROCESSING,
            explainers=(),
            prediction_graph="graphs/predict.onnx",
            key=KeyEntry.of(key),
            decoy=Decoy(name="half"),
            delta=delta,
            triggers=(key,),
            files={
                "weights.safetensors": os.urandom(size),
                "trigger.statistics": b"statistics",
                "graphs/predict.onnx": os.urandom(size),
                "graphs/grad_cam.onnx": os.urandom(size),
            },
        )
        sealer = KeyFile.create(tmp_path_factory.mktemp("key") / "key")
        write_bundle(path, content, signing_key=signing_key, seed=seed, sealer=sealer)
        return path

    return make


@pytest.fixture
def bundle(tmp_path, make_bundle):
    return make_bundle(tmp_path / "noise")
