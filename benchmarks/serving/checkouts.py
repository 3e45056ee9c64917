"""Other builds of keylock, each in a checkout of its own, to be measured beside this one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["commit_of", "environment_of", "make_home"]


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


def make_home(source: Path, home: Path, tree: Path) -> str:
    """Make a vendor's directory for a build: the keys of another, and a store of the schema that the build works with.

    Returns:
        The token of a license without limits.
    """
    shutil.copytree(source, home, ignore=shutil.ignore_patterns("licenses.db*", "ways.json", "engines"))
    command = [sys.executable, "-m", "keylock", "license", "issue", "--customer", "benchmark", "--model", "*"]
    command += ["--home", str(home), "--json"]
    told = subprocess.run(command, check=True, env=environment_of(tree), capture_output=True, text=True).stdout
    return str(json.loads(told)["token"])
