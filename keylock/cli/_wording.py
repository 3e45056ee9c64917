"""Messages of the library in the words of the command line.

The library names an argument as Python spells it, with an equals sign and perhaps a value: `license=`, `steps=500`,
`trained_trigger=True`, `prediction='keyed'`. Whoever has typed a command does not know these names, so whatever is
printed to them has the options of that command in their place: `--license-file`, `--steps 500`, `--trained-trigger`,
`--prediction keyed`. What the command has no option for stays as it is.
"""

import functools
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

__all__ = ["in_options", "spoken", "teach", "use_words"]

# Arguments whose option has another name: a secret is never an argument of a command, the client has its own `Tls` and
# its own `Credentials`, and two settings of a server are longer than their options.
_OTHER_NAMES = {
    "license": "license_file",
    "ca": "tls_ca",
    "key": "credentials_key",
    "issuers": "issuer",
    "unlicensed_explanations": "unlicensed",
}
_ARGUMENT = re.compile(r"(?<![\w.=/'\"-])([a-z][a-z0-9_]*)=('[^'\n]*'|(?:[A-Za-z0-9_./-]*[A-Za-z0-9_/])?)(?!=)")

_words: ContextVar[Mapping[str, tuple[str, str]]] = ContextVar("words", default=MappingProxyType({}))


def in_options(text: str, options: Mapping[str, tuple[str, str]]) -> str:
    """Return a message with arguments called by the options of a command.

    Args:
        text: A message of the library.
        options: By the name of the argument: the option, and the option that switches it off, or that takes a value
            where the second is empty.
    """

    def rename(match: re.Match[str]) -> str:
        name, value = match[1], match[2].strip("'")
        found = options.get(_OTHER_NAMES.get(name, name)) or options.get(name)
        if found is None:
            return match[0]
        on, off = found
        if value in ("True", "False"):
            return on if value == "True" or not off else off
        return f"{on} {value}" if value else on

    return _ARGUMENT.sub(rename, text)


def spoken(text: str) -> str:
    """Return a message in the words of the command that runs."""
    return in_options(text, _words.get())


def use_words(options: Mapping[str, tuple[str, str]]) -> None:
    """Speak in these options from now on, in this context."""
    _words.set(options)


def teach(command: Any) -> None:  # noqa: ANN401 - typer exports no name for the class of its commands
    """Let a command, and all commands of a group, speak in its own options as soon as it runs."""
    for one in getattr(command, "commands", {}).values():
        teach(one)
    callback: Callable[..., Any] | None = command.callback
    # Options begin with dashes; what stands at a place of its own has no such name.
    options = {
        one.name: (one.opts[0], one.secondary_opts[0] if one.secondary_opts else "")
        for one in command.params
        if one.opts[0].startswith("-")
    }
    if callback is None:
        return

    @functools.wraps(callback)
    def run(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - those of the command
        use_words(options)
        return callback(*arguments, **named)

    command.callback = run
