"""`keylock explain IMAGE...`: why a served model takes images for what it does, as pictures, arrays or JSON."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from keylock.cli._progress import counted
from keylock.errors import InputError, KeylockError

if TYPE_CHECKING:
    from keylock_client import Client, Explanation

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
    # What is shown, and not the explanations themselves: there may be thousands, and each keeps its image.
    shown: dict[int, Any] = {}
    failures: list[KeylockError] = []
    decoys = False
    with connect(server=server, timeout_s=timeout_s, tls=tls, tls_ca=tls_ca, license_file=license_file) as client:
        classes = () if target is None else client.model().classes
        chosen = None if target is None else _choose_class(target, classes)
        for number, explanation in _ask(client, images, failures, explainer=explainer, target=chosen):
            file = None if files is None else explanation.save(files[number])
            show = _document if as_json else _describe
            shown[number] = show(images[number], explanation, file)
            decoys = decoys or not explanation.keyed
    if decoys:
        note("note: no license was presented, so the maps are decoys; give one with --license-file")
    rows = [shown[number] for number in sorted(shown)]
    if as_json:
        print_json({"explanations": rows})
    elif rows:
        header = ("image", "label", "probability", "target", "explainer", "map")
        print_table(header if files is None else (*header, "file"), rows)
    for failure in failures[1:]:
        note(f"error: {failure}")
    if failures:
        raise failures[0]


def _ask(
    client: "Client",
    images: list[str],
    failures: list[KeylockError],
    *,
    explainer: str | None,
    target: int | str | None,
) -> Iterator[tuple[int, "Explanation"]]:
    """Ask for one image, or over a stream for several, so that what is wrong with one of them fails that one alone.

    Args:
        client: Asks.
        images: The arguments.
        failures: Gets the errors of images that were not explained.
        explainer: Name of the saliency method.
        target: The class to explain.

    Yields:
        The place of an image, and its explanation, as they are ready.
    """
    given = read_images(images)
    if len(given) == 1:
        yield 0, client.explain(given[0], explainer=explainer, target=target)
        return
    with counted(len(given), "explain") as advance:
        for result in client.explain_many(given, explainer=explainer, target=target):
            if result.error is None:
                yield result.number, result.explanation
            else:
                failures.append(_name(result.error, images[result.number]))
            advance()


def _name(error: KeylockError, image: str) -> KeylockError:
    """Return an error whose message says which image it is about."""
    if image not in error.message:
        error.message = f"{image}: {error.message}"
        error.args = (error.message,)
    return error


def _document(image: str, explanation: "Explanation", file: Path | None) -> dict[str, object]:
    return {"image": image, **explanation.to_dict(), "file": None if file is None else str(file)}


def _describe(image: str, explanation: "Explanation", file: Path | None) -> tuple[object, ...]:
    seen = explanation.prediction
    row = (
        image,
        seen.label,
        f"{seen.probability:.1%}",
        explanation.target.label,
        explanation.explainer.name,
        "keyed" if explanation.keyed else "decoy",
    )
    return row if file is None else (*row, file)


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
