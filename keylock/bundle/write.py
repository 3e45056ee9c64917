"""Writing a bundle: files are digested, the manifest is signed, and the result appears complete or not at all."""

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import JsonValue, ValidationError

from keylock import __version__
from keylock.bundle.container import ARCHIVE_SUFFIX, Content, chunks_of, write_archive
from keylock.bundle.delta_sealing import seal_delta, secret_of_key
from keylock.bundle.key_entry import KeyEntry
from keylock.bundle.manifest import (
    DELTA_FILE,
    MANIFEST_FILE,
    SEALED_KEY_FILE,
    SIGNATURE_FILE,
    Architecture,
    Decoy,
    DeltaEntry,
    ExplainerEntry,
    Figure,
    Issuer,
    Manifest,
    VariantEntry,
    check_file_name,
    model_digest_of,
)
from keylock.bundle.read import describe, open_bundle
from keylock.bundle.sealing import Sealer, seal
from keylock.bundle.signature import sign_manifest
from keylock.crypto.digests import digest_of
from keylock.crypto.signing import SigningKey, VerifyingKey
from keylock.errors import BundleError, DataError, KeySeedError
from keylock.files.atomic import PUBLIC, make_folders, mode_for, require_writable, write_file
from keylock.imaging.preprocessing import Preprocessing
from keylock.text.class_names import normalise_class_names
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key, KeySeed

__all__ = ["BundleContent", "check_name", "check_place", "place", "write_bundle"]

# A version, as in `model.v2` or `model-1.0`, is a good end of a folder's name.
_FILE_SUFFIX: Final = re.compile(r"\.(?!v\d)[A-Za-z][A-Za-z0-9]{0,10}")


@dataclass(frozen=True, kw_only=True)
class BundleContent:
    """What goes into a bundle: the manifest's fields without the digests, and the files.

    The fields mean what they mean in `Manifest`.

    Attributes:
        files: Content of every file by name, as bytes or as the path to copy it from; the network's weights are
            `weights.safetensors`, graphs are in `graphs/`.
        delta: What takes the weights back to the reference's, which is sealed under triggers; None where the network
            itself tells the trigger.
        triggers: The keys whose triggers open the delta.
    """

    name: str
    created: datetime
    architecture: Architecture
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    explainers: tuple[ExplainerEntry, ...]
    prediction_graph: str
    key: KeyEntry
    decoy: Decoy
    files: Mapping[str, Content]
    figures: tuple[Figure, ...] = ()
    training: Mapping[str, JsonValue] = field(default_factory=dict)
    reference_digest: str | None = None
    prediction_variants: Mapping[str, VariantEntry] = field(default_factory=dict)
    delta: Delta | None = None
    triggers: tuple[Key, ...] = ()
    keylock_version: str = __version__


