"""The documentation as data: pages, fenced blocks, inline code, commands."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


class Block(NamedTuple):
    """A fenced or indented block, or one span of inline code."""

    page: str
    line: int
    kind: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fenced(page: Path) -> list[Block]:
    """Fenced blocks; `kind` is the language after the fence."""
    found, lines, start = [], [], 0
    kind = None
    for number, line in enumerate(page.read_text("utf-8").splitlines(), start=1):
        fence = re.match(r"```(\w*)\s*$", line)
        if fence and kind is None:
            kind, start, lines = fence[1], number + 1, []
        elif fence:
            found.append(Block(name_of(page), start, kind, "\n".join(lines) + "\n"))
            kind = None
        elif kind is not None:
            lines.append(line)
    assert kind is None, f"a block of {page} does not end"
    return found


def prose(page: Path) -> list[tuple[int, str]]:
    """Numbered lines outside of fenced blocks."""
    inside, kept = False, []
    for number, line in enumerate(page.read_text("utf-8").splitlines(), start=1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            kept.append((number, line))
    return kept


def spans(page: Path) -> list[Block]:
    """Inline code."""
    return [
        Block(name_of(page), number, "span", text)
        for number, line in prose(page)
        for text in re.findall(r"(?<!`)`([^`]+)`(?!`)", line)
    ]


def command_lines(page: Path) -> list[Block]:
    """Lines that run keylock in fenced and indented blocks."""
    lines = [
        (block.line + offset, line)
        for block in fenced(page)
        if block.kind in {"", "console", "sh"}
        for offset, line in enumerate(block.text.splitlines())
    ]
    lines += [(number, line) for number, line in prose(page) if line.startswith("    keylock ")]
    return [
        Block(name_of(page), number, "command", line.strip().removeprefix("$ "))
        for number, line in lines
        if line.strip().removeprefix("$ ").startswith("keylock ")
    ]


def words(command: str) -> list[str]:
    """The arguments of a command line: without `keylock`, redirections, a trailing `&` and comments."""
    parts = shlex.split(command, comments=True)[1:]
    kept, skip = [], False
    for part in parts:
        if skip or part in {"<", ">", "2>"}:
            skip = not skip
        elif part != "&":
            kept.append(part)
    return kept
