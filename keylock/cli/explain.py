"""`keylock explain IMAGE...`: why a served model takes images for what it does, as pictures, arrays or JSON."""

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keylock.cli._connection import (
    BitsOption,
    ExplainIfOption,
    ImagesArgument,
    LicenseFileOption,
    MaxUnitsOption,
    ServerOption,
    TimeoutOption,
    TlsCaOption,
    TlsOption,
    connect,
    name_image,
    read_images,
)
from keylock.cli._console import JsonOption, note, print_json, print_table
from keylock.cli._home import IssuerOption, read_issuers
from keylock.cli._options import takes
from keylock.cli._progress import counted_while_taken
from keylock.cli._several import raise_first, what_was_reached
from keylock.errors import InputError, KeylockError, ReceiptError
from keylock.files.atomic import make_folders

if TYPE_CHECKING:
    from keylock_client import Client, Explanation, LocalModel
    from keylock_client.credentials import Credentials

__all__ = ["explain"]


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """What `keylock explain` was told; the help says what each is."""

    images: ImagesArgument
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="Where to write: overlay.png (or .jpg, .webp), map.npy, all.json; for several images a directory.",
        ),
    ] = None
    explainer: Annotated[
        str | None,
        typer.Option("--explainer", "-e", metavar="NAME", help="Saliency method; the server's first if left out."),
    ] = None
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            metavar="CLASS",
            help="Label or index of the class to explain, for which servers want a license; else the predicted one.",
        ),
    ] = None
    receipt: Annotated[
        Path | None,
        typer.Option(
            "--receipt",
            metavar="PATH",
            help="Where to save receipts: a file cat.receipt, a directory for several.",
        ),
    ] = None
    credentials: Annotated[
        Path | None,
        typer.Option(
            "--credentials",
            metavar="CERT",
            help="Sign overlays with content credentials (C2PA): the certificate as PEM, with its private key.",
        ),
    ] = None
    credentials_key: Annotated[
        Path | None,
        typer.Option(
            "--credentials-key", metavar="FILE", help="Its private key as PEM, where that is in another file."
        ),
    ] = None
    prediction: Annotated[
        str,
        typer.Option(
            "--prediction",
            metavar="public|keyed",
            help="The prediction to show: the one that everybody gets, or that of the network with the key.",
        ),
    ] = "public"
    explain_if: ExplainIfOption = None
    max_units: MaxUnitsOption = None
    bits: BitsOption = None
    local: Annotated[
        Path | None,
        typer.Option(
            "--local",
            metavar="BUNDLE",
            help="Explain here, with this bundle and no server: true maps for images with the trigger.",
        ),
    ] = None
    issuer: IssuerOption = None
    license_file: LicenseFileOption = None
    server: ServerOption = None
    timeout_s: TimeoutOption = None
    tls: TlsOption = None
    tls_ca: TlsCaOption = None
    as_json: JsonOption = False


