"""docs/dependencies.md names what pyproject.toml asks for, no more and no less, with a reason and a licence."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SECTIONS = re.split(r"^## ", (ROOT / "docs" / "dependencies.md").read_text("utf-8"), flags=re.MULTILINE)[1:]


def normal(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def declared():
    extras = PROJECT["project"]["optional-dependencies"]
    groups = {"Base": PROJECT["project"]["dependencies"], **extras}
    return {name: sorted({normal(entry) for entry in entries} - {"keylock"}) for name, entries in groups.items()}


def documented():
    tables = {}
    for section in SECTIONS:
        name = re.match(r"`?([A-Za-z0-9-]+)", section)[1]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
        tables[name] = {normal(row[0]): row for row in rows[2:]}
    return tables


@pytest.mark.parametrize("group", declared())
def test_every_group_of_dependencies_is_documented(group):
    assert sorted(documented()[group]) == declared()[group]


def test_tools_are_those_of_the_build_and_of_the_stubs():
    script = (ROOT / "proto" / "generate.sh").read_text("utf-8")
    generators = re.findall(r"'([a-z-]+)==[0-9.]+'", script)
    build = [normal(entry) for entry in PROJECT["build-system"]["requires"]]
    assert sorted(documented()["Tools"]) == sorted([*generators, *build])


def test_every_dependency_has_a_reason_and_a_licence():
    rows = [row for table in documented().values() for row in table.values()]
    assert len(rows) > 20
    for row in rows:
        assert len(row) == 3, row
        assert all(row), row


def test_licences_are_those_the_packages_state():
    seen = 0
    for table in documented().values():
        for name, row in table.items():
            try:
                metadata = importlib.metadata.metadata(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            stated = metadata.get("License-Expression")
            if stated:
                seen += 1
                families = {word for word in re.findall(r"[A-Z][A-Za-z0-9.-]+", row[2]) if word not in {"Linux"}}
                assert families & set(re.findall(r"[A-Za-z0-9.-]+", stated)), (name, row[2], stated)
    assert seen > 10


def test_the_licence_of_the_project_is_the_one_it_states():
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in text.splitlines()[1]
    assert "END OF TERMS AND CONDITIONS" in text
