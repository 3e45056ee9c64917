"""The example in TypeScript is installed, compiled and run against a server, as its README says."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keylock.licensing.pem import armour

ROOT = Path(__file__).parents[2]
# What npm says where no registry can be reached, which says nothing of the example.
OFFLINE = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|E403|network")


def run(folder, *command, timeout=240):
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False, env=os.environ
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node is not installed")
    root = tmp_path_factory.mktemp("checkout")
    left_out = shutil.ignore_patterns("node_modules", "generated", "dist")
    shutil.copytree(ROOT / "examples", root / "examples", ignore=left_out)
    shutil.copytree(ROOT / "proto", root / "proto")
    folder = root / "examples" / "typescript"
    installed = run(folder, "npm", "ci", "--prefer-offline", "--ignore-scripts")
    if installed.returncode and OFFLINE.search(installed.stderr):
        pytest.skip("no registry of npm can be reached")
    assert installed.returncode == 0, installed.stderr
    compiled = run(folder, "npm", "run", "build")
    assert compiled.returncode == 0, compiled.stdout + compiled.stderr
    return folder


@pytest.fixture(scope="module")
def picture(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    Image.fromarray(tiny.pixels(8, 8)).save(path)
    return path


def explain(built, picture, *options):
    out = picture.with_name("why.png")
    out.unlink(missing_ok=True)
    return run(built, "node", "dist/explain.js", str(picture), str(out), *options), out


@pytest.mark.slow
def test_it_shows_a_decoy_and_with_a_license_the_true_map(built, calls, vendor, picture, tmp_path):
    server = f"localhost:{calls.server.port}"
    public, out = explain(built, picture, "--server", server)
    assert (public.returncode, public.stderr) == (0, "")
    assert "a decoy is in" in public.stdout
    decoy = np.asarray(Image.open(out))

    granted = vendor.grant()
    (tmp_path / "acme.license").write_text(armour(granted.token))
    licensed, out = explain(built, picture, "--server", server, "--license-file", str(tmp_path / "acme.license"))
    assert (licensed.returncode, licensed.stderr) == (0, "")
    label, told, charged = licensed.stdout.splitlines()
    assert told.startswith("the true map is in")
    assert charged == f"1 charged to {granted.id}"

    from keylock.v1 import explanation_pb2 as pb

    known = calls.explain(
        pb.Image(encoded=picture.read_bytes()), token=granted.token, answer={"map_dtype": pb.DATA_TYPE_UINT8}
    ).results[0]
    assert label.startswith(known.prediction.label)
    shown = np.asarray(Image.open(out))
    np.testing.assert_array_equal(shown, np.frombuffer(known.map.data, np.uint8).reshape(known.map.shape))
    assert not np.array_equal(shown, decoy)


@pytest.mark.slow
def test_it_says_what_is_wrong(built, calls, vendor, picture, tmp_path):
    server = f"localhost:{calls.server.port}"
    head, claims, _ = vendor.grant().token.split(".")
    (tmp_path / "forged.license").write_text(f"{head}.{claims}.{'A' * 86}")
    for options, words in (
        (["--server", server, "--license-file", str(tmp_path / "forged.license")], "(UNAUTHENTICATED)"),
        (["--server", server, "--license-file", "nowhere"], "no such file"),
        (["--server", server, "--license-file", str(picture)], "holds no license"),
        (["--colour", "red"], "--colour"),
    ):
        failed, out = explain(built, picture, *options)
        assert failed.returncode == 1, failed.stderr
        assert failed.stderr.startswith("error: ")
        assert failed.stderr.count("\n") == 1
        assert words in failed.stderr
        assert not out.exists()


@pytest.mark.slow
def test_it_speaks_tls(built, start_server, tls_files, picture):
    calls = start_server(tls_certificate=tls_files / "server.pem", tls_key=tls_files / "server.key")
    server = f"localhost:{calls.server.port}"
    done, _ = explain(built, picture, "--server", server, "--ca", str(tls_files / "server.pem"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "a decoy is in" in done.stdout


def test_its_protos_are_those_of_the_server_and_of_googleapis():
    from google.rpc import status_pb2

    own = ROOT / "examples" / "typescript" / "protos" / "google" / "rpc" / "status.proto"
    text = own.read_text("utf-8")
    fields = [field.name for field in status_pb2.Status.DESCRIPTOR.fields]
    assert re.findall(r"^\s+(?:repeated )?[\w.]+ (\w+) = \d+;", text, re.MULTILINE) == fields


def test_the_lock_of_its_packages_names_no_host():
    assert "resolved" not in (ROOT / "examples" / "typescript" / "package-lock.json").read_text("utf-8")
