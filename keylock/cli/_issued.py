"""A run that writes bundles: how it is started, where they are, what was measured, and how to go on."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

from keylock.cli._console import print_json
from keylock.cli._figures import print_figures
from keylock.cli._home import DEFAULT_HOME
from keylock.cli._program import command_line
from keylock.cli._secrets import Secrets, beside

if TYPE_CHECKING:
    from collections.abc import Callable

    from keylock.pipeline import Issue, TrainOutcome
    from keylock.training import Progress

__all__ = ["bundles_for", "report_issued", "run_issuing"]


class _Run(Protocol):
    """A run of the pipeline that writes a bundle for each key, with all but these arguments given."""

    def __call__(
        self, *, issues: "Sequence[Issue]", progress: "Progress", now: "Callable[[], datetime]"
    ) -> "list[TrainOutcome]": ...


def bundles_for(out: Path, keys: int) -> list[Path]:
    """Return where the bundles of a lock go, one for each key: `m.klb`, `m-2.klb`, `m-3.klb`."""
    return [out, *(out.with_name(f"{out.stem}-{place}{out.suffix}") for place in range(2, keys + 1))]


def run_issuing(run: _Run, bundles: list[Path], secrets: list[Secrets], *, work: Path) -> "list[TrainOutcome]":
    """Run what writes bundles, with its progress shown; Ctrl-C says how to go on.

    Args:
        run: What writes them.
        bundles: Where each goes.
        secrets: The secrets of each.
        work: The folder the run keeps its state in.

    Returns:
        What was made for each.
    """
    from keylock.cli._progress import resumable_progress
    from keylock.pipeline import Issue

    issues = [Issue(secret.seed, secret.sealer, bundle) for secret, bundle in zip(secrets, bundles, strict=True)]
    with resumable_progress(work) as progress:
        return run(issues=issues, progress=progress, now=lambda: datetime.now(UTC))


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
    return [command_line(command) for command in commands]
