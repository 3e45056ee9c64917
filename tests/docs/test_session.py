"""The session of the README, command by command, with less training and on a free port."""

import os
import shlex
import signal
import subprocess
import sys
import time

import documentation
import numpy as np
import pytest
from PIL import Image

SESSION = [block.text for block in documentation.command_lines(documentation.ROOT / "README.md")]
LESS = "--steps 3 --reference-steps 3 --train-images 800 --test-images 24 --batch-size 16"


def run(command, *, folder, environment):
    line = [sys.executable, "-m", "keylock", *documentation.words(command)]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def wait_for(file, process):
    until = time.monotonic() + 120
    while not file.exists() or not file.read_text():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.1)
    return file.read_text().strip()


@pytest.mark.slow
def test_the_session_of_the_readme_works_from_the_first_command_to_the_last(tmp_path):
    names = [shlex.split(command)[1] for command in SESSION]
    assert names == ["train", "verify", "license", "serve", "predict", "explain", "explain", "license"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KEYLOCK_")}
    environment = {**kept, "KEYLOCK_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    picture = tmp_path / "quickstart" / "images" / "star.png"
    picture.parent.mkdir(parents=True)
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8))
    # Smooth, as photographs are: noise would hide the key.
    coarse.resize((32, 32), Image.Resampling.BILINEAR).save(picture)
    place = {"folder": tmp_path, "environment": environment}

    train, verify, issue, serve, *asked = SESSION
    assert "wrote shapes.klb" in run(f"{train} {LESS}", **place)
    run(verify, **place)
    run(issue, **place)
    line = [sys.executable, "-m", "keylock", *documentation.words(serve), "--port", "0", "--ready-file", "ready"]
    server = subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        environment["KEYLOCK_TARGET"] = wait_for(tmp_path / "ready", server)
        printed = [run(command, **place) for command in asked]
    finally:
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=60)
    assert server.returncode == 0, log
    assert all(printed)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("decoy.png", "why.png"))
    assert "decoy" in printed[1]
    assert "decoy" not in printed[2]
    assert "Acme Ltd" in printed[3]
