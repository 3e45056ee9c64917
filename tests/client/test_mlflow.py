"""A bundle as an MLflow model: saved, logged, loaded, and predicting what the client predicts. MLflow sends nothing."""

import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
pytest.importorskip("onnxruntime")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    mlflow = pytest.importorskip("mlflow", reason="pip install '.[mlflow]'")
    pytest.importorskip("mlflow.pyfunc")

from keylock.bundle import open_bundle
from keylock.errors import BundleTamperedError, InputError
from keylock_client import LocalModel
from keylock_client.mlflow import _load_pyfunc, log_model, save_model

# Warnings of MLflow's own code, and of what it imports, are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def pixels():
    return np.random.default_rng(3).integers(0, 256, (4, 20, 24, 3), np.uint8)


@pytest.fixture(scope="module")
def saved(sealed_bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("mlflow") / "model"
    save_model(sealed_bundle.path, path, requirements=["./keylock.whl"], metadata={"mine": 1})
    return path


def test_a_loaded_model_predicts_as_the_client_does(saved, sealed_bundle, pixels):
    table = mlflow.pyfunc.load_model(str(saved)).predict(pixels)
    with LocalModel(sealed_bundle.public) as model:
        expected = model.predict(list(pixels))
    assert table["label"].tolist() == [one.label for one in expected]
    assert table["index"].tolist() == [one.index for one in expected]
    assert table["probability"].tolist() == [one.probability for one in expected]


def test_what_is_saved_holds_no_sealed_part(saved, sealed_bundle):
    [path] = saved.rglob("*.klb")
    copy = open_bundle(path, trusted=None)
    assert (copy.has_key, copy.has_delta) == (False, False)
    whole = open_bundle(sealed_bundle.path, trusted=None)
    assert copy.manifest == whole.manifest
    everything = b"".join(file.read_bytes() for file in saved.rglob("*") if file.is_file())
    assert whole.sealed_key() not in everything
    assert whole.all_files()["delta.sealed"] not in everything


def test_it_says_what_it_is(saved, sealed_bundle):
    about = mlflow.models.Model.load(str(saved))
    manifest = open_bundle(sealed_bundle.path, trusted=None).manifest
    assert about.metadata["mine"] == 1
    assert about.metadata["keylock"]["model_digest"] == manifest.model_digest
    assert about.metadata["keylock"]["classes"] == list(manifest.classes)
    assert about.signature.outputs.input_names() == ["label", "index", "probability"]
    requirements = (saved / "requirements.txt").read_text()
    assert "./keylock.whl" in requirements
    # Another project has the name on PyPI, and an environment must not get that.
    assert not [line for line in requirements.splitlines() if line.lower().startswith("keylock")]


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 8, 8, 3), np.float64), np.zeros((2, 8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.uint8)]
)
def test_the_signature_refuses_other_pixels(saved, wrong):
    with pytest.raises(mlflow.exceptions.MlflowException):
        mlflow.pyfunc.load_model(str(saved)).predict(wrong)


def test_without_the_signature_they_are_refused_in_our_words(saved):
    [path] = saved.rglob("*.klb")
    with pytest.raises(InputError, match=r"shape \(batch, height, width, 3\), not \(8, 8, 3\)"):
        _load_pyfunc(str(path)).predict(np.zeros((8, 8, 3), np.uint8))
    assert len(_load_pyfunc(str(path)).predict(np.zeros((0, 8, 8, 3), np.uint8))) == 0


def test_a_changed_byte_is_refused_when_it_is_loaded(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    [path] = (tmp_path / "model").rglob("*.klb")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleTamperedError):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))


def test_a_folder_that_is_there_is_kept(saved, sealed_bundle):
    with pytest.raises(InputError, match="exists: choose another folder"):
        save_model(sealed_bundle.path, saved)


def test_a_model_is_logged_in_a_run(sealed_bundle, tmp_path, pixels, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    try:
        with mlflow.start_run():
            info = log_model(sealed_bundle.path, "shapes")
        assert len(mlflow.pyfunc.load_model(info.model_uri).predict(pixels)) == len(pixels)
    finally:
        mlflow.set_tracking_uri(None)


# Whoever resolves a name or connects is written down, in every process that the program starts.
WATCHED = """
import os, sys, socket
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        with open(os.environ["WATCHED"], "a") as file:
            print(event, arguments, file=file)
sys.addaudithook(watch)
"""


def test_saving_does_not_warn_of_type_hints_of_mlflow(sealed_bundle, tmp_path):
    program = f"from keylock_client.mlflow import save_model; save_model({str(sealed_bundle.path)!r}, 'model')"
    command = [sys.executable, "-W", "error::UserWarning", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_mlflow_sends_nothing(sealed_bundle, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WATCHED)
    program = f"""
import numpy as np
from keylock_client.mlflow import save_model
save_model({str(sealed_bundle.path)!r}, "model")
import mlflow, time
print(len(mlflow.pyfunc.load_model("model").predict(np.zeros((2, 8, 8, 3), np.uint8))))
from mlflow.telemetry.client import get_telemetry_client
print(get_telemetry_client())
time.sleep(2)
"""
    quiet = ("CI", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "PYTEST_CURRENT_TEST", "GITHUB_ACTIONS")
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    environment |= {"WATCHED": str(tmp_path / "watched"), "HOME": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "None"]
    assert not (tmp_path / "watched").exists(), (tmp_path / "watched").read_text()
