"""The tests of `workers_alone.py`, in a process of their own.

Torch takes no gradients in a copy of a process that had several of its threads take some, as other tests do. Then an
audit does everything itself, and nothing would be seen of what is tested there.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
def test_several_processes_share_an_audit():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        [*command, str(HERE / "workers_alone.py")],
        capture_output=True,
        text=True,
        cwd=HERE.parents[2],
        env=environment,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
