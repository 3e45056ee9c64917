"""Every command of the documentation is one that keylock has, with options that it has."""

import re

import documentation
import pytest
import typer
from command_lines import parse

from keylock.cli import COMMANDS

LINES = [block for page in documentation.PAGES for block in documentation.command_lines(page)]
SPANS = [
    block
    for page in documentation.PAGES
    for block in documentation.spans(page)
    if block.text.startswith("keylock ") and "COMMAND" not in block.text
]


def test_there_are_commands_to_check():
    assert len(LINES) > 20
    assert len(SPANS) > 10
    assert {block.text.split()[1] for block in LINES} >= {"train", "serve", "license", "explain", "verify"}


@pytest.mark.parametrize("block", LINES, ids=lambda block: f"{block.place} {block.text}")
def test_command_lines_parse(block):
    parse(documentation.words(block.text))


@pytest.mark.parametrize("block", SPANS, ids=lambda block: f"{block.place} {block.text}")
def test_commands_in_the_text_exist(block):
    parse(documentation.words(block.text), whole=False)


@pytest.mark.parametrize(
    "wrong", ["tarin", "train --sped 3", "license grant", "explain", "inspect a b", "train --steps x"]
)
def test_a_wrong_command_would_be_noticed(wrong):
    with pytest.raises(typer.TyperException):
        parse(wrong.split())


def test_options_in_the_text_exist():
    known = set(re.findall(r"--[a-z][a-z-]+", (documentation.ROOT / "Makefile").read_text("utf-8")))
    for row in COMMANDS:
        commands = [row.load()]
        commands += list(getattr(commands[0], "commands", {}).values())
        known |= {
            name for command in commands for option in command.params for name in [*option.opts, *option.secondary_opts]
        }
    known |= {"--help", "--version", "--debug"}
    # Of the programs in benchmarks.
    for program in (documentation.ROOT / "benchmarks").rglob("*.py"):
        known |= set(re.findall(r'"(--[a-z-]+)"', program.read_text("utf-8")))
    for page in documentation.PAGES:
        for block in documentation.spans(page):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", block.text):
                assert option in known, f"{block.place} names {option}, which no command has"


def test_every_option_of_train_is_described():
    text = (documentation.ROOT / "docs" / "training.md").read_text("utf-8")
    [train] = [row.load() for row in COMMANDS if row.name == "train"]
    options = {name for option in train.params for name in option.opts if name.startswith("--")} - {"--help"}
    assert [name for name in sorted(options) if f"`{name}`" not in text] == []


def test_make_targets_exist():
    makefile = (documentation.ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    named = {
        target
        for page in documentation.PAGES
        for block in [*documentation.spans(page), *documentation.fenced(page)]
        for target in re.findall(r"^make ([a-z]+)", block.text, flags=re.MULTILINE)
    }
    assert named >= {"quickstart", "test", "check"}
    assert named <= targets
