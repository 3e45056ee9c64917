"""Sealing the key of a finished bundle anew: for one more server, or in place with another secret.

The seed stays the same, and with it the key, the model and everything else that is derived from the seed. A new seed is
another key, which the model was not locked with: only training again gives it.
"""

import os
from pathlib import Path

from keylock.bundle.manifest import MANIFEST_FILE, SEALED_KEY_FILE, SIGNATURE_FILE
from keylock.bundle.providers import Sealer
from keylock.bundle.read import Bundle, open_bundle
from keylock.bundle.sealing import MAX_SEALED_BYTES, seal
from keylock.bundle.signature import sign_manifest
from keylock.bundle.write import place
from keylock.crypto.digests import digest_of
from keylock.crypto.signing import SigningKey
from keylock.errors import BundleError, UnsealError
from keylock.trigger.keys import KeySeed

__all__ = ["read_sealed_key", "reseal", "seal_for"]


def seal_for(bundle: Bundle, seed: KeySeed, sealer: Sealer) -> bytes:
    """Returns the key of a bundle as a file of its own, sealed for somebody who has a public copy.

    Args:
        bundle: The bundle, or a public copy of it.
        seed: Its seed.
        sealer: What will open it.

    Raises:
        UnsealError: If the seed is that of another bundle, or the provider cannot seal here.
    """
    bundle.check_seed(seed)
    return seal(seed, model_digest=bundle.manifest.model_digest, issuer=bundle.issuer, sealer=sealer)


def reseal(bundle: Bundle, seed: KeySeed, sealer: Sealer, *, signing_key: SigningKey) -> Bundle:
    """Replaces the sealed key of a bundle, in its place, all or nothing. What sealed it before opens it no more.

    The manifest names the digest of the sealed key, so it is signed again. Model, digest and key stay as they are.

    Args:
        bundle: The bundle; a public copy gets a key.
        seed: Its seed.
        sealer: What will open it from now on.
        signing_key: The issuer's key.

    Returns:
        The bundle as it is now.

    Raises:
        BundleError: If the key is not the issuer's, or the place cannot be written.
        BundleTamperedError: If a file changed since the bundle was opened.
        UnsealError: If the seed is that of another bundle, or the provider cannot seal here.
    """
    if signing_key.verifying_key != bundle.issuer:
        raise BundleError(
            f"only the issuer {bundle.issuer.key_id} can seal the key of this bundle anew, and this is "
            f"{signing_key.key_id}: for another server, use keylock key seal"
        )
    sealed = seal_for(bundle, seed, sealer)
    raw = bundle.manifest.model_copy(update={"sealed_key": digest_of(sealed)}).canonical()
    signed = {MANIFEST_FILE: raw, SIGNATURE_FILE: sign_manifest(raw, signing_key), SEALED_KEY_FILE: sealed}
    place(bundle.path, {**bundle.model_files(), **signed}, signing_key=signing_key, overwrite=True)
    return open_bundle(bundle.path, trusted=[bundle.issuer])


def read_sealed_key(path: str | os.PathLike[str]) -> bytes:
    """Returns the content of a sealed key that is a file of its own.

    Raises:
        UnsealError: If it cannot be read or is too long.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_SEALED_BYTES + 1)
    except OSError as error:
        raise UnsealError(f"cannot read the sealed key {os.fspath(path)}: {error.strerror}") from None
    if len(content) > MAX_SEALED_BYTES:
        raise UnsealError(f"{os.fspath(path)} is not a sealed key: it is too long")
    return content
