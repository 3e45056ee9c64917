"""From settings to a model that can be served: verify the bundle, unseal key and adapter, load the graphs."""

import logging
import os
from collections.abc import Callable, Collection
from typing import Final

from keylock.bundle import Bundle, KeyFile, Passphrase, Sealer, key_provider, open_bundle, read_sealed_key
from keylock.errors import UnsealError
from keylock.issuers import IssuerKeys
from keylock.keys import KeySeed
from keylock.licensing.offline import OfflineLicense
from keylock.signing import VerifyingKey
from keylock_server.devices import warn_about_two_runtimes
from keylock_server.runtime import ServedModel
from keylock_server.settings import ServerSettings

__all__ = ["open_model", "worker_count"]

_LOG: Final = logging.getLogger("keylock_server")


def open_model(settings: ServerSettings) -> tuple[ServedModel, Callable[[], Collection[VerifyingKey]]]:
    """Opens the bundle.

    Args:
        settings: Those of the server.

    Returns:
        The model, and what returns the keys whose licenses are accepted: their files are read again when they change.

    Raises:
        BundleError: If the bundle cannot be used.
        UnsealError: If the key does not open, or no way to it was given and `keyless` was not set.
        SignatureError: If the public key of an issuer cannot be read.
        KeySeedError: If the key seed cannot be read.
        ServiceError: If the device is not there.
    """
    warn_about_two_runtimes()
    issuers = IssuerKeys(settings.issuers) if settings.issuers else None
    with open_bundle(settings.bundle, trusted=None if issuers is None else tuple(issuers())) as bundle:
        if not bundle.trusted:
            _LOG.warning(
                "the bundle was signed by %s, which nobody vouches for: name the public key you trust with --issuer",
                bundle.issuer.key_id,
            )
        seed = _find_seed(bundle, settings)
        key, adapter, canary = None, None, None
        if seed is not None:
            key, adapter, canary = bundle.key(seed), bundle.adapter(seed), bundle.canary(seed)
            seed.close()
        model = ServedModel(
            bundle.manifest,
            bundle.read,
            key=key,
            adapter=adapter,
            canary=canary,
            device=settings.device,
            threads=settings.threads,
        )
    signers = (bundle.issuer,)
    return model, issuers or (lambda: signers)


def worker_count(settings: ServerSettings) -> int:
    """Returns how many batches run at once: as set, or one for each CPU core this process may use."""
    if settings.workers:
        return settings.workers
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _find_seed(bundle: Bundle, settings: ServerSettings) -> KeySeed | None:
    if settings.keyless:
        return None
    if settings.key_seed_file is not None:
        return KeySeed.from_file(settings.key_seed_file)
    opener = _find_opener(settings)
    if opener is not None:
        with opener:
            return bundle.unseal(opener, sealed=_read_sealed(settings))
    if bundle.has_key:
        raise UnsealError(
            f"the key in {bundle.path} is sealed: give --key-file, --key-passphrase-file, --key-provider or "
            "KEYLOCK_KEY_PASSPHRASE, or serve predictions and decoys alone with --keyless"
        )
    raise UnsealError(
        f"{bundle.path} is a public copy without a key: give --sealed-key with what opens it, --key-seed-file, or "
        "serve predictions and decoys alone with --keyless"
    )


def _read_sealed(settings: ServerSettings) -> bytes | None:
    if settings.offline_license is not None:
        return OfflineLicense.read(settings.offline_license).sealed_key
    return None if settings.sealed_key is None else read_sealed_key(settings.sealed_key)


def _find_opener(settings: ServerSettings) -> Sealer | None:
    if settings.key_provider is not None:
        return key_provider(settings.key_provider, environment=os.environ)
    if settings.key_file is not None:
        return KeyFile(settings.key_file)
    if settings.key_passphrase_file is not None:
        return Passphrase.from_file(settings.key_passphrase_file)
    if settings.key_passphrase is not None:
        return Passphrase(settings.key_passphrase.get_secret_value())
    return None
