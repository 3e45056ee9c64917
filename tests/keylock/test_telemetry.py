"""Nothing of keylock lets a runtime make an identifier of the machine, or send anything about it."""

import os
import subprocess
import sys

import pytest

# Where these are set, ONNX Runtime holds still by itself; OpenVINO does in continuous integration.
QUIET = ("CI", "ORT_DISABLE_TELEMETRY", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL")

PROGRAMS = {
    "server": "import keylock_server.inference.sessions",
    "export": "import keylock.export.running, onnxruntime",
    "client": "import keylock_client, onnxruntime",
    "openvino": "from keylock_server.inference.openvino_graphs import OpenVINO; OpenVINO(threads=1, runs=1)",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_an_import_leaves_nothing_in_the_home_folder(tmp_path, program):
    pytest.importorskip("openvino" if "OpenVINO" in program else "onnxruntime")
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
