"""The benchmark of serving in small: keylock and the bare session, a few calls each, on a tiny network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_keylock_is_measured_beside_the_bare_session(tmp_path):
    pytest.importorskip("torch")
    command = [sys.executable, str(ROOT / "benchmarks" / "serving" / "run.py"), "--sides", "16", "--calls", "5"]
    command += ["--rivals", "onnxruntime", "keylock", "--tasks", "predict", "grad_cam", "--concurrency", "1", "2"]
    command += ["--seconds", "0.05", "--work", str(tmp_path / "work"), "--results", str(tmp_path / "serving.json")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads((tmp_path / "serving.json").read_text("utf-8"))
    assert result["left_out"] == {}
    network = result["networks"]["16"]
    # The server's licensed maps are those of the session, which the export compared with torch.
    assert network["agreement"]["grad_cam"] == {"onnxruntime": 1.0, "keylock": pytest.approx(1.0, abs=1e-4)}
    for task in ("predict", "grad_cam"):
        for rival in ("onnxruntime", "keylock"):
            for callers, figure in network["figures"][task][rival].items():
                assert figure["calls"] * (int(callers) if rival == "onnxruntime" else 1) >= 2 * int(callers)
                assert 0 < figure["p50_ms"] <= figure["p95_ms"] <= figure["p99_ms"]
    assert min(network["start_cpu_s"].values()) > 0.1
    assert set(network["start_s"]) == set(network["rss_mb"]) == {"onnxruntime", "keylock"}
    assert min(network["rss_mb"].values()) > 10
    assert network["licensed"]["calls_each"] == 5
    assert network["workers"]["ratio"] > 0
    token = (tmp_path / "work" / "16" / "token").read_text("ascii").strip()
    assert token not in run.stdout + run.stderr + json.dumps(result)
