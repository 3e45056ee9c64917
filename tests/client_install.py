"""The command line as a customer has it: none of the extras can be imported."""

import os
import subprocess
import sys

from keylock.cli import _EXTRAS

# A finder that comes first and knows of nothing but what is not there.
_PROGRAM = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(_EXTRAS)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from keylock.cli import main
sys.exit(main())
"""


def run_as_customer(*arguments, folder, environment=None):
    """Run a command without torch, ONNX Runtime, SQLAlchemy and the like; returns the finished process."""
    line = [sys.executable, "-c", _PROGRAM, *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KEYLOCK_")}
    return subprocess.run(
        line, cwd=folder, env={**kept, **(environment or {})}, capture_output=True, text=True, timeout=60
    )
