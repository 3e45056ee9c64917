"""Help of every command, and what commands print, in terminals of several kinds: as wide as these, and plain."""

import json
import os
import re
import sys

import pytest

pytest.importorskip("sqlalchemy")

from pseudo_terminal import start_in_terminal

from keylock.bundle import KeyFile, write_bundle
from keylock.cli import COMMANDS
from keylock.crypto.signing import Home
from keylock.trigger.keys import KeySeed

# Runs commands one after the other, with their answers and errors on one terminal.
PROGRAM = """
import json, sys
from keylock.cli import main
for line in json.loads(sys.argv[1]):
    print("@@", json.dumps(line), flush=True)
    print("@=", main(line), flush=True)
"""
# What each is about, the variables, the columns; and the longest line of a help, which is never as wide as 80.
TERMINALS = {
    "narrow": (60, {"TERM": "xterm-256color"}, 59),
    "wide": (200, {"TERM": "xterm-256color"}, 80),
    "no colour": (80, {"TERM": "xterm-256color", "NO_COLOR": "1"}, 79),
    "dumb": (80, {"TERM": "dumb"}, 79),
}


def every_command():
    """Yields the words of every command and every group."""
    yield []
    for row in COMMANDS:
        yield [row.name]
        for name in getattr(row.load(), "commands", {}):
            yield [row.name, name]


HELPS = [[*words, "--help"] for words in every_command()]
ORDINARY = [
    (["issuer", "show"], 0),
    (["inspect", "tiny.klb"], 0),
    (["verify", "tiny.klb"], 0),
    (["license", "issue", "--customer", "Acme", "--bundle", "tiny.klb", "--out", "acme.license"], 0),
    (["license", "list"], 0),
    (["license", "show", "acme.license"], 0),
    (["license", "verify", "acme.license"], 0),
    (["usage", "show"], 0),
    (["store", "check"], 0),
    (["key", "new", "--out", "seed"], 0),
    (["license", "show", "lic_nobody"], 5),
    (["inspect", "missing.klb"], 4),
    (["verify", "tiny.klb", "--issuer", "tiny.klb.key"], 6),
    (["receipt", "show", "tiny.klb.key"], 11),
    (["explain", "missing.png"], 3),
    (["predict"], 2),
    (["nothing"], 2),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, smallest_content):
    """A folder with a vendor's directory and a bundle."""
    folder = tmp_path_factory.mktemp("widths")
    home, seed = Home.open(folder / "home", create=True), KeySeed(bytes(32))
    sealer = KeyFile.create(folder / "tiny.klb.key")
    write_bundle(folder / "tiny.klb", smallest_content(seed), signing_key=home.signing_key(), seed=seed, sealer=sealer)
    return folder


@pytest.fixture(params=TERMINALS, scope="module")
def shown(request, place):
    """What was on the terminal of one kind: for the words of each command, its exit code and its text."""
    columns, variables, widest = TERMINALS[request.param]
    for file in ("acme.license", "seed"):
        (place / file).unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    environment |= {"KEYLOCK_HOME": str(place / "home"), "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    lines = [*HELPS, *(words for words, _ in ORDINARY)]
    command = [sys.executable, "-c", PROGRAM, json.dumps(lines)]
    process, terminal = start_in_terminal(command, columns=columns, cwd=place, env=environment)
    assert process.wait(120) == 0, terminal.text[-2000:]
    terminal.close()
    parts = re.findall(r"^@@ (.*?)\n(.*?)^@= (\d+)$", terminal.text.replace("\r\n", "\n"), re.MULTILINE | re.DOTALL)
    assert len(parts) == len(lines), terminal.text
    return widest, {tuple(json.loads(words)): (int(code), text) for words, text, code in parts}


def test_help_fits_the_terminal(shown):
    widest, texts = shown
    for words in HELPS:
        code, text = texts[tuple(words)]
        assert code == 0, text
        assert text.startswith(f"Usage: keylock {' '.join(words[:-1])}".rstrip())
        # Arguments as in manual pages, without the types and brackets that the library adds.
        assert not re.search(r"<\w+>|\{[A-Z]|\[\[", text), words
        too_long = [line for line in text.splitlines() if len(line) > widest]
        assert not too_long, words
        assert not re.search(r"[a-z.]\.\.\.$", text, re.MULTILINE), words


def test_answers_and_errors_are_plain_text_of_their_code(shown):
    _, texts = shown
    for words, code in ORDINARY:
        found, text = texts[tuple(words)]
        assert found == code, (words, text)
        assert text.strip(), words
        assert all(line.isprintable() for line in text.splitlines()), (words, text)
        assert "Traceback" not in text
        if code:
            assert len(text.splitlines()) == 1, text
            assert text.startswith("error: ")


def test_help_is_plain_text(shown):
    _, texts = shown
    for words in HELPS:
        assert all(line.isprintable() for line in texts[tuple(words)][1].splitlines()), words
