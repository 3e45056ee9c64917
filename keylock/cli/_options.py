"""Commands that take their options as one object, of whose fields the command line is made."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, TypeVar, get_type_hints

__all__ = ["takes"]

Options = TypeVar("Options")


def takes(kind: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Return a decorator for a command that is given its options as one object.

    Args:
        kind: A dataclass; each field is an option, with its annotation for typer and its default; one without a
            default is required. A field that is such a dataclass itself stands for the options of that one.
    """
    parameters = list(_parameters(kind))

    def decorate(command: Callable[[Options], None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:  # noqa: ANN401 - each option has a type of its own
            command(_filled(kind, given))

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
        return run

    return decorate


def _parameters(kind: type) -> Iterator[inspect.Parameter]:
    """Yield the options of a dataclass in their order, those of fields that are dataclasses in the places of these."""
    hints = get_type_hints(kind, include_extras=True)
    for entry in fields(kind):
        hint = hints[entry.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _parameters(hint)
        else:
            default = inspect.Parameter.empty if entry.default is MISSING else entry.default
            yield inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _filled(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """Return a dataclass of these options, which are given by their names, with the dataclasses that it has."""
    values = {
        name: _filled(hint, given) if isinstance(hint, type) and is_dataclass(hint) else given[name]
        for name, hint in get_type_hints(kind).items()
    }
    return kind(**values)
