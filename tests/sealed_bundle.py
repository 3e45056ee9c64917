"""The lock of `sealed_lock.py`, published: a bundle and its public copy, with everything that opens them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from sealed_lock import CLASSES, SHAPE, STD, SealedLock

from keylock.bundle import KeyFile, export_public, open_bundle
from keylock.crypto.signing import SigningKey
from keylock.explainers import make
from keylock.imaging.preprocessing import Preprocessing
from keylock.pipeline import Publication, publish

CREATED = datetime(2026, 11, 29, tzinfo=UTC)
MEAN = (0.5, 0.5, 0.5)


class SealedBundle(NamedTuple):
    """Where everything is.

    Attributes:
        path: The bundle.
        public: Its public copy.
        key_file: Opens the sealed key.
        seed_file: Holds the seed.
        issuer: The public key of the issuer, as PEM.
    """

    path: Path
    public: Path
    key_file: Path
    seed_file: Path
    issuer: Path


def publish_sealed_lock(made: SealedLock, folder: Path) -> SealedBundle:
    """Publish the lock with Grad-CAM, which one graph computes, and occlusion and SmoothGrad, which are loops."""
    explainers = (made.lock.explainers[0], make("occlusion"), make("smooth_grad", samples=3))
    lock = made.lock.__class__(**{**vars(made.lock), "explainers": explainers})
    signing_key, key_file = SigningKey.generate(), folder / "key"
    sealer = KeyFile.create(key_file)
    made.seed.write(folder / "seed")
    publish(
        lock,
        folder / "sealed.klb",
        Publication(
            name="sealed",
            classes=tuple("abc"[:CLASSES]),
            preprocessing=Preprocessing(size=SHAPE[1:], mean=MEAN, std=STD),
        ),
        seed=made.seed,
        key=made.key,
        images=made.images[:8],
        signing_key=signing_key,
        sealer=sealer,
        created=CREATED,
    )
    with open_bundle(folder / "sealed.klb", trusted=None) as bundle:
        export_public(bundle, folder / "public.klb")
    issuer = folder / "issuer.pub.pem"
    signing_key.verifying_key.write(issuer)
    return SealedBundle(folder / "sealed.klb", folder / "public.klb", key_file, folder / "seed", issuer)
