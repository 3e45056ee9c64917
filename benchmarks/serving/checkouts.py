"""Other builds of keylock, each in a checkout of its own, to be measured beside this one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["commit_of", "copy_home", "environment_of"]


def environment_of(tree: Path) -> dict[str, str]:
    """Return the environment in which `python -m keylock` is the one of a checkout."""
    tree = tree.resolve()
    path = os.pathsep.join(str(tree / part) for part in (".", "server", "client", "benchmarks/serving"))
    # Without the latter the package in the folder from which a program runs would come first.
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def commit_of(tree: Path) -> str:
    """Return the short name of the commit of a checkout."""
    command = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def copy_home(source: Path, home: Path, tree: Path) -> None:
    """Copy a vendor's directory, in which no runtime was chosen yet, for a build as old as what made it or newer."""
    shutil.copytree(source, home, ignore=shutil.ignore_patterns("ways.json", "engines"))
    command = [sys.executable, "-m", "keylock", "store", "migrate", "--home", str(home)]
    subprocess.run(command, check=True, env=environment_of(tree), stdout=subprocess.DEVNULL)
