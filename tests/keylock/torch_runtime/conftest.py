"""A bundle with a sealed delta, opened in torch."""

from datetime import UTC, datetime

import pytest
from sealed_lock import SHAPE, STD, Net

import keylock
from keylock.bundle import KeyFile
from keylock.crypto.signing import SigningKey
from keylock.imaging.preprocessing import Preprocessing
from keylock.pipeline import Publication, publish


@pytest.fixture(scope="session")
def sealed_bundle(sealed_lock, tmp_path_factory):
    """The place of the bundle of `sealed_lock`, which is made of a network of its owner's, `Net`."""
    folder = tmp_path_factory.mktemp("sealed")
    publish(
        sealed_lock.lock,
        folder / "sealed.klb",
        Publication(
            name="sealed",
            classes=("a", "b", "c"),
            preprocessing=Preprocessing(size=SHAPE[1:], mean=(0.5,) * 3, std=STD),
        ),
        seed=sealed_lock.seed,
        key=sealed_lock.key,
        images=sealed_lock.images[:6],
        signing_key=SigningKey.generate(),
        sealer=KeyFile.create(folder / "key-file"),
        created=datetime(2026, 11, 22, tzinfo=UTC),
    )
    return folder / "sealed.klb"


@pytest.fixture(scope="module")
def locked(sealed_bundle, sealed_lock):
    """The bundle with its key."""
    return keylock.load_bundle(sealed_bundle, key=sealed_lock.seed, model=Net())
