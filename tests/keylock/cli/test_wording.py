"""Messages name arguments as Python spells them, and the command line turns them into its own options."""

import ast
from pathlib import Path

import pytest

import keylock
import keylock_client
import keylock_server
from keylock.cli import COMMANDS, main
from keylock.cli._wording import in_options, spoken, teach, use_words
from keylock.training import LockSettings

OPTIONS = {
    "license_file": ("--license-file", ""),
    "steps": ("--steps", ""),
    "resume": ("--resume", ""),
    "trained_trigger": ("--trained-trigger", ""),
    "sign": ("--sign", "--no-sign"),
    "timeout_s": ("--timeout", ""),
    "device": ("--device", ""),
}
# They write commands, which is what options are for.
COMMAND_WRITERS = {"keylock/quickstart/commands.py", "keylock/audit/service/bench.py"}


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("give one with license=", "give one with --license-file"),
        ("try steps=32, or another", "try --steps 32, or another"),
        ("try steps=32.", "try --steps 32."),
        ("leave device='cuda' out", "leave --device cuda out"),
        ("start without resume=True", "start without --resume"),
        ("add trained_trigger=True", "add --trained-trigger"),
        ("add sign=False", "add --no-sign"),
        ("add sign=True", "add --sign"),
        ("allow more time (timeout_s=)", "allow more time (--timeout)"),
        ("give device=auto, cpu or cuda", "give --device auto, cpu or cuda"),
        ("no option: other=3, a.steps=3, --steps=3, x == y", "no option: other=3, a.steps=3, --steps=3, x == y"),
        ("'steps=2.jpg' and '/data/steps=2.jpg'", "'steps=2.jpg' and '/data/steps=2.jpg'"),
    ],
)
def test_arguments_become_options(said, read):
    assert in_options(said, OPTIONS) == read


def test_every_command_speaks_in_its_own_options():
    def leaves(command):
        below = getattr(command, "commands", {}).values()
        return [leaf for one in below for leaf in leaves(one)] if below else [command]

    for row in COMMANDS:
        for command in leaves(row.load()):
            command.callback = lambda **given: None
            teach(command)
            command.callback()
            for option in command.params:
                if option.opts[0].startswith("-"):
                    assert spoken(f"give {option.name}=") == f"give {option.opts[0]}"
    use_words({})


def test_the_same_mistake_is_told_in_python_and_in_a_command(capsys, tmp_path):
    with pytest.raises(keylock.errors.InputError, match="give steps= or epochs="):
        LockSettings(steps=0)
    assert main(["train", "--steps", "0", "--out", str(tmp_path / "a.klb")]) == 3
    said = capsys.readouterr().err
    assert "--steps" in said
    assert "steps=" not in said


def _speaks(node):
    """Whether a call makes the message of an error, or of the log."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    return node.func.attr == "__init__" or getattr(node.func.value, "id", "") == "_LOG"


@pytest.mark.parametrize("package", [keylock, keylock_server, keylock_client])
def test_no_message_outside_of_the_commands_names_an_option(package):
    found = []
    root = Path(package.__file__).parent
    for path in root.rglob("*.py"):
        place = path.relative_to(root.parent).as_posix()
        if place.startswith("keylock/cli/") or place in COMMAND_WRITERS:
            continue
        tree = ast.parse(path.read_text("utf-8"))
        said = [node for node in ast.walk(tree) if isinstance(node, ast.Raise) or _speaks(node)]
        for node in (below for one in said for below in ast.walk(one)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = node.value.replace("(", " ").split()
                found += [
                    f"{place}:{node.lineno}: {word}" for word in words if word[:2] == "--" and word[2:3].isalpha()
                ]
    assert not found
