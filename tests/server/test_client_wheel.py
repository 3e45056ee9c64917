"""The distribution keylock-client: built from this tree, installed into an empty environment, and used there."""

import json
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
CLIENT = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text("utf-8"))["project"]
BUILD = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text("utf-8"))["build-system"]
WHOLE = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
RESULTS = json.loads((ROOT / "benchmarks/results/serving/client_install.json").read_text("utf-8"))
NOT_IN_IT = ("torch", "torchvision", "sqlalchemy", "alembic", "captum", "onnxruntime", "matplotlib", "typer", "rich")
USE = """
import importlib, pkgutil, sys
import keylock, keylock_client
for package in (keylock, keylock_client):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            # Extras: for explaining without a server, DICOM files, and a provider of keys.
            assert error.name in {"onnxruntime", "safetensors", "pydicom", "boto3", "botocore"}, (found.name, error)
forbidden = set(sys.modules) & set(sys.argv[4].split(","))
assert not forbidden, forbidden
assert keylock_client.__file__.startswith(sys.prefix), keylock_client.__file__
try:
    keylock.load_bundle
except ImportError as error:
    assert "is not in keylock-client" in str(error), error
else:
    raise AssertionError("the client alone opens no bundle in torch")
from keylock_client import Client
client = Client(sys.argv[1], license=sys.argv[2])
explanation = client.explain(sys.argv[3])
explanation.save("why.png")
print(explanation.prediction.label, explanation.keyed, explanation.map.shape, client.license().customer)
client.close()
"""


def pip(python, *arguments):
    line = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    if pip(sys.executable, "download", "--no-deps", "--dest", folder / "index", *BUILD["requires"]).returncode:
        pytest.skip("no package index is reached, from which pip could take what builds the wheel")
    made = pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", folder, "./client")
    assert made.returncode == 0, made.stderr
    [found] = folder.glob("*.whl")
    return found


def test_it_holds_the_client_its_stubs_and_nothing_of_the_vendors(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    parts = {name.split("/")[1].removesuffix(".py") for name in names if name.startswith("keylock/")}
    assert {"v1", "inference", "errors", "licensing"} <= parts
    assert not parts & {
        "training",
        "locking",
        "models",
        "store",
        "pipeline",
        "audit",
        "cli",
        "explainers",
        "torch_runtime",
    }
    assert "keylock/v1/explanation_pb2.py" in names
    assert "keylock_client/py.typed" in names
    assert not [name for name in names if name.endswith(".pyc") or "keylock_server" in name]
    assert wheel.stat().st_size < 1_000_000


def test_its_version_and_dependencies_are_those_of_the_whole(wheel):
    version = wheel.name.split("-")[1]
    assert version == WHOLE["version"]
    assert set(CLIENT["dependencies"]) < set(WHOLE["dependencies"])
    assert CLIENT["optional-dependencies"]["local"] == WHOLE["optional-dependencies"]["local"]
    for extra in ("c2pa", "dicom"):
        assert CLIENT["optional-dependencies"][extra] == WHOLE["optional-dependencies"][extra]


@pytest.mark.slow
def test_it_explains_from_an_empty_environment(wheel, tmp_path, calls, vendor, tiny):
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / "bin" / "python"
    installed = pip(python, "install", wheel)
    assert installed.returncode == 0, installed.stderr
    checked = pip(python, "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    Image.fromarray(tiny.pixels(8, 8, seed=3)).save(tmp_path / "cat.png")
    (tmp_path / "acme.license").write_text(vendor.grant().token)
    line = [python, "-I", "-c", USE, calls.server.target, "acme.license", "cat.png", ",".join(NOT_IN_IT)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1:] == ["True", "(8,", "8)", "Acme"]
    assert (tmp_path / "why.png").stat().st_size > 100


def test_the_page_says_what_was_measured():
    page = (ROOT / "docs" / "client.md").read_text("utf-8")
    for name, size in RESULTS["installed_mb"].items():
        assert f"| {name} | {size:.1f} |" in page, name
    assert f"{RESULTS['wheel_kb']} kB" in page
    assert f"{RESULTS['mb_beside']['value']} MB" in page
    assert RESULTS["mb_beside"]["value"] <= RESULTS["mb_beside"]["goal"]
    assert RESULTS["command"] in page
    took = {name: RESULTS["took_s"][name]["processor"] for name in ("before", "now", "floor")}
    for name, line in RESULTS["lines"].items():
        assert f"| `{line}` | {took['before'][name]:.2f} | {took['now'][name]:.2f} |" in page, name
    for sum_of in ("until_client", "all"):
        assert f"| {took['before'][sum_of]:.2f} | {took['now'][sum_of]:.2f} |" in page, sum_of
    assert f"take {took['floor']['until_client']:.2f} s" in page
    assert took["now"]["import"] <= RESULTS["import_goal_s"]
