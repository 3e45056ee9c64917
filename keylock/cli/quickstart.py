"""`keylock quickstart`: the whole story on a data set that keylock draws itself, and a report of what came out."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keylock.cli._console import JsonOption, StoppedError, print_json
from keylock.cli._figures import print_figures
from keylock.cli._program import program

if TYPE_CHECKING:
    from keylock.quickstart import Story

__all__ = ["quickstart"]


def quickstart(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for everything it makes.")] = Path(
        "quickstart"
    ),
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed of everything but the key.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Train for seconds: shows that it runs, not that it locks.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train, lock, sign, serve, license and explain, and write a report.

    Run it again and it starts anew in the same folder; secrets and licenses that are there are kept.
    """
    from keylock.cli._progress import shown_progress
    from keylock.quickstart import QUICK, RECIPE, Folder, tell, write_picture, write_report

    try:
        with shown_progress() as display:
            story = tell(
                Folder(out),
                QUICK if quick else RECIPE,
                teller=display,
                now=lambda: datetime.now(UTC),
                clock=time.monotonic,
                seed=seed,
            )
            story = replace(story, program=program())
            display.say(f"{len(story.chapters) + 1}. Write the report")
            write_picture(story)
            write_report(story)
    except KeyboardInterrupt:
        raise StoppedError("stopped; run the same command again to start anew") from None
    document = _document(story)
    story.folder.write_mark({"finished": True, **document})
    if as_json:
        print_json(document)
        return
    _print(story)


def _document(story: "Story") -> dict[str, object]:
    from keylock.quickstart import next_commands

    folder = story.folder
    return {
        "model_digest": story.manifest.model_digest,
        "key_id": story.manifest.key.id,
        "license_id": story.license.id,
        "seconds": round(story.seconds, 1),
        "precision": story.precision,
        "figures": [figure.model_dump(mode="json") for figure in story.figures],
        "chapters": [
            {"title": chapter.title, "text": chapter.text, "seconds": round(chapter.seconds, 2)}
            for chapter in story.chapters
        ],
        "versions": dict(story.versions),
        "files": {
            "bundle": str(folder.bundle),
            "license": str(folder.license),
            "report": str(folder.report),
            "picture": str(folder.picture),
            "images": str(folder.images),
        },
        "next": [command.line for command in next_commands(story)],
    }


def _print(story: "Story") -> None:
    from keylock.quickstart import next_commands

    typer.echo(f"measured on {len(story.images)} test images, keyed and keyless over gRPC, in {story.seconds:.0f} s:\n")
    print_figures(story.figures, story.explainers)
    typer.echo(f"\nreport: {story.folder.report}\nmaps:   {story.folder.picture}\n\nto go on:")
    for command in next_commands(story):
        typer.echo(f"  {command.line}")
        if command.arguments[0] == "serve":
            typer.echo("    (runs until Ctrl-C: the next two ask it from another terminal)")
