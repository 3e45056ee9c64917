"""The public copy of a bundle: the same model and signature, without the sealed key.

The sealed delta stays: it opens with a trigger, so that whoever holds the copy and is given a stamped image sees true
maps, and with the key seed, so that the copy can be served.
"""

import os
from pathlib import Path

from keylock.bundle.manifest import SEALED_KEY_FILE
from keylock.bundle.read import Bundle
from keylock.bundle.write import place
from keylock.errors import BundleError

__all__ = ["export_public"]


def export_public(bundle: Bundle, out: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes a copy that has no key; the signatures hold for it as they do for the original.

    Args:
        bundle: The original.
        out: Where the copy goes: a single file where it ends in `.klb`, a folder otherwise.
        overwrite: Whether to replace a bundle that is there.

    Raises:
        BundleError: If the place is taken, above all by the original, or cannot be written.
        BundleTamperedError: If a file of the original changed since it was opened.
    """
    if Path(out).resolve() == bundle.path.resolve():
        raise BundleError(f"the public copy would replace {out} and its key would be lost: choose another place")
    files = {name: content for name, content in bundle.all_files().items() if name != SEALED_KEY_FILE}
    place(Path(out), files, overwrite=overwrite)
