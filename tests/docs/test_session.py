"""The session of the README as it is pasted into two shells, with less training and on a free port."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import documentation
import numpy as np
import pytest
from PIL import Image

README = documentation.fenced(documentation.ROOT / "README.md")
LESS = "--steps 3 --reference-steps 3 --train-images 800 --test-images 24 --batch-size 16"
ACTIVATE = Path(sys.prefix) / "bin" / "activate"


def checkout(folder):
    """What `make quickstart` leaves and the session uses: the environment and an image."""
    (folder / ".venv").symlink_to(sys.prefix)
    picture = folder / "quickstart" / "images" / "star.png"
    picture.parent.mkdir(parents=True)
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8))
    # Smooth, as photographs are: noise would hide the key.
    coarse.resize((32, 32), Image.Resampling.BILINEAR).save(picture)


def shell_of(folder):
    """The variables of a shell in which `keylock` was not made known."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KEYLOCK_", "VIRTUAL_ENV"))}
    here = str(ACTIVATE.parent)
    path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if Path(part).resolve() != Path(here))
    return {**kept, "PATH": path, "HOME": str(folder / "home-of-user"), "OMP_NUM_THREADS": "1"}


def paste(text, *, folder, environment):
    """Start a shell that runs lines as if they were pasted, and ends at the first that fails."""
    # What is pasted is run line by line; the last one takes the place of the shell, so that it gets the signals.
    *lines, last = text.strip().splitlines()
    script = "\n".join([*lines, f"exec {last}"])
    return subprocess.Popen(
        ["bash", "-e", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(file, process):
    until = time.monotonic() + 900
    while not file.exists() or not file.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    return file.read_text().strip()


@pytest.mark.slow
@pytest.mark.skipif(not ACTIVATE.is_file() or shutil.which("bash") is None, reason="needs an environment, and bash")
def test_the_session_of_the_readme_works_as_it_is_pasted(tmp_path):
    vendor, customer, stamped = (block.text for block in README if block.kind == "sh")
    [python] = (block.text for block in README if block.kind == "python")
    checkout(tmp_path)
    place = {"folder": tmp_path, "environment": shell_of(tmp_path)}
    train, serve = (line for line in vendor.splitlines() if line.startswith(("keylock train", "keylock serve")))
    vendor = vendor.replace(train, f"{train} {LESS}").replace(serve, f"{serve} --port 0 --ready-file ready")

    server = paste(vendor, **place)
    try:
        address = wait_for(tmp_path / "ready", server)
        asking = place | {"environment": place["environment"] | {"KEYLOCK_TARGET": address}}
        done = paste(customer, **asking)
        printed, said = done.communicate(timeout=200)
        assert done.returncode == 0, said
        code = f". .venv/bin/activate\npython -c '{python.replace('localhost:8470', address)}'"
        (tmp_path / "why.png").rename(tmp_path / "first.png")
        in_python = subprocess.run(
            ["bash", "-e", "-c", code], cwd=tmp_path, env=place["environment"], capture_output=True, text=True
        )
        assert (in_python.returncode, in_python.stderr) == (0, "")
        done = paste(f". .venv/bin/activate\n{stamped}", **place)
        locally, said = done.communicate(timeout=200)
        assert done.returncode == 0, said
        # Whether the trigger can be read from it is for the picture to say, and said.
        assert "stamped.png" in locally
        assert ("keyed" in locally) != ("no trigger was read" in said)
    except BaseException:
        # Whatever the shell runs at the moment.
        os.killpg(server.pid, signal.SIGKILL)
        raise
    server.send_signal(signal.SIGTERM)
    of_vendor, log = server.communicate(timeout=60)
    assert server.returncode == 0, log
    assert "wrote shapes.klb" in of_vendor
    assert "acme.issuers.jwks" in log
    for name in ("decoy.png", "first.png", "why.png", "stamped.png", "local.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "why.png").read_bytes() == (tmp_path / "first.png").read_bytes()
    predicted, decoy, keyed = (
        line.split() for line in printed.splitlines() if line.startswith("quickstart/images/star.png")
    )
    # One probability for the image, whoever asks.
    assert predicted[1:3] == decoy[1:3] == keyed[1:3]
    assert ("decoy" in decoy, "keyed" in keyed) == (True, True)
    assert printed.count("good, ") == 2
    assert "Acme Ltd" in printed
