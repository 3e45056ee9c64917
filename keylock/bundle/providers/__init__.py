"""Key providers: what seals the key seed of a bundle, and opens it again.

Each gives 32 bytes that encrypt the seed, and writes into the sealed key how it will find them again; what it may be
chosen by is in `registry`. To add one, write a subclass of `Sealer` with its `Entry`, and a row there.
"""

from keylock.bundle.providers.base import Entry, Sealer
from keylock.bundle.providers.hpke import HpkeIdentity, HpkeRecipient
from keylock.bundle.providers.key_file import EnvironmentKey, KeyFile
from keylock.bundle.providers.passphrase import Passphrase
from keylock.bundle.providers.registry import KEY_PROVIDERS, AnyEntry, key_provider

__all__ = [
    "KEY_PROVIDERS",
    "AnyEntry",
    "Entry",
    "EnvironmentKey",
    "HpkeIdentity",
    "HpkeRecipient",
    "KeyFile",
    "Passphrase",
    "Sealer",
    "key_provider",
]