@takes(ExplainOptions)
def explain(options: ExplainOptions) -> None:
    """Ask a server why: saliency maps of images. Without a license the maps are decoys.

    With --local no server is asked: an image that carries the trigger, as keylock stamp puts it there, is explained
    truly by any copy of the bundle, and every other one gets a decoy. With --issuer the bundle must be the vendor's.

    What is wrong with one of several images does not stop the others; the exit code is then that of the first error.
    """
    images, out, receipt = options.images, options.out, options.receipt
    credentials = _load_credentials(options)
    if options.local is not None:
        _check_local(options)
    elif options.issuer:
        raise InputError("--issuer says who must have signed a bundle: give the bundle with --local")
    files = None if out is None else _name_files(out, images, option="--out", suffix=".png")
    if credentials is not None:
        from keylock_client.credentials import check_suffix

        for name in files or ():
            check_suffix(name)
    receipts = None if receipt is None else _name_files(receipt, images, option="--receipt", suffix=".receipt")
    # What is shown, and not the explanations themselves: there may be thousands, and each keeps its image.
    shown: dict[int, Any] = {}
    failures: list[KeylockError] = []
    decoys, explained = False, 0
    with _asked(options, failures) as found, what_was_reached(images, shown, failures, "explained") as stopped:
        for number, explanation in found:
            if receipts is not None:
                _save_receipt(explanation, receipts[number], images[number], failures)
            file = None if files is None else _save(explanation, files[number], credentials)
            image = images[number]
            shown[number] = (
                _document(image, explanation, file)
                if options.as_json
                else _describe(image, explanation, file, saved=files is not None)
            )
            explained += explanation.explained
            decoys = decoys or (explanation.explained and not explanation.keyed)
    if decoys and options.local is None:
        note("note: no license was presented, so the maps are decoys; give one with --license-file")
    elif decoys:
        note(
            "note: no trigger was read from some of the images, so their maps are decoys; a stamped picture must not "
            "be resized or compressed"
        )
    if options.explain_if is not None:
        others = "; the others do not meet the condition" if explained < len(shown) else ""
        note(f"note: {explained} of {len(shown)} images were explained{others}")
    rows = [shown[number] for number in sorted(shown)]
    if options.as_json:
        print_json({"explanations": rows})
    elif rows:
        probability = "keyed probability" if options.prediction == "keyed" else "probability"
        header = ("image", "label", probability, "target", "explainer", "map")
        print_table(header if files is None else (*header, "file"), rows)
    raise_first([*stopped, *failures])


def _load_credentials(options: ExplainOptions) -> "Credentials | None":
    """Return what signs overlays, tried on a picture of one pixel before anything is asked of a server."""
    if options.credentials is None:
        if options.credentials_key is not None:
            raise InputError("--credentials-key is the key of a certificate: give the certificate with --credentials")
        return None
    if options.out is None:
        raise InputError("--credentials sign overlays: say where to write them with --out")
    from keylock_client.credentials import Credentials

    return Credentials.load(options.credentials, options.credentials_key)


def _check_local(options: ExplainOptions) -> None:
    """Refuse options that are for a server."""
    for_servers = {
        "--license-file": options.license_file,
        "--server": options.server,
        "--timeout": options.timeout_s,
        "--tls": options.tls,
        "--tls-ca": options.tls_ca,
        "--receipt": options.receipt,
        "--explain-if": options.explain_if,
        "--max-units": options.max_units,
        "--prediction keyed": None if options.prediction == "public" else options.prediction,
    }
    given = [name for name, value in for_servers.items() if value is not None]
    if given:
        raise InputError(f"--local asks no server: leave out {', '.join(given)}")


@contextmanager
def _asked(options: ExplainOptions, failures: list[KeylockError]) -> "Iterator[Iterator[tuple[int, Explanation]]]":
    """Yield the explanations that `_ask` or `_ask_locally` yields, with the server or the bundle open meanwhile."""
    asked: dict[str, Any] = {"explainer": options.explainer, "bits": options.bits}
    if options.local is None:
        with connect(
            server=options.server,
            timeout_s=options.timeout_s,
            tls=options.tls,
            tls_ca=options.tls_ca,
            license_file=options.license_file,
        ) as client:
            target = None if options.target is None else _choose_class(options.target, client.model().classes)
            asked |= {"target": target, "prediction": options.prediction, "explain_if": options.explain_if}
            asked["max_units"] = options.max_units
            with closing(_ask(client, options.images, failures, asked)) as found:
                yield found
    else:
        from keylock_client import LocalModel

        with LocalModel(options.local, issuer=read_issuers(options.issuer)) as model:
            target = None if options.target is None else _choose_class(options.target, model.info.classes)
            with closing(_ask_locally(model, options.images, failures, asked | {"target": target})) as found:
                yield found


