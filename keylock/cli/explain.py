"""`keylock explain IMAGE...`: why a served model takes images for what it does, as pictures, arrays or JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._connection import (
    ImagesArgument,
    LicenseFileOption,
    ServerOption,
    TimeoutOption,
    TlsCaOption,
    TlsOption,
    connect,
    read_images,
)
from keylock.cli._console import JsonOption, note, print_json, print_table
from keylock.errors import InputError

if TYPE_CHECKING:
    from keylock_client import Explanation

__all__ = ["explain"]


def explain(
    images: ImagesArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="Where to write: overlay.png (or .jpg, .webp), map.npy, all.json; for several images a directory.",
        ),
    ] = None,
    explainer: Annotated[
        str | None, typer.Option("--explainer", "-e", help="Saliency method; the server's first if left out.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            metavar="CLASS",
            help="Label or index of the class to explain; the predicted one if left out.",
        ),
    ] = None,
    license_file: LicenseFileOption = None,
    server: ServerOption = None,
    timeout_s: TimeoutOption = None,
    tls: TlsOption = None,
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a server why: saliency maps of images. Without a license the maps are decoys."""
    files = None if out is None else _name_files(out, images)
    with connect(server=server, timeout_s=timeout_s, tls=tls, tls_ca=tls_ca, license_file=license_file) as client:
        classes = () if target is None else client.model().classes
        chosen = None if target is None else _choose_class(target, classes)
        explanations = client.explain(read_images(images), explainer=explainer, target=chosen)
    written: list[Path | None] = [None] * len(explanations)
    if files is not None:
        written = [explanation.save(file) for explanation, file in zip(explanations, files, strict=True)]
    if not all(explanation.keyed for explanation in explanations):
        note("note: no license was presented, so the maps are decoys; give one with --license-file")
    if as_json:
        print_json({"explanations": [_document(*row) for row in zip(images, explanations, written, strict=True)]})
    else:
        _print(images, explanations, written)


def _document(image: str, explanation: "Explanation", file: Path | None) -> dict[str, object]:
    return {"image": image, **explanation.to_dict(), "file": None if file is None else str(file)}


def _print(images: list[str], explanations: list["Explanation"], written: list[Path | None]) -> None:
    rows = []
    for image, explanation, file in zip(images, explanations, written, strict=True):
        seen = explanation.prediction
        kind = "keyed" if explanation.keyed else "decoy"
        rows.append(
            (
                image,
                seen.label,
                f"{seen.probability:.1%}",
                explanation.target.label,
                explanation.explainer.name,
                kind,
                *(() if file is None else (file,)),
            )
        )
    header = ("image", "label", "probability", "target", "explainer", "map")
    print_table(header if written[0] is None else (*header, "file"), rows)


def _choose_class(text: str, classes: tuple[str, ...]) -> int | str:
    """Take a number for an index, unless there is a class of that name."""
    return int(text) if text not in classes and text.isascii() and text.isdigit() else text


def _name_files(out: Path, images: list[str]) -> list[Path]:
    """Choose the file for each image, before anything is asked of the server.

    Raises:
        InputError: Several images would go to one file, or the directory cannot be made.
    """
    if len(images) == 1 and not out.is_dir() and out.suffix:
        if not out.parent.is_dir():
            raise InputError(f"cannot write {str(out)!r}: there is no directory {str(out.parent)!r}; make it first")
        return [out]
    if out.suffix and not out.is_dir():
        raise InputError(f"{str(out)!r} is one file and there are {len(images)} images: give a directory with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the directory {str(out)!r}: {error.strerror}") from None
    stems = ["stdin" if image == "-" else Path(image).stem for image in images]
    # Images of one name in several directories are told apart by their number.
    return [
        out / (f"{stem}.png" if stems.count(stem) == 1 else f"{stem}-{number}.png")
        for number, stem in enumerate(stems, start=1)
    ]
