"""The end of a run that writes bundles: where they are, what was measured, and how to go on."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from keylock.cli._console import print_json
from keylock.cli._figures import print_figures
from keylock.cli._home import DEFAULT_HOME
from keylock.cli._secrets import Secrets, beside

if TYPE_CHECKING:
    from keylock.pipeline import TrainOutcome

__all__ = ["bundles_for", "report_issued"]


def bundles_for(out: Path, keys: int) -> list[Path]:
    """Return where the bundles of a lock go, one for each key: `m.klb`, `m-2.klb`, `m-3.klb`."""
    return [out, *(out.with_name(f"{out.stem}-{place}{out.suffix}") for place in range(2, keys + 1))]


def report_issued(
    bundles: list[Path],
    outcomes: list["TrainOutcome"],
    secrets: list[Secrets],
    home: Path,
    *,
    as_json: bool,
    further: Mapping[str, object] | None = None,
) -> None:
    """Print what a run made: the figures, the bundles, and the commands to go on with; or one JSON document.

    Args:
        bundles: What was written.
        outcomes: What was made for each.
        secrets: The secrets of each.
        home: The vendor's directory.
        as_json: Print JSON.
        further: Further entries of the JSON document.
    """
    out, outcome = bundles[0], outcomes[0]
    manifest = outcome.manifest
    steps = _next_steps(out, secrets[0], home)
    issued = [
        {"bundle": bundle, "key_id": made.manifest.key.id, "key_seed_file": own.seed_file, "key_file": own.key_file}
        for bundle, made, own in zip(bundles, outcomes, secrets, strict=True)
    ]
    if as_json:
        print_json(
            {
                **issued[0],
                "name": manifest.name,
                "model_digest": manifest.model_digest,
                "explainers": [entry.name for entry in manifest.explainers],
                "figures": [figure.model_dump(mode="json") for figure in outcome.figures],
                "work": beside(out, "work"),
                "keys": issued,
                "next": steps,
                **(further or {}),
            }
        )
        return
    print_figures(outcome.figures, [entry.name for entry in manifest.explainers])
    typer.echo("")
    for entry in issued:
        typer.echo(f"wrote {entry['bundle']}, locked with the key {entry['key_id']}")
    typer.echo("to go on:")
    for step in steps:
        typer.echo(f"  {step}")


def _next_steps(out: Path, secrets: Secrets, home: Path) -> list[str]:
    """Return the commands to go on with, ready to be pasted."""
    at_home = [] if home == DEFAULT_HOME else ["--home", str(home)]
    opener: list[str] = []
    if secrets.key_file is not None:
        opener = ["--key-file", str(secrets.key_file)]
    elif secrets.passphrase_file is not None:
        opener = ["--key-passphrase-file", str(secrets.passphrase_file)]
    commands = (
        ["inspect", str(out)],
        ["serve", str(out), *opener, *at_home],
        ["license", "issue", "--customer", "Acme", "--bundle", str(out), "--out", "acme.license", *at_home],
        ["explain", "IMAGE", "--license-file", "acme.license", "--out", "why.png"],
    )
    return [shlex.join(["keylock", *command]) for command in commands]
