"""Nothing of keylock lets ONNX Runtime make an identifier of the machine, or send anything about it."""

import os
import subprocess
import sys

import pytest

# Where these are set, ONNX Runtime holds still by itself.
QUIET = ("CI", "ORT_DISABLE_TELEMETRY")

PROGRAMS = {
    "server": "import keylock_server.inference.sessions",
    "export": "import keylock.export.running, onnxruntime",
    "client": "import keylock_client, onnxruntime",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_an_import_leaves_nothing_in_the_home_folder(tmp_path, program):
    pytest.importorskip("onnxruntime")
    kept = {name: value for name, value in os.environ.items() if name not in QUIET and not name.startswith("XDG_")}
    run = subprocess.run([sys.executable, "-c", program], env=kept | {"HOME": str(tmp_path)}, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.rglob("*")) == []


def test_whoever_wants_to_send_it_may(tmp_path):
    program = "import os, keylock; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    run = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"ORT_DISABLE_TELEMETRY": "0"}, capture_output=True, text=True
    )
    assert run.stdout.strip() == "0"
