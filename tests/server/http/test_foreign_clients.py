"""Clients that others have written get right answers over HTTP: those of Triton and KServe, and `curl`.

Python's run in processes of their own, because their protos and ours describe the same package.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keylock.licensing.pem import armour

ROOT = Path(__file__).parents[3]

TRITON = """
import json, sys
import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient(sys.argv[1])
answer = {}
assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready("tiny") and not client.is_model_ready("tiny", "2") and not client.is_model_ready("x")
answer["metadata"] = client.get_server_metadata()
answer["model"] = client.get_model_metadata("tiny")
answer["index"] = client.get_model_repository_index()
images = np.load(f"{sys.argv[2]}/images.npy")
for form in (True, False):
    tensor = triton.InferInput("image", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images, binary_data=form)
    outputs = [triton.InferRequestedOutput(name, binary_data=form) for name in ("logits", "label")]
    for outputs in (outputs, None):
        result = client.infer("tiny", [tensor], request_id="mine", outputs=outputs)
        assert result.get_response()["id"] == "mine"
        answer.setdefault("logits", []).append(result.as_numpy("logits").tolist())
        labels = [one if isinstance(one, str) else one.decode() for one in result.as_numpy("label")]
        answer.setdefault("label", []).append(labels)
files = np.array([open(f"{sys.argv[2]}/image.png", "rb").read()], dtype=object)
encoded = triton.InferInput("encoded", [1], "BYTES")
encoded.set_data_from_numpy(files)
answer["encoded"] = client.infer("tiny", [encoded]).as_numpy("logits").tolist()
answer["later"] = client.async_infer("tiny", [encoded]).get_result().as_numpy("logits").tolist()
refused = {}
def refusal(name, call):
    try:
        call()
    except triton.InferenceServerException as error:
        refused[name] = [error.status(), error.message()]
refusal("model", lambda: client.infer("other", [encoded]))
refusal("version", lambda: client.infer("tiny", [encoded], model_version="2"))
refusal("sequence", lambda: client.infer("tiny", [encoded], sequence_id=5, sequence_start=True))
counted = [triton.InferRequestedOutput("logits", class_count=2)]
refusal("classification", lambda: client.infer("tiny", [encoded], outputs=counted))
refusal("compressed", lambda: client.infer("tiny", [encoded], request_compression_algorithm="gzip"))
refusal("load", lambda: client.load_model("tiny"))
answer["refused"] = refused
print(json.dumps(answer))
"""

KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

async def main():
    base = "http://" + sys.argv[1]
    images = np.load(f"{sys.argv[2]}/images.npy")
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    answer = {"live": await client.is_server_live(base), "ready": await client.is_server_ready(base)}
    answer["model"] = await client.is_model_ready(base, "tiny")
    for form in ("binary", "json"):
        tensor = InferInput("image", list(images.shape), "FP32")
        tensor.set_data_from_numpy(images, binary_data=form == "binary")
        request = InferRequest("tiny", [tensor], request_id="mine", parameters={"binary_data_output": form == "binary"})
        result = await client.infer(base, request, model_name="tiny")
        assert result.id == "mine" and result.model_name == "tiny"
        outputs = {output.name: output for output in result.outputs}
        answer[form] = outputs["logits"].as_numpy().tolist()
    answer["refused"] = {}
    for name, path in (("infer", client.infer), ("ready", client.is_model_ready)):
        try:
            await (path(base, request, model_name="other") if name == "infer" else path(base, "other"))
        except Exception as error:
            answer["refused"][name] = str(error)
    await client.close()
    print(json.dumps(answer))

asyncio.run(main())
"""


@pytest.fixture
def folder(tiny, tmp_path):
    np.save(tmp_path / "images.npy", tiny.images(5))
    Image.fromarray(tiny.pixels(8, 8)).save(tmp_path / "image.png")
    return tmp_path


def run(command, **environment):
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def needs(*modules):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


@needs("tritonclient", "geventhttpclient")
def test_tritonclient(web, tiny, folder):
    answer = json.loads(run([sys.executable, "-c", TRITON, f"127.0.0.1:{web.port}", str(folder)]))
    images = tiny.images(5)
    logits = tiny.logits(images)
    assert len(answer["logits"]) == 4
    for found, labels in zip(answer["logits"], answer["label"], strict=True):
        np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-6)
        assert labels == [tiny.classes[index] for index in logits.argmax(1)]
    file = tiny.logits(tiny.preprocessing(tiny.pixels(8, 8))[None])
    for name in ("encoded", "later"):
        np.testing.assert_allclose(answer[name], file, rtol=1e-4, atol=1e-6)
    assert answer["metadata"]["name"] == "keylock"
    assert [tensor["name"] for tensor in answer["model"]["inputs"]] == ["image", "pixels", "encoded"]
    assert [model["name"] for model in answer["index"]] == ["tiny"]
    assert {name: status for name, (status, _) in answer["refused"].items()} == {
        "model": "404",
        "version": "404",
        "sequence": "400",
        "classification": "400",
        "compressed": "415",
        "load": "403",
    }
    assert "'other'" in answer["refused"]["model"][1]
    assert "compressed bodies are not taken" in answer["refused"]["compressed"][1]


def test_client_of_kserve(web, tiny, folder):
    """KSERVE_PYTHON names the Python of an environment that has the client, which brings a web server along."""
    python = os.environ.get("KSERVE_PYTHON") or (sys.executable if importlib.util.find_spec("kserve") else "")
    if not python or not Path(python).is_file():
        pytest.skip("the client of KServe is not installed: KSERVE_PYTHON names the Python of an environment with it")
    answer = json.loads(
        run([python, "-c", KSERVE, f"127.0.0.1:{web.port}", str(folder)], PYTHONPATH="", NO_PROXY="*").splitlines()[-1]
    )
    assert (answer["live"], answer["ready"], answer["model"]) == (True, True, True)
    for form in ("binary", "json"):
        np.testing.assert_allclose(answer[form], tiny.logits(tiny.images(5)), rtol=1e-4, atol=1e-6)
    assert "other" in answer["refused"]["infer"]


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("bash") is None, reason="needs curl and bash")
def test_the_commands_of_the_documentation(web, vendor, folder):
    page = (ROOT / "docs" / "http.md").read_text("utf-8")
    block = page.split("```sh\n")[1].split("```")[0]
    server, token, *commands = block.splitlines()
    assert server == "SERVER=http://localhost:8480"
    assert len(commands) == 7
    (folder / "acme.license").write_text(armour(vendor.grant().token))
    (folder / "image.png").rename(folder / "cat.png")
    place = {
        "SERVER": f"http://127.0.0.1:{web.port}",
        "NO_PROXY": "*",
    }
    answers = []
    for command in commands:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{token}; {command}"],
            cwd=folder,
            env=os.environ | place,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        answers.append(json.loads(done.stdout))
    models, decoy, true, usage, estimate, small, ready = answers
    assert models["models"][0]["name"] == "tiny"
    assert [answer["results"][0]["keyed"] for answer in (decoy, true, small)] == [False, True, False]
    assert np.shape(true["results"][0]["map"]["values"]) == (8, 8)
    assert true["request_id"] == "cat-1"
    assert usage["quotas"][0]["used"] == 1
    assert estimate["units"] == 3
    assert small["results"][0]["map"]["dtype"] == "DATA_TYPE_UINT8"
    assert ready == {"ready": True}
