"""Links lead somewhere, and files, tests and settings that the documentation names exist."""

import re
from dataclasses import fields
from pathlib import Path

import documentation
import pytest

IDS = [documentation.name_of(page) for page in documentation.PAGES]
FOLDERS = ("keylock/", "server/", "client/", "tests/", "docs/", "benchmarks/", "proto/")


def anchors(page):
    """The anchors of a page's headings: lower case, punctuation dropped, spaces to hyphens."""
    heads = [line.lstrip("#").strip() for _, line in documentation.prose(page) if re.match(r"#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", documentation.PAGES, ids=IDS)
def test_links_resolve(page):
    for number, line in documentation.prose(page):
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", line)):
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            found = (page.parent / file).resolve() if file else page
            assert found.is_relative_to(documentation.ROOT), f"{page}:{number}: {target} leads out of the repository"
            assert found.exists(), f"{page}:{number}: there is no {target}"
            if anchor:
                assert anchor in anchors(found), f"{page}:{number}: {found.name} has no heading #{anchor}"


@pytest.mark.parametrize("page", documentation.PAGES, ids=IDS)
def test_files_and_tests_that_are_named_exist(page):
    for block in documentation.spans(page):
        if not block.text.startswith(FOLDERS) or not re.fullmatch(r"[\w./-]+(::\w+)?", block.text):
            continue
        file, _, test = block.text.partition("::")
        if not file.endswith("/") and "." not in Path(file).name:
            continue  # Names that derive keys look like paths.
        found = documentation.ROOT / file
        assert found.exists(), f"{block.place}: there is no {file}"
        if test:
            defined = re.findall(r"^(?:async )?def (test_\w+)", found.read_text("utf-8"), flags=re.MULTILINE)
            assert test in defined, f"{block.place}: {file} has no {test}"


def test_every_page_is_in_the_index():
    index = (documentation.ROOT / "docs" / "README.md").read_text("utf-8")
    for page in sorted((documentation.ROOT / "docs").rglob("*.md")):
        if page.name != "README.md":
            assert f"({page.relative_to(documentation.ROOT / 'docs').as_posix()})" in index, page


def test_decisions_are_numbered_without_a_gap():
    files = sorted((documentation.ROOT / "docs" / "decisions").glob("*.md"))
    for number, file in enumerate(files, start=1):
        assert file.name.startswith(f"{number:04}-")
        assert file.read_text("utf-8").startswith(f"# {number}. ")


def test_settings_of_the_lock_are_documented_with_their_defaults():
    from keylock.training import LockSettings

    text = (documentation.ROOT / "docs" / "training.md").read_text("utf-8")
    table = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text.partition("### Settings")[2], flags=re.MULTILINE))
    wanted = {field.name: str(field.default) for field in fields(LockSettings)}
    wanted["decoy"] = '"half"'
    found = {name: value.strip() for name, value in table.items()}
    rows = [f"| `{name}` | {value} | ... |" for name, value in wanted.items() if found.get(name) != value]
    gone = sorted(found.keys() - wanted.keys())
    assert not rows, "docs/training.md needs the rows\n" + "\n".join(rows)
    assert not gone, f"docs/training.md describes settings that are no more: {gone}"


def test_layers_are_those_that_are_checked():
    import tomllib

    checked = tomllib.loads((documentation.ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    layers = [layer for entry in checked["contracts"] if entry["type"] == "layers" for layer in entry["layers"]]
    text = (documentation.ROOT / "docs" / "architecture.md").read_text("utf-8")
    table = text.partition("## Layers")[2].partition("## ")[0]
    rows = [re.findall(r"`([\w.]+)`", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `")]
    assert rows == [re.split(r" \| ", layer) for layer in layers]
