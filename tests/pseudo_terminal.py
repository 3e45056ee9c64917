"""A terminal of a given size to run commands in, in this process or in one of their own, and what they showed."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = [
    "Shown",
    "Terminal",
    "cursor_is_shown",
    "on_terminal",
    "plain",
    "run_in_terminal",
    "start_in_terminal",
    "widest",
]

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

_MARK = b"\x00"
_SIZE = ("COLUMNS", "LINES")


class Shown(NamedTuple):
    """How a command ended, its standard output, and what its standard error put on the terminal."""

    code: int
    out: str
    terminal: str


class Terminal:
    """Two ends of a pseudo-terminal: a thread reads what is shown."""

    def __init__(self, *, columns: int) -> None:
        self._far, self.near = pty.openpty()
        self.resize(columns)
        self._shown = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def resize(self, columns: int) -> None:
        """Change the size; the kernel tells the foreground processes by SIGWINCH."""
        fcntl.ioctl(self._far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        """Press keys; 0x03 is Ctrl-C."""
        os.write(self._far, keys)

    @property
    def text(self) -> str:
        """Everything shown so far, control sequences among it."""
        return bytes(self._shown).decode("utf-8", "replace")

    def wait_for(self, pattern: str, *, timeout_s: float = 30) -> None:
        """Wait until a regular expression matches what is shown without control sequences."""
        end = time.monotonic() + timeout_s
        while re.search(pattern, plain(self.text)) is None:
            assert time.monotonic() < end, f"{pattern} did not come in {self.text[-1000:]!r}"
            time.sleep(0.01)

    def catch_up(self) -> None:
        """Wait until all that was written has been read."""
        os.write(self.near, _MARK)
        while _MARK not in self._shown:
            time.sleep(0.001)
        self._shown = self._shown.replace(_MARK, b"")

    def close(self) -> None:
        """Read what is left and close both ends."""
        os.close(self.near)
        self._reader.join(timeout=10)
        os.close(self._far)

    def _read(self) -> None:
        # Linux ends with EIO when the last process has closed the near end.
        with contextlib.suppress(OSError):
            while part := os.read(self._far, 1 << 16):
                self._shown += part


def run_in_terminal(arguments: Sequence[str], *, columns: int = 80) -> Shown:
    """Run a keylock command in this process; its standard error is a terminal, its standard output is not."""
    from keylock.cli import main

    out = io.StringIO()
    terminal = Terminal(columns=columns)
    with on_terminal(terminal), contextlib.redirect_stdout(out):
        code = main(list(arguments))
    terminal.close()
    return Shown(code, out.getvalue(), terminal.text)


def start_in_terminal(command: Sequence[str], *, columns: int, **settings: object) -> tuple[subprocess.Popen, Terminal]:
    """Start a process in the foreground of a terminal, which is all three of its standard files."""
    terminal = Terminal(columns=columns)

    def control() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    near = terminal.near
    given = settings.pop("env", None) or os.environ
    settings["env"] = {name: value for name, value in given.items() if name not in _SIZE}
    process = subprocess.Popen(command, stdin=near, stdout=near, stderr=near, preexec_fn=control, **settings)
    return process, terminal


@contextlib.contextmanager
def on_terminal(terminal: Terminal) -> Iterator[None]:
    """Make a terminal that can draw standard error, and file descriptor 2 with it, of which the size is asked."""
    sys.stderr.flush()
    before = os.dup(2)
    # Where tests run side by side, a number of columns may be set that is not that of this terminal.
    size = {name: os.environ.pop(name) for name in _SIZE if name in os.environ}
    os.dup2(terminal.near, 2)
    try:
        with open(2, "w", encoding="utf-8", closefd=False) as stream, contextlib.redirect_stderr(stream):
            yield
    finally:
        os.environ.update(size)
        os.dup2(before, 2)
        os.close(before)
        terminal.catch_up()


def plain(shown: str) -> str:
    """Leave out control sequences; a line that was drawn several times comes as often."""
    return _CONTROL.sub("", shown).replace("\r\n", "\n").replace("\r", "\n")


def widest(shown: str) -> int:
    """Return the length of the longest line that was drawn, from where the cursor is hidden to where it is shown."""
    _, _, drawn = shown.rpartition("\x1b[?25h")[0].partition("\x1b[?25l")
    return max(map(len, plain(drawn or shown).split("\n")))


def cursor_is_shown(shown: str) -> bool:
    """Whether the cursor is visible in the end."""
    return shown.rfind("\x1b[?25h") >= shown.rfind("\x1b[?25l")
