"""Bundles to a registry and back: sent file by file, and in their place, there or here, at the end alone."""

import os
import secrets
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, NamedTuple

from keylock.bundle import Bundle, open_bundle
from keylock.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE
from keylock.bundle.read import read_manifest
from keylock.bundle.write import check_place, place
from keylock.crypto.digests import digest_of
from keylock.crypto.signing import VerifyingKey
from keylock.errors import BundleError
from keylock.registries.client import Registry
from keylock.registries.modelpack import SEALED_FILES, Layer, describe_artifact, read_artifact

__all__ = ["Pulled", "Pushed", "pull_bundle", "push_bundle"]

Progress = Callable[[int, int], None]
"""Called with how many files are there and how many there will be, from none on."""

_SIGNED_FIRST: Final = (MANIFEST_FILE, SIGNATURE_FILE)
_MAX_SIGNED_BYTES: Final = 8 * 1024 * 1024


class Pushed(NamedTuple):
    """What was sent.

    Attributes:
        digest: Digest of the manifest, which names the artefact for good.
        files: How many files it has.
        sent: How many of them the registry did not have.
        bytes_sent: Their bytes, with those of configuration and manifest.
        has_key: Whether the sealed key is among them.
    """

    digest: str
    files: int
    sent: int
    bytes_sent: int
    has_key: bool


class Pulled(NamedTuple):
    """What was fetched.

    Attributes:
        bundle: The bundle in its place, verified.
        digest: Digest of the manifest.
        bytes_fetched: Bytes of the files and of the manifest.
        left: Files that were left in the registry, sorted.
    """

    bundle: Bundle
    digest: str
    bytes_fetched: int
    left: tuple[str, ...]


def push_bundle(
    bundle: Bundle, registry: Registry, *, public: bool = False, progress: Progress | None = None
) -> Pushed:
    """Sends a bundle, of which a registry that has some of it already gets the rest.

    The tag is set last: a push that breaks off leaves what was under it.

    Args:
        bundle: The bundle, or a copy of it.
        registry: Where to.
        public: Whether to leave out the sealed key and the sealed delta.
        progress: Called before the first file and after each.

    Raises:
        BundleTamperedError: If a file changed since the bundle was opened.
        RegistryError: If the registry does not take it.
    """
    files = bundle.all_files()
    if public:
        files = {name: content for name, content in files.items() if name not in SEALED_FILES}
    layers = [Layer(name, digest_of(files[name]), len(files[name])) for name in sorted(files)]
    config, manifest = describe_artifact(bundle.manifest, layers)
    sent = bytes_sent = 0
    tell = progress or _tell_nobody
    tell(0, len(layers))
    for done, layer in enumerate(layers, start=1):
        if not registry.has_blob(layer.digest):
            registry.send_blob(layer.digest, files[layer.name])
            sent, bytes_sent = sent + 1, bytes_sent + layer.size
        tell(done, len(layers))
    if not registry.has_blob(digest_of(config)):
        registry.send_blob(digest_of(config), config)
        bytes_sent += len(config)
    digest = registry.send_manifest(manifest)
    return Pushed(digest, len(layers), sent, bytes_sent + len(manifest), "key.sealed" in files)


def pull_bundle(
    registry: Registry,
    out: str | os.PathLike[str],
    *,
    public: bool = False,
    overwrite: bool = False,
    trusted: Collection[VerifyingKey] | None = None,
    progress: Progress | None = None,
) -> Pulled:
    """Fetches a bundle. It is in its place once all of it was verified, and nothing is before.

    1. The manifest of the artefact lists files of a bundle.
    2. The bundle's own manifest is signed, by one of the trusted issuers; nothing else is fetched before.
    3. Every file has its digest.
    4. The bundle is whole, as every reader demands, and is moved to its place.

    Args:
        registry: Where from.
        out: Where the bundle goes: a single file where it ends in `.klb`, a folder otherwise.
        public: Whether to leave the sealed key and the sealed delta where they are. What is left predicts, and shows
            decoys.
        overwrite: Whether to replace a bundle that is there.
        trusted: Keys whose bundles are accepted; None accepts any issuer.
        progress: Called before the first file and after each.

    Raises:
        BundleError: If the place is taken or cannot be written, or what came is no bundle of a trusted issuer.
        RegistryError: If the registry has no such bundle, fails, or sends something else than was asked for.
    """
    path = Path(out).absolute()
    check_place(path, overwrite=overwrite)
    content, digest = registry.manifest()
    layers = read_artifact(content, registry.reference)
    left = tuple(sorted(SEALED_FILES & layers.keys())) if public else ()
    wanted = [layers[name] for name in (*_SIGNED_FIRST, *sorted(layers.keys() - {*_SIGNED_FIRST, *left}))]
    folder = path.with_name(f".{path.name}-{secrets.token_hex(4)}.pull")
    tell = progress or _tell_nobody
    try:
        folder.mkdir(mode=0o700)
        tell(0, len(wanted))
        for done, layer in enumerate(wanted, start=1):
            target = folder / layer.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if layer.name in _SIGNED_FIRST and layer.size > _MAX_SIGNED_BYTES:
                raise BundleError(f"{registry.reference} is no bundle: its {layer.name} has {layer.size} bytes")
            registry.fetch_blob(layer.digest, layer.size, target)
            if layer.name == SIGNATURE_FILE:
                read_manifest(folder, trusted=trusted, source=registry.reference)
            tell(done, len(wanted))
        place(path, {layer.name: folder / layer.name for layer in wanted}, overwrite=overwrite)
    except OSError as error:
        raise BundleError(f"cannot write the bundle {path}: {error.strerror or 'not writable'}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    fetched = len(content) + sum(layer.size for layer in wanted)
    return Pulled(open_bundle(path, trusted=trusted), digest, fetched, left)


def _tell_nobody(_done: int, _total: int) -> None:
    """Takes the place of a display."""
