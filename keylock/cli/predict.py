"""`keylock predict IMAGE...`: what a served model takes images for. Needs no license."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._connection import (
    BitsOption,
    ImagesArgument,
    LicenseFileOption,
    ServerOption,
    TimeoutOption,
    TlsCaOption,
    TlsOption,
    connect,
    name_image,
    read_images,
)
from keylock.cli._console import JsonOption, print_json, print_table
from keylock.cli._progress import counted
from keylock.cli._several import raise_first, what_was_reached
from keylock.errors import InputError, KeylockError

if TYPE_CHECKING:
    from collections.abc import Callable

    from keylock_client import Prediction

__all__ = ["predict"]

# As many as the client sends in one request.
_TOGETHER = 16


def predict(
    images: ImagesArgument,
    bits: BitsOption = None,
    labels_only: Annotated[
        bool, typer.Option("--labels-only", help="Ask for labels alone, of which servers give more for near copies.")
    ] = False,
    license_file: LicenseFileOption = None,
    server: ServerOption = None,
    timeout_s: TimeoutOption = None,
    tls: TlsOption = None,
    tls_ca: TlsCaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a server to classify images. Predictions need no license.

    One for similar queries is shown to a server that refuses near copies of a picture without it.

    What is wrong with one of several images does not stop the others; the exit code is then that of the first error.
    """
    given = read_images(images)
    answers: dict[int, Prediction | str] = {}
    failures: list[KeylockError] = []
    with (
        connect(server=server, timeout_s=timeout_s, tls=tls, tls_ca=tls_ca, license_file=license_file) as client,
        what_was_reached(images, answers, failures, "predicted") as stopped,
        counted(len(given), "predict") as advance,
    ):
        for first in range(0, len(given), _TOGETHER):
            places = list(range(first, min(first + _TOGETHER, len(given))))
            for place, answer in _ask(client.label if labels_only else client.predict, given, places, bits):
                if isinstance(answer, KeylockError):
                    failures.append(answer if len(given) == 1 else name_image(answer, images[place]))
                else:
                    answers[place] = answer
                advance()
    if as_json and (answers or not failures):
        print_json({"predictions": [{"image": images[place], **_document(one)} for place, one in answers.items()]})
    elif answers:
        header = ("image", "label") if labels_only else ("image", "label", "probability")
        print_table(header, [(images[place], *_describe(one)) for place, one in answers.items()])
    raise_first([*stopped, *failures])


def _document(answer: "Prediction | str") -> dict[str, object]:
    return {"label": answer} if isinstance(answer, str) else answer.to_dict()


def _describe(answer: "Prediction | str") -> tuple[str, ...]:
    return (answer,) if isinstance(answer, str) else (answer.label, f"{answer.probability:.1%}")


def _ask(
    ask: "Callable[..., list[Prediction] | list[str]]", given: list[str | bytes], places: list[int], bits: int | None
) -> "Iterator[tuple[int, Prediction | str | KeylockError]]":
    """Ask for some images together; where one of them is refused, for each half by itself, so that the others go on.

    Args:
        ask: Asks for a list of images.
        given: All images.
        places: Which of them to ask for, at least one.
        bits: How many bits the values have of images with more than eight.

    Yields:
        The place of each image, in order, and its prediction or what is wrong with it.

    Raises:
        KeylockError: What concerns all images, such as a server that is away.
    """
    from keylock_client import RequestRefusedError, SimilarQueriesError

    try:
        yield from zip(places, ask([given[place] for place in places], bits=bits), strict=True)
    except (InputError, RequestRefusedError, SimilarQueriesError) as error:
        if len(places) == 1:
            yield places[0], error
            return
        half = len(places) // 2
        yield from _ask(ask, given, places[:half], bits)
        yield from _ask(ask, given, places[half:], bits)