def _ask(
    client: "Client", images: list[str], failures: list[KeylockError], asked: dict[str, Any]
) -> Generator[tuple[int, "Explanation"]]:
    """Ask for one image, or over a stream for several, so that what is wrong with one of them fails that one alone.

    Args:
        client: Asks.
        images: The arguments.
        failures: Gets the errors of images that were not explained.
        asked: What is asked for: options of `Client.explain`.

    Yields:
        The place of an image, and its explanation, as they are ready.
    """
    given = read_images(images)
    if len(given) == 1:
        yield 0, client.explain(given[0], **asked)
        return
    # What was sent is waited for at Ctrl-C: the server charges just before it answers.
    with counted_while_taken(given, "explain") as (taken, advance):
        for result in client.explain_many(taken, **asked):
            if result.error is None:
                yield result.number, result.explanation
            else:
                failures.append(name_image(result.error, images[result.number]))
            advance()


def _ask_locally(
    model: "LocalModel", images: list[str], failures: list[KeylockError], asked: dict[str, Any]
) -> Generator[tuple[int, "Explanation"]]:
    """Explain one image, or each of several, with a bundle; the arguments are those of `_ask`."""
    given = read_images(images)
    if len(given) == 1:
        yield 0, model.explain(given[0], **asked)
        return
    with counted_while_taken(given, "explain") as (taken, advance):
        for number, image in enumerate(taken):
            try:
                yield number, model.explain(image, **asked)
            except KeylockError as error:
                failures.append(name_image(error, images[number]))
            advance()


def _save_receipt(explanation: "Explanation", file: Path, image: str, failures: list[KeylockError]) -> None:
    """Save the receipt of an explanation; where there is none, that is a failure of its own."""
    if explanation.receipt is not None:
        explanation.receipt.save(file)
        return
    why = "the server signs none" if explanation.keyed else "there is none for a decoy"
    failures.append(ReceiptError(f"no receipt was saved for {image}: {why}"))


def _save(explanation: "Explanation", file: Path, credentials: "Credentials | None") -> Path | None:
    """Save an explanation; what was not explained has no picture and no map, but its prediction as JSON."""
    if not explanation.explained and file.suffix.lower() != ".json":
        return None
    return explanation.save(file, credentials=credentials)


def _document(image: str, explanation: "Explanation", file: Path | None) -> dict[str, object]:
    return {"image": image, **explanation.to_dict(), "file": None if file is None else str(file)}


def _describe(image: str, explanation: "Explanation", file: Path | None, *, saved: bool) -> tuple[object, ...]:
    seen = explanation.prediction
    row = (
        image,
        seen.label,
        f"{seen.probability:.1%}",
        explanation.target.label if explanation.explained else "-",
        explanation.explainer.name if explanation.explained else "-",
        ("keyed" if explanation.keyed else "decoy") if explanation.explained else "none",
    )
    return (*row, "-" if file is None else file) if saved else row


def _choose_class(text: str, classes: tuple[str, ...]) -> int | str:
    """Take a number for an index, unless there is a class of that name."""
    return int(text) if text not in classes and text.isascii() and text.isdigit() else text


def _name_files(given: Path, images: list[str], *, option: str, suffix: str) -> list[Path]:
    """Choose the file for each image, before anything is asked of the server.

    Args:
        given: What the option says: a file for one image, a directory for several.
        images: The arguments.
        option: Its name, for errors.
        suffix: Of the files in a directory.

    Raises:
        InputError: Several images would go to one file, or the directory cannot be made.
    """
    if not given.is_dir() and given.suffix:
        if len(images) > 1:
            raise InputError(
                f"{str(given)!r} is one file and there are {len(images)} images: give a directory with {option}"
            )
        if not given.parent.is_dir():
            raise InputError(f"cannot write {str(given)!r}: there is no directory {str(given.parent)!r}; make it first")
        return [given]
    try:
        make_folders(given)
    except OSError as error:
        raise InputError(f"cannot make the directory {str(given)!r}: {error.strerror}") from None
    stems = ["stdin" if image == "-" else Path(image).stem for image in images]
    taken = {stem for stem in stems if stems.count(stem) == 1}
    names = []
    for number, stem in enumerate(stems, start=1):
        # Images of one name in several directories are told apart by their number.
        name = stem if stem in taken else f"{stem}-{number}"
        while name != stem and name in taken:
            name += "-"
        taken.add(name)
        names.append(name)
    return [given / f"{name}{suffix}" for name in names]
