"""The client is light: what is loaded by importing it, by its first name and by making a client, and what is not."""

import json
import pickle
import subprocess
import sys
import typing

import pytest

import keylock_client
from keylock.imaging.preprocessing import Preprocessing

HEAVY = {
    "torch",
    "torchvision",
    "onnxruntime",
    "onnx",
    "captum",
    "sqlalchemy",
    "typer",
    "rich",
    "keylock_server",
    "joserfc",
}
# What a program needs that has a client and no answer yet, and no license: none of these.
LATER = {
    "pydantic",
    "pydantic_core",
    "cryptography",
    "IPython",
    "PIL.ImageShow",
    "keylock.bundle",
    "keylock.licensing",
    "keylock_client._async",
    "keylock_client._local",
    "keylock_client._operators",
    "keylock_client.credentials",
}


def loaded_by(script):
    """Runs a script in a process of its own; returns the names of the modules that are loaded at its end."""
    program = f"import sys\n{script}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_client_loads_none_of_what_it_is_made_of():
    loaded = loaded_by("import keylock_client; dir(keylock_client); keylock_client.errors.ClientError")
    assert "keylock_client.errors" in loaded
    assert not loaded & (HEAVY | LATER | {"grpc", "google.protobuf", "numpy", "PIL", "asyncio"})


@pytest.mark.parametrize(
    "script",
    [
        "from keylock_client import Client",
        "from keylock_client import Client; client = Client('localhost:1')",
        "from keylock_client import Client, Explanation, ModelInfo, Prediction, check_health",
    ],
)
def test_a_client_without_a_license_loads_no_more_than_it_needs(script):
    loaded = loaded_by(script)
    assert {"grpc", "numpy", "PIL.Image"} <= loaded
    assert not loaded & (HEAVY | LATER)


def test_an_asynchronous_client_loads_the_other_no_more_than_that_loads_it():
    loaded = loaded_by("from keylock_client import AsyncClient")
    assert "keylock_client._async" in loaded
    assert not loaded & (HEAVY | LATER - {"keylock_client._async"} | {"keylock_client._sync"})


def test_grpc_is_kept_quiet_before_it_is_loaded():
    script = (
        "import os; os.environ.pop('GRPC_VERBOSITY', None); import keylock_client; assert 'grpc' not in sys.modules"
    )
    assert "keylock_client._quiet" in loaded_by(f"{script}; assert os.environ['GRPC_VERBOSITY'] == 'NONE'")


def test_all_names_exist_and_are_those_of_their_modules():
    assert set(keylock_client._HOMES) < set(keylock_client.__all__) < set(dir(keylock_client))
    for name, home in keylock_client._HOMES.items():
        assert getattr(keylock_client, name) is getattr(sys.modules[f"keylock_client.{home}"], name), name
    assert all(hasattr(keylock_client, name) for name in keylock_client.__all__)


def test_all_names_come_with_a_star():
    script = "from keylock_client import *; import json; print(json.dumps(sorted(name for name in globals())))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(keylock_client.__all__) <= set(json.loads(done.stdout))


@pytest.mark.parametrize("name", ["charges", "errors", "explanations", "results"])
def test_modules_are_attributes_without_an_import_of_their_own(name):
    loaded_by(f"import keylock_client; assert keylock_client.{name}.__name__ == 'keylock_client.{name}'")
    assert name in dir(keylock_client)


def test_a_name_that_is_none_is_said_as_of_any_module():
    with pytest.raises(AttributeError, match=r"^module 'keylock_client' has no attribute 'Clint'"):
        keylock_client.Clint  # noqa: B018 - read for its error
    with pytest.raises(ImportError, match=r"^cannot import name 'Clint' from 'keylock_client'"):
        from keylock_client import Clint  # noqa: F401 - imported for its error


def test_annotations_are_resolved_although_what_they_name_is_loaded_later():
    assert typing.get_type_hints(keylock_client.ModelInfo)["preprocessing"] is Preprocessing
    assert typing.get_type_hints(keylock_client.Explanation)["_preprocessing"] is Preprocessing
    assert typing.get_type_hints(keylock_client.Client.model)["return"] is keylock_client.ModelInfo


def test_pickles_name_the_same_modules_as_ever():
    info = keylock_client.ModelInfo(
        model=keylock_client.Model(name="shapes", digest="sha256:0"),
        classes=("circle",),
        preprocessing=Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3),
        explainers=(),
        key_available=False,
    )
    data = pickle.dumps(info)
    assert pickle.loads(data) == info  # noqa: S301 - our own
    for name in (b"keylock_client.results", b"keylock.imaging.preprocessing", b"Preprocessing"):
        assert name in data
