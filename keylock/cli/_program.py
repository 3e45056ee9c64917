"""What to type for `keylock` here, so that a command that is printed can be pasted."""

import shlex
import shutil
import sys
from pathlib import Path

__all__ = ["command_line", "program"]


def program() -> str:
    """Returns `keylock` where the shell finds this one by that name; otherwise its path, or a call of the interpreter.

    `make quickstart` runs `.venv/bin/keylock`, which is on nobody's path until the environment is activated.
    """
    script = Path(sys.executable).with_name("keylock")
    found = shutil.which("keylock")
    if found is not None and (not script.exists() or Path(found).samefile(script)):
        return "keylock"
    if not script.exists():
        return f"{_from_here(Path(sys.executable))} -m keylock"
    return _from_here(script)


def command_line(arguments: "list[str] | tuple[str, ...]") -> str:
    """Returns a command of keylock as it is typed here."""
    return f"{program()} {shlex.join(arguments)}"


def _from_here(path: Path) -> str:
    """Returns a path as it is typed: from the current folder where it is below that."""
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return shlex.quote(str(shown))
