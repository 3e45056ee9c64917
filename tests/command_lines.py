"""Reads a command line of keylock as the command does, without running anything."""

from collections.abc import Sequence

from typer.main import get_command

from keylock.cli import app

__all__ = ["parse"]


def parse(arguments: Sequence[str]) -> None:
    """Raises what the command would end with, where there is no such command, option or argument."""
    command, name, parent, rest = get_command(app), "keylock", None, list(arguments)
    while hasattr(command, "resolve_command"):
        parent = command.context_class(command, info_name=name, parent=parent)
        name, command, rest = command.resolve_command(parent, rest)
    command.make_context(name, rest, parent=parent)
