"""`keylock card`: a model card for the Hugging Face Hub, with pictures of what everybody is shown."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._console import JsonOption, note, print_json
from keylock.cli._home import DEFAULT_HOME, HomeOption, IssuerOption
from keylock.cli._options import takes
from keylock.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from keylock.bundle import Bundle
    from keylock_client import LocalModel

__all__ = ["CardOptions", "card"]

_PICTURES = "maps.png"
_MOST_IMAGES = 8
_SIDE, _GAP, _HEADER = 160, 8, 26


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What `keylock card` takes."""

    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle: a folder or a .klb file.")]
    license: Annotated[
        str, typer.Option(metavar="ID", help="License of the model, as the Hub names it: apache-2.0, ... or other.")
    ]
    license_name: Annotated[str | None, typer.Option(metavar="NAME", help="Its name, with --license other.")] = None
    license_link: Annotated[
        str | None, typer.Option(metavar="URL", help="Where its text is, with --license other.")
    ] = None
    contact: Annotated[str | None, typer.Option(metavar="TEXT", help="Who licenses explanations.")] = None
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A picture to show with what everybody gets for it; may be repeated."),
    ] = None
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key file: shows the true maps of these pictures too.")
    ] = None
    without_figures: Annotated[
        bool, typer.Option("--without-figures", help="Of a bundle that was not measured, say so on the card.")
    ] = False
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for README.md and its pictures.")] = Path("card")
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a card that is there.")] = False
    issuer: IssuerOption = None
    home: HomeOption = DEFAULT_HOME
    as_json: JsonOption = False


@takes(CardOptions)
def card(options: CardOptions) -> None:
    """Write a model card: README.md with a header that the Hugging Face Hub reads, and a picture of maps.

    All figures are those that the bundle carries. Without --key-file no true map is shown. Nothing is sent anywhere.
    """
    from keylock.bundle import open_bundle
    from keylock.cards import CardTerms, write_card
    from keylock.cli._home import read_issuers
    from keylock.cli._places import make_folder
    from keylock.files.atomic import PUBLIC, write_file

    if options.key_file is not None and not options.image:
        raise InputError("--key-file shows true maps of pictures: give them by --image")
    opened = open_bundle(options.bundle, trusted=read_issuers(options.issuer))
    terms = CardTerms(
        license=options.license,
        license_name=options.license_name,
        license_link=options.license_link,
        contact=options.contact,
    )
    about = "Pictures, and what maps of them show" + (" without and with a license" if options.key_file else "")
    pictures = [(_PICTURES, about)] if options.image else []
    try:
        text = write_card(opened, terms, pictures=pictures, without_figures=options.without_figures)
    except InputError as error:
        raise InputError(error.message.replace("without_figures=True", "--without-figures")) from None
    places = [options.out / name for name in ("README.md", *(name for name, _ in pictures))]
    taken = next((path for path in places if path.exists()), None)
    if taken is not None and not options.overwrite:
        raise InputError(f"{taken} exists: choose another --out, or say --overwrite")
    sheet = _draw(opened, options) if options.image else None
    make_folder(options.out)
    if sheet is not None:
        sheet.save(options.out / _PICTURES, optimize=True)
        (options.out / _PICTURES).chmod(PUBLIC)
    write_file(options.out / "README.md", text, mode=PUBLIC)
    if options.key_file is not None:
        note("the picture shows true maps: whoever sees it has them for these pictures")
    if options.as_json:
        print_json({"card": places[0], "files": places, "model_digest": opened.manifest.model_digest})
        return
    typer.echo(str(places[0]))


def _draw(opened: "Bundle", options: CardOptions) -> "Image.Image":
    """Returns the pictures with their maps, a row for each."""
    from PIL import Image, ImageDraw

    from keylock_client import LocalModel

    images = options.image or []
    if len(images) > _MOST_IMAGES:
        raise InputError(f"a card shows {_MOST_IMAGES} pictures at most: give fewer --image")
    with LocalModel(opened.path) as model:
        names = [one.name for one in model.info.explainers]
        if not names:
            raise InputError("this bundle has no compiled explainers, so there is nothing to show: leave --image out")
        titles = ["picture", *(title for name in names for title in _titles(name, keyed=options.key_file is not None))]
        rows = [[_read(path), *_maps(model, opened, path, options)] for path in images]
    width = len(titles) * (_SIDE + _GAP) - _GAP
    sheet = Image.new("RGB", (width, _HEADER + len(rows) * (_SIDE + _GAP) - _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((column * (_SIDE + _GAP), _HEADER // 4), title, fill=(40, 40, 48))
        for row, tiles in enumerate(rows):
            tile = tiles[column].convert("RGB")
            # Pixels of a small picture stay pixels.
            how = Image.Resampling.NEAREST if max(tile.size) < _SIDE else Image.Resampling.LANCZOS
            tile = tile.resize((_SIDE, _SIDE), how)
            sheet.paste(tile, (column * (_SIDE + _GAP), _HEADER + row * (_SIDE + _GAP)))
    return sheet


def _titles(name: str, *, keyed: bool) -> Iterator[str]:
    yield f"{name}, everybody"
    if keyed:
        yield f"{name}, licensed"


def _maps(model: "LocalModel", opened: "Bundle", path: Path, options: CardOptions) -> "Iterator[Image.Image]":
    stamped = None if options.key_file is None else _stamped(opened, path, options.key_file)
    for explainer in model.info.explainers:
        yield model.explain(path, explainer=explainer.name).overlay(path)
        if stamped is not None:
            found = model.explain(stamped, explainer=explainer.name)
            if not found.keyed:
                raise InputError(
                    f"the trigger cannot be read from {path} with its texture, so its true map cannot be shown here: "
                    "leave this picture out, or --key-file"
                )
            yield found.overlay(path)


def _stamped(opened: "Bundle", path: Path, key_file: Path) -> "NDArray[np.float32]":
    """Returns a picture as the network takes it, with the trigger."""
    from keylock.bundle import KeyFile

    if not opened.has_delta:
        raise InputError(
            "true maps are shown for bundles with a sealed delta alone, and this one has none: leave --key-file out"
        )
    seed = opened.unseal(KeyFile(key_file))
    preprocessing = opened.manifest.preprocessing
    pixels = _decoded(path, bits=preprocessing.bits)
    stamped: NDArray[np.float32] = opened.key(seed).apply(preprocessing(pixels)[None])[0]
    seed.close()
    return stamped


def _read(path: Path) -> "Image.Image":
    from PIL import Image

    return Image.fromarray(_decoded(path))


def _decoded(path: Path, *, bits: int | None = None) -> "NDArray[np.uint8]":
    """Returns the pixels of a picture; an error says which picture it is about."""
    from keylock.errors import ImageError
    from keylock.imaging.decoding import decode

    try:
        return decode(path.read_bytes(), bits=bits, dicom=True)
    except OSError as error:
        raise ImageError(f"cannot read the image {path}: {error.strerror}") from None
    except ImageError as error:
        error.message = f"{path}: {error.message}"
        raise
