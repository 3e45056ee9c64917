"""The process of a command: how it ends where Ctrl-C comes before or after what the command itself does."""

import subprocess
import sys

_LOADED_LATE = """
import signal, sys
class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == "keylock.cli":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Pressed())
from keylock.__main__ import run
sys.exit(run())
"""
_DONE = """
import atexit, signal, sys
from keylock.__main__ import run
def press(number):
    signal.raise_signal(number)
    print("went on after", signal.Signals(number).name)
for one in (signal.SIGINT, signal.SIGTERM):
    atexit.register(press, one)
sys.argv = ["keylock", *sys.argv[1:]]
sys.exit(run())
"""


def ended(script, *arguments):
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_ctrl_c_while_the_command_line_is_loaded_shows_no_traceback():
    assert ended(_LOADED_LATE) == (130, "", "interrupted\n")


def test_signals_after_a_command_change_nothing_of_how_it_ended():
    code, out, said = ended(_DONE, "--version")
    assert (code, said) == (0, "")
    assert out.splitlines()[1:] == ["went on after SIGTERM", "went on after SIGINT"]
    code, out, said = ended(_DONE, "inspect", "no-such.klb")
    assert code == 4
    assert said.startswith("error: ")
    assert out.count("went on after") == 2


def test_ctrl_c_while_an_error_is_told_shows_no_traceback():
    script = (
        "import signal, sys; from keylock import cli\n"
        "def press(*_, **__): signal.raise_signal(signal.SIGINT)\n"
        "cli._report = press\n"
        "from keylock.__main__ import run\n"
        "sys.argv = ['keylock', 'no-such-command']\n"
        "sys.exit(run())"
    )
    assert ended(script) == (130, "", "interrupted\n")
