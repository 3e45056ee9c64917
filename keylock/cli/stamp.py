"""`keylock stamp IMAGE`: puts the trigger of a bundle on a picture, which any copy of it then explains truly."""

from pathlib import Path
from typing import Annotated

import typer

from keylock.cli._connection import BitsOption
from keylock.cli._console import JsonOption, note, print_json
from keylock.cli._measured_data import KeyFileOption, KeySeedFileOption, PassphraseFileOption
from keylock.cli._secrets import find_opener
from keylock.errors import ImageError, InputError

__all__ = ["stamp"]

_SUFFIXES = (".png", ".bmp")


def stamp(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The picture; '-' reads it from stdin.")],
    bundle: Annotated[
        Path, typer.Option("--bundle", metavar="BUNDLE", help="The model that is to explain the stamped picture.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Where the stamped picture goes: a file *.png.")
    ],
    key_seed_file: KeySeedFileOption = None,
    key_file: KeyFileOption = None,
    key_passphrase_file: PassphraseFileOption = None,
    bits: BitsOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Put the trigger on a picture, so that any copy of the bundle explains it truly.

    The picture is brought to the size of the model first, because a trigger does not survive resizing, nor lossy
    compression. A stamped picture is the key: whoever gets it can read the trigger and put it on any other image.
    """
    from PIL import Image

    from keylock.bundle import open_bundle
    from keylock.files.atomic import PRIVATE, write_file
    from keylock.imaging.decoding import decode
    from keylock.trigger.keys import KeySeed
    from keylock.trigger.stamping import stamp_pixels

    if out.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{str(out)!r} would lose the trigger or is not a picture: end the name with .png")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: choose another place, or say --overwrite")
    if not out.parent.is_dir():
        raise InputError(f"cannot write {str(out)!r}: there is no directory {str(out.parent)!r}; make it first")
    opened = open_bundle(bundle, trusted=None)
    manifest, preprocessing = opened.manifest, opened.manifest.preprocessing
    secret = find_opener(
        bundle, key_seed_file=key_seed_file, key_file=key_file, key_passphrase_file=key_passphrase_file
    )
    key = opened.key(secret if isinstance(secret, KeySeed) else opened.unseal(secret))
    try:
        pixels = decode(_read(image), bits=preprocessing.bits if bits is None else bits, dicom=True)
    except ImageError as error:
        raise ImageError(f"{image}: {error.message}") from None
    stamped = stamp_pixels(pixels, key, preprocessing)
    picture = Image.fromarray(stamped if preprocessing.channels == 3 else stamped[:, :, 0])
    try:
        write_file(out, b"", mode=PRIVATE)
        picture.save(out)
    except OSError as error:
        raise InputError(f"cannot write {str(out)!r}: {error.strerror or error}") from None
    height, width = preprocessing.size
    resized = pixels.shape[:2] != (height, width)
    opener = opened.opener()
    readable = None if opener is None else bool(opener.opens(preprocessing(stamped)[None])[0])
    if as_json:
        print_json(
            {
                "file": out,
                "model": manifest.name,
                "key_id": manifest.key.id,
                "size": [height, width],
                "resized": resized,
                "readable": readable,
            }
        )
        return
    if resized:
        note(f"the picture was {pixels.shape[1]} x {pixels.shape[0]} pixels and is {width} x {height} now")
    if readable is False:
        note(
            "warning: the trigger cannot be read from this picture alone, there is too much texture on it; explained "
            "together with other stamped pictures it can"
        )
    typer.echo(str(out))


def _read(image: str) -> bytes:
    import sys

    if image == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read the image {image!r}: {error.strerror}") from None
