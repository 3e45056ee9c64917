"""Commands that are printed can be pasted, whether the environment is activated or not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from keylock.cli._program import command_line, program


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An environment in `.venv` with a script `keylock`; the shell is below its folder and finds nothing else."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    script = folder / "keylock"
    script.write_text('#!/bin/sh\necho "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return script


def run(line):
    return subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout  # noqa: S602


def test_what_no_path_leads_to_is_named_by_its_path(installed):
    assert program() == ".venv/bin/keylock"
    assert run(command_line(["inspect", "a b.klb"])) == "inspect a b.klb\n"


def test_an_activated_environment_is_named_shortly(installed, monkeypatch):
    monkeypatch.setenv("PATH", f"{installed.parent}:/usr/bin:/bin")
    assert program() == "keylock"
    assert run(command_line(["inspect", "a.klb"])) == "inspect a.klb\n"


def test_another_keylock_on_the_path_is_not_meant(installed, monkeypatch, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(installed, other / "keylock")
    monkeypatch.setenv("PATH", f"{other}:/usr/bin:/bin")
    assert program() == ".venv/bin/keylock"


def test_from_elsewhere_the_whole_path_is_given(installed, monkeypatch):
    monkeypatch.chdir("/")
    assert Path(program()).is_absolute() or program().startswith(str(installed.parents[2]).lstrip("/"))
    assert run(command_line(["x"])) == "x\n"


def test_without_a_script_the_interpreter_is_called(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my env" / "python"))
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.chdir(tmp_path)
    assert program() == "'my env/python' -m keylock"