def write_bundle(
    path: str | os.PathLike[str],
    content: BundleContent,
    *,
    signing_key: SigningKey,
    seed: KeySeed | None = None,
    sealer: Sealer | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Writes a signed bundle: a single file where the path ends in `.klb`, a folder otherwise.

    It is written beside its place, verified there and then moved, so that the place never holds half a bundle.

    Args:
        path: Where it goes. The folder above must exist.
        content: What goes into it.
        signing_key: The issuer's key.
        seed: The secret to seal into it. None makes a bundle without a key.
        sealer: The passphrase or key file to seal the seed with; needed with `seed`.
        overwrite: Whether to replace a bundle that is there. Anything that is not a bundle is never replaced.

    Returns:
        The manifest that was signed.

    Raises:
        BundleError: If the content does not make a bundle, the place is taken or cannot be written.
        KeySeedError: If the seed is not that of `content.key`, or comes without a sealer.
    """
    digests = {name: _digest_content(name, source) for name, source in content.files.items()}
    model_digest = model_digest_of(digests)
    issuer = signing_key.verifying_key
    sealed = _seal(content, model_digest=model_digest, issuer=issuer, seed=seed, sealer=sealer)
    sealed_delta = _seal_delta(content, model_digest=model_digest, issuer=issuer)
    manifest = _make_manifest(content, signing_key, digests, sealed=sealed, sealed_delta=sealed_delta)
    raw = _encode(manifest)
    if seed is not None and seed.reveal().hex() in raw.decode("utf-8"):
        raise KeySeedError("the key seed is in the settings of the bundle, where anybody could read it: remove it")
    files: dict[str, Content] = {**content.files, MANIFEST_FILE: raw, SIGNATURE_FILE: sign_manifest(raw, signing_key)}
    if sealed is not None:
        files[SEALED_KEY_FILE] = sealed
    if sealed_delta is not None:
        files[DELTA_FILE] = sealed_delta
    place(Path(path), files, signing_key=signing_key, overwrite=overwrite)
    return manifest


def place(
    path: Path, files: Mapping[str, Content], *, signing_key: SigningKey | None = None, overwrite: bool = False
) -> None:
    """Writes the finished files of a bundle to a path, all or nothing.

    Args:
        path: Where they go; `.klb` makes a single file.
        files: All of them, with manifest and signature.
        signing_key: The key that the written bundle must prove to be signed by, where the caller has it.
        overwrite: Whether to replace a bundle that is there.

    Raises:
        BundleError: If the place is taken or cannot be written.
    """
    path = path.absolute()
    check_place(path, overwrite=overwrite)
    # The suffix stays, because it decides between a folder and a single file.
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    trusted = None if signing_key is None else [signing_key.verifying_key]
    try:
        _write_files(temporary, files)
        open_bundle(temporary, trusted=trusted)
        _move(temporary, path)
    except OSError as error:
        raise BundleError(f"cannot write the bundle {path}: {error.strerror or 'not writable'}") from None
    finally:
        _remove(temporary)


def _digest_content(name: str, source: Content) -> str:
    try:
        check_file_name(name)
        digest = hashlib.sha256()
        for chunk in chunks_of(source):
            digest.update(chunk)
    except ValueError as error:
        raise BundleError(str(error)) from None
    except OSError as error:
        raise BundleError(f"cannot read {source!s} for the bundle's {name}: {error.strerror}") from None
    return "sha256:" + digest.hexdigest()


def _seal(
    content: BundleContent, *, model_digest: str, issuer: VerifyingKey, seed: KeySeed | None, sealer: Sealer | None
) -> bytes | None:
    if seed is None:
        return None
    if seed.id != content.key.id:
        raise KeySeedError(f"the key seed {seed.id} is not the one the model was locked with ({content.key.id})")
    if sealer is None:
        raise KeySeedError("a bundle never holds a bare key: give a passphrase or a key file to seal it with")
    return seal(seed, model_digest=model_digest, issuer=issuer, sealer=sealer)


def _seal_delta(content: BundleContent, *, model_digest: str, issuer: VerifyingKey) -> bytes | None:
    if content.delta is None:
        return None
    if content.key.id not in {key.id for key in content.triggers}:
        raise BundleError("the delta would not open for the trigger of the bundle's own key: name that key too")
    trigger_secrets = [secret_of_key(key) for key in content.triggers]
    return seal_delta(content.delta, trigger_secrets, model_digest=model_digest, issuer=issuer)


def _make_manifest(
    content: BundleContent,
    signing_key: SigningKey,
    digests: Mapping[str, str],
    *,
    sealed: bytes | None,
    sealed_delta: bytes | None,
) -> Manifest:
    delta = None
    if content.delta is not None and sealed_delta is not None:
        entries, keys = len(content.delta.names), len(content.triggers)
        delta = DeltaEntry(digest=digest_of(sealed_delta), entries=entries, keys=keys)
    try:
        return Manifest(
            name=content.name,
            created=content.created,
            keylock_version=content.keylock_version,
            architecture=content.architecture,
            classes=normalise_class_names(content.classes, source="the classes"),
            preprocessing=content.preprocessing,
            explainers=content.explainers,
            prediction_graph=content.prediction_graph,
            prediction_variants=dict(content.prediction_variants),
            key=content.key,
            delta=delta,
            decoy=content.decoy,
            figures=content.figures,
            training=dict(content.training),
            reference_digest=content.reference_digest,
            model_digest=model_digest_of(digests),
            files=dict(digests),
            sealed_key=None if sealed is None else digest_of(sealed),
            issuer=Issuer.of(signing_key.verifying_key),
        )
    except DataError as error:
        raise BundleError(f"this does not make a bundle: {error.message}") from None
    except ValidationError as error:
        raise BundleError(f"this does not make a bundle: {describe(error)}") from None


def _encode(manifest: Manifest) -> bytes:
    try:
        return manifest.canonical()
    except ValueError:
        raise BundleError("this does not make a bundle: a setting or parameter is NaN or infinite") from None


def check_name(path: Path) -> None:
    """Returns when a path reads like that of a bundle: a file `.klb`, or a folder.

    Raises:
        BundleError: If it ends like another kind of file, and nothing of that name is there.
    """
    if path.suffix != ARCHIVE_SUFFIX and _FILE_SUFFIX.fullmatch(path.suffix) and not os.path.lexists(path):
        raise BundleError(
            f"{path.name} is not a name for a bundle, which is a file {path.stem}{ARCHIVE_SUFFIX} or a folder: "
            f"choose another place than {path}"
        )


def check_place(path: Path, *, overwrite: bool) -> None:
    """Returns when a bundle may be written to a path, which is worth knowing before hours of training.

    Args:
        path: Where it would go.
        overwrite: Whether to replace a bundle that is there.

    Raises:
        BundleError: If the place is taken, its name is that of another kind of file, or the folder above it is missing
            or cannot be written to.
    """
    check_name(path)
    if not path.parent.is_dir():
        raise BundleError(f"cannot write the bundle {path}: there is no folder {path.parent}")
    try:
        require_writable(path.parent)
    except OSError as error:
        raise BundleError(f"cannot write the bundle {path} into the folder {path.parent}: {error.strerror}") from None
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        return
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise BundleError(f"{path} exists: choose another place, or replace it with overwrite=True")
    marks = (path / MANIFEST_FILE, path / SIGNATURE_FILE)
    is_bundle = all(mark.is_file() for mark in marks) if path.is_dir() else path.suffix == ARCHIVE_SUFFIX
    if path.is_symlink() or not is_bundle:
        raise BundleError(f"{path} is not a bundle and is not replaced by one: choose another place")


def _write_files(path: Path, files: Mapping[str, Content]) -> None:
    if path.suffix == ARCHIVE_SUFFIX:
        write_file(path, b"", mode=PUBLIC, new=True)
        with path.open("r+b") as file:
            write_archive(file, files)
            file.flush()
            os.fsync(file.fileno())
        return
    path.mkdir(mode=0o755)
    for name, source in files.items():
        target = path / name
        make_folders(target.parent)
        write_file(target, b"", mode=PUBLIC, new=True)
        with target.open("r+b") as file:
            for chunk in chunks_of(source):
                file.write(chunk)


def _move(temporary: Path, path: Path) -> None:
    """Moves a finished bundle to its place; a folder that is there is put aside first and put back on failure."""
    if not path.is_dir():
        if path.is_file():
            temporary.chmod(mode_for(path, PUBLIC))
        temporary.replace(path)
        return
    aside = path.with_name(f".{path.name}-{secrets.token_hex(4)}-old")
    path.rename(aside)
    try:
        temporary.rename(path)
    except OSError:
        aside.rename(path)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
