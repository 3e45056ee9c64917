"""The image of a server: its steps run in an empty folder, and its files name what there is."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import parse

DEPLOY = Path(__file__).parents[3] / "deploy"


def instructions(name):
    """Returns the instructions of a Dockerfile, continued lines joined, comments left out."""
    text = re.sub(r"\\\n\s*", " ", (DEPLOY / name).read_text("utf-8"))
    lines = (line.partition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return [(word, rest.strip()) for word, _, rest in lines]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image") / "keylock"
    command = ["sh", str(DEPLOY / "install.sh"), str(folder)]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env={**os.environ, "PYTHON": sys.executable}
    )
    if run.returncode and "No matching distribution" in run.stderr:
        pytest.skip("packages cannot be had here")
    assert run.returncode == 0, run.stderr[-2000:]
    return folder, run.stdout


@pytest.mark.slow
def test_the_steps_of_the_image_install_a_server_without_torch(installed):
    folder, said = installed
    packages = {path.name for path in next((folder / "lib").iterdir()).joinpath("site-packages").iterdir()}
    assert {"keylock", "keylock_server", "keylock_client", "onnxruntime", "psycopg"} <= packages
    assert not {"torch", "torchvision", "captum", "pip"} & packages
    # With the image that it is put into, of some fifty megabytes, well below 400.
    compressed = int(re.search(r"compressed (\d+) MB", said)[1])
    assert 20 < compressed < 300


@pytest.mark.slow
def test_what_was_installed_serves_as_nobody_from_a_folder_that_cannot_be_written(installed, vendor, tmp_path):
    folder, _ = installed
    ready, home = tmp_path / "ready", tmp_path / "home"
    home.mkdir()
    before = set(folder.rglob("*"))
    command = [folder / "bin" / "keylock", "serve", vendor.bundle, "--key-file", vendor.key_file, "--port", "0"]
    command += ["--issuer", vendor.issuer_file, "--ready-file", ready]
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen([str(one) for one in command], env=environment, cwd=tmp_path) as server:
        probe = [str(folder / "bin" / "keylock"), "admin", "ready", "--wait", "60", "--server"]
        try:
            while not ready.exists():
                assert server.poll() is None
            found = subprocess.run([*probe, ready.read_text()], env=environment, capture_output=True, text=True)
            assert (found.returncode, found.stderr) == (0, "")
        finally:
            server.terminate()
        assert server.wait(60) == 0
    assert set(folder.rglob("*")) == before
    assert not any(home.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "usage"), (["{there}"], "is there already"), (["{new}", "server", "tpu"], "cpu or gpu, not tpu")],
)
def test_mistakes_of_the_script_end_in_one_sentence(arguments, words, tmp_path):
    values = {"there": tmp_path, "new": tmp_path / "new"}
    command = ["sh", str(DEPLOY / "install.sh"), *(argument.format(**values) for argument in arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2, run.stderr
    assert words in run.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.train"])
def test_an_image_runs_as_nobody_in_particular_and_installs_by_the_script(name):
    steps = instructions(name)
    users = [rest for word, rest in steps if word == "USER"]
    assert users == ["10001:10001"]
    runs = [rest for word, rest in steps if word == "RUN"]
    assert len(runs) == 1
    assert shlex.split(runs[0])[:2] == ["sh", "/src/deploy/install.sh"]
    assert ("ENTRYPOINT", '["keylock"]') in steps
    (started,) = [rest for word, rest in steps if word == "CMD"]
    if started != '["--help"]':
        parse(re.findall(r'"([^"]*)"', started))
    for word, rest in steps:
        if word == "HEALTHCHECK":
            program, *arguments = re.findall(r'"([^"]*)"', rest)
            assert program == "keylock"
            parse(arguments)


def test_what_is_copied_into_an_image_is_what_packages_are_built_of():
    listed = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert listed == (DEPLOY / "Dockerfile.train.dockerignore").read_text("utf-8").splitlines()
    kept = [line[1:] for line in listed if line.startswith("!")]
    assert all((DEPLOY.parent / path).exists() for path in kept)
    project = (DEPLOY.parent / "pyproject.toml").read_text("utf-8")
    packages = re.search(r"wheel\]\npackages = \[(.*)\]", project)[1]
    assert {path.split("/")[0] for path in re.findall(r'"([^"]+)"', packages)} <= set(kept)
