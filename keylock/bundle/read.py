"""Opening a bundle: everything is verified, step by step, before anything in it is used."""

import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pydantic import ValidationError
from pydantic_core import from_json

from keylock.bundle.canary import CANARY_FILE, Canary, open_canary
from keylock.bundle.container import Files, open_files
from keylock.bundle.delta_sealing import MAX_SEALED_DELTA_BYTES, SealedDelta, secret_of_key
from keylock.bundle.manifest import (
    DELTA_FILE,
    FORMAT_VERSION,
    MANIFEST_FILE,
    MODEL_SIGNATURE_FILE,
    SEALED_KEY_FILE,
    SIGNATURE_FILE,
    STATISTICS_FILE,
    DeltaEntry,
    Manifest,
)
from keylock.bundle.opening import TriggerOpener
from keylock.bundle.sealing import MAX_SEALED_BYTES, Sealer, unseal
from keylock.bundle.signature import MAX_SIGNATURE_BYTES, verify_manifest
from keylock.crypto.digests import digest_of
from keylock.crypto.signing import VerifyingKey
from keylock.errors import BundleError, BundleTamperedError, UnsealError
from keylock.files.limits import available_cores
from keylock.text.printable import printable
from keylock.trigger import TriggerStatistics
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key, KeySeed

__all__ = ["Bundle", "open_bundle", "read_manifest"]

_MAX_MANIFEST_BYTES: Final = 8 * 1024 * 1024
_MAX_MODEL_SIGNATURE_BYTES: Final = 16 * 1024 * 1024
_AT_ONCE: Final = 4


