"""From settings to models that can be served: verify each bundle, unseal key and adapter, load the graphs."""

import logging
import os
from collections.abc import Callable, Collection
from typing import Final

from keylock.bundle import Bundle, KeyFile, Passphrase, Sealer, key_provider, open_bundle, read_sealed_key
from keylock.errors import BundleError, UnsealError
from keylock.issuers import IssuerKeys
from keylock.keys import KeySeed
from keylock.licensing.offline import OfflineLicense
from keylock.signing import VerifyingKey
from keylock_server.cores import available_cores, threads_per_batch
from keylock_server.devices import warn_about_two_runtimes
from keylock_server.runtime import ServedModel
from keylock_server.settings import ServerSettings, Source

__all__ = ["Opener", "open_model"]

_LOG: Final = logging.getLogger("keylock_server")


class Opener:
    """Opens the bundles that a server is to serve, at its start and while it runs."""

    def __init__(self, settings: ServerSettings) -> None:
        """Takes the settings.

        Raises:
            SignatureError: If the public key of an issuer cannot be read.
        """
        warn_about_two_runtimes()
        self._settings = settings
        self._issuers = IssuerKeys(settings.issuers) if settings.issuers else None
        self._signers: tuple[VerifyingKey, ...] = ()

    def keys(self) -> Collection[VerifyingKey]:
        """Returns the keys whose licenses are accepted; another object when they have changed.

        They are those of the issuers that were named, whose files are read again when they change, or else that of
        whoever signed the bundles.
        """
        return self._signers if self._issuers is None else self._issuers()

    def open(self, source: Source) -> ServedModel:
        """Opens a bundle.

        Args:
            source: The bundle, and the way to its key.

        Raises:
            BundleError: If the bundle cannot be used, or nobody was named and it was signed by another than those
                before: the licenses of one would be good for the models of the other.
            UnsealError: If the key does not open, or no way to it was given and `keyless` was not set.
            KeySeedError: If the key seed cannot be read.
            ServiceError: If the device is not there.
        """
        settings = self._settings
        with open_bundle(source.bundle, trusted=None if self._issuers is None else tuple(self._issuers())) as bundle:
            if not bundle.trusted:
                self._admit(bundle)
            seed = _find_seed(bundle, source, settings)
            key, adapter, canary = None, None, None
            if seed is not None:
                key, adapter, canary = bundle.key(seed), bundle.adapter(seed), bundle.canary(seed)
                seed.close()
            return ServedModel(
                bundle.manifest,
                bundle.read,
                key=key,
                adapter=adapter,
                canary=canary,
                device=settings.device,
                threads=threads_per_batch(
                    threads=settings.threads, workers=1, batches=settings.batches, cores=available_cores()
                ),
            )

    def _admit(self, bundle: Bundle) -> None:
        if self._signers and bundle.issuer not in self._signers:
            raise BundleError(
                f"{bundle.path} was signed by {bundle.issuer.key_id} and another bundle by "
                f"{self._signers[0].key_id}: name the public keys you trust with --issuer"
            )
        if not self._signers:
            self._signers = (bundle.issuer,)
            _LOG.warning(
                "the bundle was signed by %s, which nobody vouches for: name the public key you trust with --issuer",
                bundle.issuer.key_id,
            )


def open_model(settings: ServerSettings) -> tuple[ServedModel, Callable[[], Collection[VerifyingKey]]]:
    """Opens the first bundle.

    Args:
        settings: Those of the server.

    Returns:
        The model, and what returns the keys whose licenses are accepted.

    Raises:
        KeylockError: As `Opener`.
    """
    opener = Opener(settings)
    return opener.open(settings.sources[0]), opener.keys


def _find_seed(bundle: Bundle, source: Source, settings: ServerSettings) -> KeySeed | None:
    if settings.keyless:
        return None
    if source.key_seed_file is not None:
        return KeySeed.from_file(source.key_seed_file)
    sealer = _find_sealer(source, settings)
    if sealer is not None:
        with sealer:
            return bundle.unseal(sealer, sealed=_read_sealed(source, settings))
    if bundle.has_key:
        raise UnsealError(
            f"the key in {bundle.path} is sealed: give --key-file, --key-passphrase-file, --key-provider or "
            "KEYLOCK_KEY_PASSPHRASE, or serve predictions and decoys alone with --keyless"
        )
    raise UnsealError(
        f"{bundle.path} is a public copy without a key: give --sealed-key with what opens it, --key-seed-file, or "
        "serve predictions and decoys alone with --keyless"
    )


def _read_sealed(source: Source, settings: ServerSettings) -> bytes | None:
    if settings.offline_license is not None:
        return OfflineLicense.read(settings.offline_license).sealed_key
    return None if source.sealed_key is None else read_sealed_key(source.sealed_key)


def _find_sealer(source: Source, settings: ServerSettings) -> Sealer | None:
    if source.key_provider is not None:
        return key_provider(source.key_provider, environment=os.environ)
    if source.key_file is not None:
        return KeyFile(source.key_file)
    if source.key_passphrase_file is not None:
        return Passphrase.from_file(source.key_passphrase_file)
    if settings.key_passphrase is not None:
        return Passphrase(settings.key_passphrase.get_secret_value())
    return None
