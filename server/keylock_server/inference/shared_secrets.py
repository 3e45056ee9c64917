"""What the workers of a server share: secrets that are found once, in the process that forks them.

A passphrase may come from a pipe that can be read once, and a key service need not be asked by each worker. Nothing of
it is written anywhere or stands in the arguments of a process: a worker has it because it is a copy of its parent.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from keylock.bundle import Bundle, KeyFile, Passphrase, Sealer, key_provider, open_bundle, read_sealed_key
from keylock.crypto.issuers import IssuerKeys
from keylock.crypto.secrecy import take_variable, variable_of
from keylock.crypto.signing import SigningKey
from keylock.errors import UnsealError
from keylock.licensing.offline import OfflineLicense
from keylock.trigger.keys import KeySeed
from keylock_server.settings import ServerSettings, Source

__all__ = ["STOP", "Shared", "access_keys", "find_seed", "not_opened"]

STOP: Final = b"s"
"""Tells a worker to stop, and a second one to hurry; so does the end of the channel."""

_TOKEN_VARIABLE: Final = "VAULT_TOKEN"  # noqa: S105 - the name of a variable
_TAKEN: Final[dict[str, str]] = {}


@dataclass(frozen=True, eq=False)
class Shared:
    """Found once for all workers.

    Attributes:
        seeds: The key seed of each bundle that has one; a worker takes them out and closes them.
        access_keys: Keys for access tokens: one worker verifies what another has signed.
    """

    seeds: dict[Source, KeySeed] = field(repr=False)
    access_keys: tuple[SigningKey, ...] = field(repr=False)

    @classmethod
    def find(cls, settings: ServerSettings) -> Self:
        """Verifies every bundle and unseals its key.

        Raises:
            KeylockError: As `opening.Opener`, and `SignatureError` where a key for access tokens cannot be read.
        """
        seeds = {}
        issuers = IssuerKeys(settings.issuers) if settings.issuers else None
        for source in settings.sources:
            with open_bundle(source.bundle, trusted=None if issuers is None else tuple(issuers())) as bundle:
                seed = find_seed(bundle, source, settings)
            if seed is not None:
                seeds[source] = seed
        return cls(seeds, access_keys(settings))


def access_keys(settings: ServerSettings) -> tuple[SigningKey, ...]:
    """Returns the keys for access tokens, of which the first signs: as set, or a new one.

    Raises:
        SignatureError: If one cannot be read.
    """
    return tuple(SigningKey.load(path) for path in settings.token_keys) or (SigningKey.generate(),)


def find_seed(bundle: Bundle, source: Source, settings: ServerSettings) -> KeySeed | None:
    """Finds the key seed of a bundle.

    Args:
        bundle: Which.
        source: Where it came from, and the way to its key.
        settings: Those of the server.

    Returns:
        The seed; None where the server works without the key.

    Raises:
        UnsealError: If the key does not open, or no way to it was given and `keyless` was not set.
        KeySeedError: If the key seed cannot be read.
    """
    if settings.keyless:
        return None
    if source.key_seed_file is not None:
        return KeySeed.from_file(source.key_seed_file)
    sealer = _find_sealer(source, settings)
    if sealer is not None:
        with sealer:
            return bundle.unseal(sealer, sealed=_read_sealed(source, settings))
    raise not_opened(bundle)


def not_opened(bundle: Bundle) -> UnsealError:
    """Returns what is said where no way to the key of a bundle was given."""
    if bundle.has_key:
        return UnsealError(
            f"the key in {bundle.path} is sealed: give key_file=, key_passphrase_file=, key_provider= or "
            "KEYLOCK_KEY_PASSPHRASE, or serve predictions and decoys alone with keyless=True"
        )
    return UnsealError(
        f"{bundle.path} is a public copy without a key: give sealed_key= with what opens it, key_seed_file=, or "
        "serve predictions and decoys alone with keyless=True"
    )


def _read_sealed(source: Source, settings: ServerSettings) -> bytes | None:
    if settings.offline_license is not None:
        return OfflineLicense.read(settings.offline_license).sealed_key
    return None if source.sealed_key is None else read_sealed_key(source.sealed_key)


def _variables(provider: str) -> Mapping[str, str]:
    """Returns the variables of the process with those that were secret, which it loses here.

    They are kept in memory, because a model that is loaded again is opened again.
    """
    for name in filter(None, (_TOKEN_VARIABLE, variable_of(provider))):
        value = take_variable(os.environ, name)
        if value is not None:
            _TAKEN[name] = value
    return {**_TAKEN, **os.environ}


def _find_sealer(source: Source, settings: ServerSettings) -> Sealer | None:
    if source.key_provider is not None:
        return key_provider(source.key_provider, environment=_variables(source.key_provider))
    if source.key_file is not None:
        return KeyFile(source.key_file)
    if source.key_passphrase_file is not None:
        return Passphrase.from_file(source.key_passphrase_file)
    if settings.key_passphrase is not None:
        return Passphrase(settings.key_passphrase.get_secret_value())
    return None