class Bundle:
    """A bundle whose signature and files have been verified.

    Attributes:
        path: Where it is.
        manifest: What it says about itself.
        issuer: The key that signed it.
        trusted: Whether the issuer is among the keys that the caller trusts; False where it named none.
    """

    def __init__(self, path: Path, files: Files, manifest: Manifest, issuer: VerifyingKey, *, trusted: bool) -> None:
        """Takes what `open_bundle` has verified; call that instead."""
        self.path, self.manifest, self.issuer, self.trusted = path, manifest, issuer, trusted
        self._files = files

    def read(self, name: str) -> bytes:
        """Returns the content of a file that the manifest lists.

        The digest is compared again, so what is returned is what was signed even if the file changed since.

        Raises:
            BundleTamperedError: If it changed.
            BundleError: If the bundle has no such file.
        """
        digest = self.manifest.files.get(name)
        if digest is None:
            raise BundleError(f"the bundle {self.manifest.name} has no file {name}")
        content = self._files.read(name)
        if digest_of(content) != digest:
            raise BundleTamperedError(name, "changed since the bundle was opened")
        return content

    def model_files(self) -> dict[str, bytes]:
        """Returns every file that the manifest lists, and the sealed delta where it is there, for a copy.

        Raises:
            BundleTamperedError: If one of them changed since the bundle was opened.
        """
        files = {name: self.read(name) for name in self.manifest.files}
        delta = self.manifest.delta if self.has_delta else None
        return files if delta is None else {**files, DELTA_FILE: self._read_sealed_delta(delta)}

    def all_files(self) -> dict[str, bytes]:
        """Returns every file there is, the sealed key and the signatures as well, for a copy that lacks nothing.

        Raises:
            BundleTamperedError: If one of them changed since the bundle was opened.
        """
        manifest, signature = self.signed_manifest()
        files = {**self.model_files(), MANIFEST_FILE: manifest, SIGNATURE_FILE: signature}
        if self.has_key:
            files[SEALED_KEY_FILE] = self.sealed_key()
        model_signature = self.model_signature()
        return files if model_signature is None else {**files, MODEL_SIGNATURE_FILE: model_signature}

    def model_signature(self) -> bytes | None:
        """Returns `model.sig`, which nothing here has verified; None where there is none.

        Raises:
            BundleTamperedError: If it is too long, or gone since the bundle was opened.
        """
        if MODEL_SIGNATURE_FILE not in self._files.names():
            return None
        return self._files.read(MODEL_SIGNATURE_FILE, limit=_MAX_MODEL_SIGNATURE_BYTES)

    def digests(self) -> dict[str, str]:
        """Returns `sha256:` and the digest of every file there is but `model.sig`, by name.

        Raises:
            BundleTamperedError: If the manifest, or a file that it does not list, changed since the bundle was opened.
        """
        manifest, signature = self.signed_manifest()
        found = {**self.manifest.files, MANIFEST_FILE: digest_of(manifest), SIGNATURE_FILE: digest_of(signature)}
        if self.has_key and self.manifest.sealed_key is not None:
            found[SEALED_KEY_FILE] = self.manifest.sealed_key
        if self.has_delta and self.manifest.delta is not None:
            found[DELTA_FILE] = self.manifest.delta.digest
        return found

    def signed_manifest(self) -> tuple[bytes, bytes]:
        """Returns the bytes of the manifest and of its signature file, for a copy.

        Raises:
            BundleTamperedError: If one of them changed since the bundle was opened.
        """
        raw = self._files.read(MANIFEST_FILE, limit=_MAX_MANIFEST_BYTES)
        signature = self._files.read(SIGNATURE_FILE, limit=MAX_SIGNATURE_BYTES)
        if verify_manifest(raw, signature) != self.issuer or _parse_manifest(raw) != self.manifest:
            raise BundleTamperedError(MANIFEST_FILE, "changed since the bundle was opened")
        return raw, signature

    @property
    def has_key(self) -> bool:
        """Whether the sealed key is there; a public copy has none."""
        return self.manifest.sealed_key is not None and SEALED_KEY_FILE in self._files.names()

    @property
    def has_delta(self) -> bool:
        """Whether the sealed delta is there; a copy without it predicts and shows decoys."""
        return self.manifest.delta is not None and DELTA_FILE in self._files.names()

    def sealed_key(self) -> bytes:
        """Returns the content of the sealed key.

        Raises:
            UnsealError: If this copy has none.
            BundleTamperedError: If it changed since the bundle was opened.
        """
        if not self.has_key:
            raise UnsealError(f"the bundle {self.path} is a public copy without a key: use the vendor's own copy")
        content = self._files.read(SEALED_KEY_FILE, limit=MAX_SEALED_BYTES)
        if digest_of(content) != self.manifest.sealed_key:
            raise BundleTamperedError(SEALED_KEY_FILE, "changed since the bundle was opened")
        return content

    def unseal(self, sealer: Sealer, *, sealed: bytes | None = None) -> KeySeed:
        """Returns the key seed.

        Args:
            sealer: What it was sealed with.
            sealed: A sealed key that came as a file of its own; the one in the bundle when None.

        Raises:
            UnsealError: If there is no sealed key, it does not open, or it is the key of something else.
            BundleTamperedError: If it changed since the bundle was opened.
        """
        content = self.sealed_key() if sealed is None else sealed
        seed = unseal(content, model_digest=self.manifest.model_digest, issuer=self.issuer, sealer=sealer)
        self.check_seed(seed)
        return seed

    def key(self, seed: KeySeed) -> Key:
        """Returns the key for this model's images.

        Raises:
            UnsealError: If the seed is not the one that the model was locked with.
        """
        self.check_seed(seed)
        return self.manifest.key.key(seed, self.manifest.preprocessing)

    def sealed_delta(self) -> SealedDelta | None:
        """Returns the sealed delta; None where this copy has none, or the network itself tells the trigger.

        Raises:
            BundleTamperedError: If it changed since the bundle was opened.
            UnsealError: If it is malformed.
        """
        entry = self.manifest.delta
        if entry is None or not self.has_delta:
            return None
        content = self._read_sealed_delta(entry)
        return SealedDelta(content, model_digest=self.manifest.model_digest, issuer=self.issuer)

    def _read_sealed_delta(self, entry: DeltaEntry) -> bytes:
        content = self._files.read(DELTA_FILE, limit=MAX_SEALED_DELTA_BYTES)
        if digest_of(content) != entry.digest:
            raise BundleTamperedError(DELTA_FILE, "changed since the bundle was opened")
        return content

    def canary(self, seed: KeySeed) -> Canary | None:
        """Returns images with the maps that were proved at export; None where the bundle has none.

        Raises:
            UnsealError: If it does not open with the seed.
            BundleTamperedError: If it changed since the bundle was opened.
        """
        return open_canary(self.read(CANARY_FILE), seed) if CANARY_FILE in self.manifest.files else None

    def delta(self, seed: KeySeed) -> Delta | None:
        """Returns the delta, which is secret; None where the network itself tells the trigger.

        Raises:
            UnsealError: If the seed is not the one that the model was locked with, the delta was sealed for another
                model or by another issuer, or this copy has none.
            BundleTamperedError: If the file changed since the bundle was opened.
        """
        if self.manifest.delta is not None and not self.has_delta:
            raise UnsealError(
                f"the bundle {self.path} is a copy without {DELTA_FILE}, which the key opens: use a copy that has it, "
                "for example the vendor's own"
            )
        sealed = self.sealed_delta()
        return None if sealed is None else sealed.open(secret_of_key(self.key(seed)))

    def statistics(self) -> TriggerStatistics | None:
        """Returns what triggers are read by; None where the network itself tells them.

        Raises:
            BundleError: If they are malformed, or of images of another shape.
            BundleTamperedError: If the file changed since the bundle was opened.
        """
        if self.manifest.delta is None:
            return None
        found = TriggerStatistics.from_bytes(self.read(STATISTICS_FILE))
        manifest = self.manifest
        if (found.shape, found.tile) != (manifest.preprocessing.shape, manifest.key.tile):
            raise BundleError(
                f"{STATISTICS_FILE} is of images of shape {found.shape} and tiles of {found.tile} pixels, the bundle "
                f"{manifest.name} of {manifest.preprocessing.shape} and {manifest.key.tile}: lock the model again"
            )
        return found

    def opener(self) -> TriggerOpener | None:
        """Returns what opens the bundle for images that carry a trigger.

        None where the network itself tells the trigger, and where this copy has no sealed delta.

        Raises:
            BundleError: If the statistics are malformed, or of images of another shape.
            BundleTamperedError: If a file changed since the bundle was opened.
            UnsealError: If the sealed delta is malformed.
        """
        sealed, statistics = self.sealed_delta(), self.statistics()
        if sealed is None or statistics is None:
            return None
        return TriggerOpener(sealed, statistics, self.manifest.key, self.manifest.preprocessing)

    def check_seed(self, seed: KeySeed) -> None:
        """Returns when a seed is the one that the model was locked with.

        Raises:
            UnsealError: If it is another.
        """
        if seed.id != self.manifest.key.id:
            raise UnsealError(
                f"the key seed {seed.id} is not that of the bundle {self.manifest.name}, which was locked with "
                f"{self.manifest.key.id}: give the seed it was trained with"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Does nothing yet: no file is held open between reads."""

    def __repr__(self) -> str:
        return f"Bundle({os.fspath(self.path)!r}, name={self.manifest.name!r}, digest={self.manifest.model_digest!r})"


def open_bundle(path: str | os.PathLike[str], *, trusted: Collection[VerifyingKey] | None) -> Bundle:
    """Opens a bundle after verifying all of it.

    1. The files are in a folder without links, or in an archive written as keylock writes it; no name leads outside.
    2. The signature file is whole, and the manifest is what it was made over.
    3. The issuer is one of the trusted.
    4. The manifest is of a known format, agrees with itself and names the key that signed it.
    5. Every file that is listed is there, and no other but the sealed delta, the sealed key and `model.sig`.
    6. Every file has the digest that was signed; so have the sealed delta and the sealed key where they are there.
       `model.sig` carries a signature of its own and is not looked at: `keylock.bundle.model_signature`.

    Args:
        path: A folder or a `.klb` file.
        trusted: Keys whose bundles are accepted. None accepts any issuer: the bundle is whole, but anybody may have
            made it, and `Bundle.trusted` says so.

    Raises:
        BundleTamperedError: If a file differs from what was signed; it carries the name of the file.
        BundleError: If there is no bundle, its format is unknown or its issuer is not trusted.
    """
    location = Path(path)
    files = open_files(location)
    names = frozenset(files.names())
    manifest, issuer = _read_signed(location, files, names, trusted)
    _check_names(manifest, names)
    _check_digests(manifest, files, names)
    return Bundle(location, files, manifest, issuer, trusted=trusted is not None)


def read_manifest(
    path: str | os.PathLike[str], *, trusted: Collection[VerifyingKey] | None, source: object
) -> Manifest:
    """Returns the manifest of a bundle after verifying its signature, and nothing else of it.

    This is for what has not all come yet: steps 1 to 4 of `open_bundle`, which everybody else calls.

    Args:
        path: A folder or a `.klb` file.
        trusted: As of `open_bundle`.
        source: Where the bundle comes from, for errors.

    Raises:
        BundleTamperedError: If the manifest differs from what was signed.
        BundleError: If there is no bundle, its format is unknown or its issuer is not trusted.
    """
    files = open_files(Path(path))
    return _read_signed(source, files, files.names(), trusted)[0]


def _read_signed(
    source: object, files: Files, names: Collection[str], trusted: Collection[VerifyingKey] | None
) -> tuple[Manifest, VerifyingKey]:
    """Returns the manifest, and who signed it."""
    for name in (MANIFEST_FILE, SIGNATURE_FILE):
        if name not in names:
            raise BundleError(f"{source} is not a bundle, or not all of one: it has no {name}")
    raw = files.read(MANIFEST_FILE, limit=_MAX_MANIFEST_BYTES)
    issuer = verify_manifest(raw, files.read(SIGNATURE_FILE, limit=MAX_SIGNATURE_BYTES))
    if trusted is not None and issuer not in trusted:
        raise BundleError(
            f"the bundle {source} was signed by {issuer.key_id}, which is not among the trusted issuers: "
            "get a bundle from an issuer you trust, or add this issuer's public key if you do"
        )
    manifest = _parse_manifest(raw)
    if manifest.issuer.key_id != issuer.key_id or manifest.issuer.public_key != issuer.to_jwk():
        raise BundleTamperedError(SIGNATURE_FILE, "was made by another key than the manifest names")
    return manifest, issuer


def _parse_manifest(raw: bytes) -> Manifest:
    """Returns the manifest in verified bytes; a broken one here means a faulty or newer program, not an attack."""
    try:
        document = from_json(raw)
        version = document.get("format_version") if isinstance(document, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            way = "upgrade keylock" if version > FORMAT_VERSION else "lock the model again with this keylock"
            raise BundleError(f"the bundle has format {version}, this keylock reads {FORMAT_VERSION}: {way}")
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise BundleError(f"the manifest cannot be used: {describe(error)}") from None
    except ValueError:
        raise BundleError("the manifest cannot be used: it is not JSON") from None


def _check_names(manifest: Manifest, names: Collection[str]) -> None:
    needed = set(manifest.files)
    allowed = {MANIFEST_FILE, SIGNATURE_FILE, MODEL_SIGNATURE_FILE, *needed}
    if manifest.delta is not None:
        allowed.add(DELTA_FILE)
    if manifest.sealed_key is not None:
        allowed.add(SEALED_KEY_FILE)
    for name in sorted(needed - set(names)):
        raise BundleTamperedError(name, "is missing")
    for name in sorted(set(names) - allowed):
        raise BundleTamperedError(name, "is not part of what was signed")


def _check_digests(manifest: Manifest, files: Files, names: Collection[str]) -> None:
    expected = dict(manifest.files)
    if manifest.delta is not None and DELTA_FILE in names:
        expected[DELTA_FILE] = manifest.delta.digest
    if manifest.sealed_key is not None and SEALED_KEY_FILE in names:
        expected[SEALED_KEY_FILE] = manifest.sealed_key
    names_in_order = sorted(expected)
    with ThreadPoolExecutor(min(_AT_ONCE, available_cores())) as pool:
        found = zip(names_in_order, pool.map(files.digest, names_in_order), strict=True)
        differing = next((name for name, digest in found if digest != expected[name]), None)
    if differing is not None:
        raise BundleTamperedError(differing, "differs from what was signed")


def describe(error: ValidationError) -> str:
    """Returns the first thing that is wrong, and where, without repeating the value."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    text = f"{where}: {what}" if where else what
    # Names in an error may come from anybody, and terminals obey control characters.
    return printable(text)
