"""What every command prints with: one JSON document, a table, a note; and the options that commands share.

Standard output carries the answer and nothing else, so that it can be piped; notes and errors go to standard error.
With `--json` the answer is exactly one JSON document. A command that fails prints no answer.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keylock.cli._help import CommandGroup, GroupedCommand
from keylock.cli._wording import spoken
from keylock.text.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "JsonOption",
    "new_app",
    "note",
    "note_all",
    "print_json",
    "print_pairs",
    "print_table",
    "stderr",
    "stdout",
]


class StoppedError(Exception):
    """Ctrl-C stopped a command that says what was kept and how to go on; its text is that line."""


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
"""The `--json` switch: `as_json: JsonOption = False`."""


class _App(typer.Typer):
    """A group whose commands write their help as the single ones do."""

    def command(self, name: str | None = None, *, cls: Any = GroupedCommand, **settings: Any) -> Any:  # noqa: ANN401
        """Add a command, as typer does."""
        return super().command(name, cls=cls, **settings)


def new_app(summary: str) -> typer.Typer:
    """Make a group of commands (such as `keylock license ...`) that looks like the rest of the command line.

    Args:
        summary: One line for `--help`.

    Returns:
        An app without commands; add them with `@app.command()`.
    """
    return _App(
        cls=CommandGroup,
        help=summary,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
    )


def stdout() -> "Console":
    """Return a rich console on standard output, for tables."""
    from rich.console import Console

    return Console(file=sys.stdout, markup=False, highlight=False, emoji=False, soft_wrap=True)


def stderr() -> "Console":
    """Return a rich console on standard error, for progress bars and notes."""
    from rich.console import Console

    return Console(file=sys.stderr, markup=False, highlight=False, emoji=False, soft_wrap=True)


def note(text: str) -> None:
    """Print a remark to standard error, where it does not disturb the answer.

    Args:
        text: One line, or a few; arguments that it names are called by the options of the command.
    """
    typer.echo("\n".join(printable(line) for line in spoken(text).split("\n")), err=True)


def note_all(texts: Iterable[str]) -> None:
    """Print several remarks to standard error.

    Args:
        texts: One line each.
    """
    for text in texts:
        note(f"note: {printable(text)}")


def print_json(document: object) -> None:
    """Print the one JSON document of a `--json` command.

    Args:
        document: Mappings, sequences, strings, numbers; also dataclasses, pydantic models, paths, times, decimals
            (as texts) and NumPy values. NaN and infinity are no JSON and raise `ValueError`.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    # JSON lets characters stand that terminals obey, such as the control sequence introducer of one byte, 9B.
    typer.echo("".join(one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text))


def print_pairs(pairs: Mapping[str, object] | Iterable[tuple[str, object]], *, indent: int = 0) -> None:
    """Print names and values, one pair a line, the values aligned.

    Args:
        pairs: What to print, in order. Values are printed with `str`; what does not print is escaped, because anybody
            may have written it.
        indent: Spaces before each line.
    """
    rows = list(pairs.items() if isinstance(pairs, Mapping) else pairs)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        typer.echo(f"{' ' * indent}{name:<{width}}  {printable(str(value))}".rstrip())


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table with a header line, columns two spaces apart; columns of numbers are aligned to the right.

    Args:
        header: Names of the columns.
        rows: Cells, as many in each row as there are columns. They are printed as the values of `print_pairs` are.
    """
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    columns = list(zip(header, *cells, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    numeric = [bool(cells) and all(_is_number(cell) for cell in column[1:]) for column in columns]
    for line in [list(header), *cells]:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        typer.echo("  ".join(padded).rstrip())


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%").strip())
    except ValueError:
        return False
    return True


def _plain(value: Any) -> Any:  # noqa: ANN401 - json calls this with whatever it cannot write
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Decimal):
        # As a text, because readers of JSON make binary fractions of its numbers.
        return f"{value:f}"
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    # pydantic models and NumPy arrays and scalars are recognised by their method, so that neither is imported here.
    for method, arguments in (("model_dump", {"mode": "json"}), ("tolist", {})):
        if callable(getattr(value, method, None)):
            return getattr(value, method)(**arguments)
    raise TypeError(f"{type(value).__name__} has no JSON form")
