"""Reads command lines of keylock as it does, without running anything."""

from collections.abc import Sequence

import typer
from typer.main import get_command

from keylock.cli import app

__all__ = ["parse"]


def parse(arguments: Sequence[str], *, whole: bool = True) -> None:
    """Lets the real command line parse arguments; raises what it would end with.

    Args:
        arguments: What stands behind the name of the program.
        whole: Whether nothing may be missing at the end.
    """
    command, name, parent, rest = get_command(app), "keylock", None, list(arguments)
    while hasattr(command, "resolve_command"):
        if not rest and not whole:
            return
        parent = command.context_class(command, info_name=name, parent=parent)
        name, command, rest = command.resolve_command(parent, rest)
    try:
        command.make_context(name, rest, parent=parent)
    except typer.Exit:
        return
    except typer.TyperException as error:
        missing = type(error).__name__ == "MissingParameter" or "requires an argument" in error.format_message()
        if whole or not missing:
            raise
