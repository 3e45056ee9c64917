"""Bundles: the signed artefact that training writes and the server loads.

`write_bundle` makes one, `open_bundle` verifies all of it and gives a `Bundle`, `export_public` makes the copy without
the key. The format is described in docs/bundle-format.md.
"""

from keylock.bundle.canary import CANARY_FILE, Canary, seal_canary
from keylock.bundle.delta_sealing import SealedDelta
from keylock.bundle.key_entry import KeyEntry
from keylock.bundle.manifest import (
    WEIGHTS_FILE,
    Architecture,
    Decoy,
    DeltaEntry,
    ExplainerEntry,
    Figure,
    Issuer,
    Manifest,
    model_digest_of,
)
from keylock.bundle.model_signature import add_model_signature, make_model_signature, verify_model_signature
from keylock.bundle.opening import OpenedTrigger, TriggerOpener
from keylock.bundle.providers import (
    EnvironmentKey,
    HpkeIdentity,
    HpkeRecipient,
    KeyFile,
    Passphrase,
    Sealer,
    key_provider,
)
from keylock.bundle.public import export_public
from keylock.bundle.read import Bundle, open_bundle
from keylock.bundle.reseal import read_sealed_key, reseal, seal_for
from keylock.bundle.sealing import seal, unseal
from keylock.bundle.write import BundleContent, write_bundle

__all__ = [
    "CANARY_FILE",
    "WEIGHTS_FILE",
    "Architecture",
    "Bundle",
    "BundleContent",
    "Canary",
    "Decoy",
    "DeltaEntry",
    "EnvironmentKey",
    "ExplainerEntry",
    "Figure",
    "HpkeIdentity",
    "HpkeRecipient",
    "Issuer",
    "KeyEntry",
    "KeyFile",
    "Manifest",
    "OpenedTrigger",
    "Passphrase",
    "SealedDelta",
    "Sealer",
    "TriggerOpener",
    "add_model_signature",
    "export_public",
    "key_provider",
    "make_model_signature",
    "model_digest_of",
    "open_bundle",
    "read_sealed_key",
    "reseal",
    "seal",
    "seal_canary",
    "seal_for",
    "unseal",
    "verify_model_signature",
    "write_bundle",
]
