"""`keylock stamp IMAGE`: puts the trigger of a bundle on a picture, which any copy of it then explains truly."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._connection import BitsOption
from keylock.cli._console import JsonOption, note, print_json
from keylock.cli._options import takes
from keylock.cli._secrets import KeyOptions, find_opener
from keylock.errors import ImageError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["stamp"]

_SUFFIXES = (".png", ".bmp")


@dataclass(frozen=True, kw_only=True)
class StampOptions:
    """What `keylock stamp` was told; the help says what each is."""

    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The picture; '-' reads it from stdin.")]
    bundle: Annotated[
        Path, typer.Option("--bundle", metavar="BUNDLE", help="The model that is to explain the stamped picture.")
    ]
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Where the stamped picture goes: a file *.png.")
    ]
    key: KeyOptions
    bits: BitsOption = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False
    as_json: JsonOption = False


@takes(StampOptions)
def stamp(options: StampOptions) -> None:
    """Put the trigger on a picture, so that any copy of the bundle explains it truly.

    The picture is brought to the size of the model first, because a trigger does not survive resizing, nor lossy
    compression. A stamped picture is the key: whoever gets it can read the trigger and put it on any other image.
    """
    from keylock.bundle import open_bundle
    from keylock.imaging.decoding import decode
    from keylock.trigger.keys import KeySeed
    from keylock.trigger.stamping import stamp_pixels

    out = options.out
    _check_place(out, overwrite=options.overwrite)
    opened = open_bundle(options.bundle, trusted=None)
    manifest, preprocessing = opened.manifest, opened.manifest.preprocessing
    secret = find_opener(options.bundle, options.key)
    key = opened.key(secret if isinstance(secret, KeySeed) else opened.unseal(secret))
    bits = preprocessing.bits if options.bits is None else options.bits
    try:
        pixels = decode(_read(options.image), bits=bits, dicom=True)
    except ImageError as error:
        raise ImageError(f"{options.image}: {error.message}") from None
    stamped = stamp_pixels(pixels, key, preprocessing)
    _write(out, stamped if preprocessing.channels == 3 else stamped[:, :, 0])
    height, width = preprocessing.size
    resized = pixels.shape[:2] != (height, width)
    opener = opened.opener()
    readable = None if opener is None else bool(opener.opens(preprocessing(stamped)[None])[0])
    if options.as_json:
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


def _check_place(out: Path, *, overwrite: bool) -> None:
    if out.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{str(out)!r} would lose the trigger or is not a picture: end the name with .png")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: choose another place, or say --overwrite")
    if not out.parent.is_dir():
        raise InputError(f"cannot write {str(out)!r}: there is no directory {str(out.parent)!r}; make it first")


def _read(image: str) -> bytes:
    import sys

    if image == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read the image {image!r}: {error.strerror}") from None


def _write(out: Path, pixels: "NDArray[np.uint8]") -> None:
    from PIL import Image

    from keylock.files.atomic import PRIVATE, write_file

    picture = Image.fromarray(pixels)
    try:
        write_file(out, b"", mode=PRIVATE)
        picture.save(out)
    except OSError as error:
        raise InputError(f"cannot write {str(out)!r}: {error.strerror or error}") from None
