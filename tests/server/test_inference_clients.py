"""Clients of the Open Inference Protocol that others have written get right answers.

They run in processes of their own, because their protos and ours describe the same package.
"""

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TRITON_SYNC = """
import json, sys
import numpy as np
import tritonclient.grpc as triton

target, admin, folder = sys.argv[1:4]
client = triton.InferenceServerClient(target)
answer = {}
assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready("tiny") and not client.is_model_ready("tiny", "2") and not client.is_model_ready("x")
answer["metadata"] = client.get_server_metadata(as_json=True)
answer["model"] = client.get_model_metadata("tiny", as_json=True)
answer["index"] = client.get_model_repository_index(as_json=True)

images = np.load(f"{folder}/images.npy")
tensor = triton.InferInput("image", list(images.shape), "FP32").set_data_from_numpy(images)
options = dict(request_id="mine", client_timeout=20, compression_algorithm="gzip", timeout=20_000_000, priority=1)
result = client.infer("tiny", [tensor], **options)
assert result.get_response().id == "mine"
answer["version"] = result.get_response().model_version
answer["logits"] = result.as_numpy("logits").tolist()
answer["probabilities"] = result.as_numpy("probabilities").tolist()
answer["label"] = [label.decode() for label in result.as_numpy("label")]

wanted = [triton.InferRequestedOutput("logits")]
pixels = np.load(f"{folder}/pixels.npy")
tensor = triton.InferInput("pixels", list(pixels.shape), "UINT8").set_data_from_numpy(pixels)
answer["pixels"] = client.infer("tiny", [tensor], outputs=wanted).as_numpy("logits").tolist()
files = np.array([open(f"{folder}/image.png", "rb").read()], dtype=object)
encoded = triton.InferInput("encoded", [1], "BYTES").set_data_from_numpy(files)
answer["encoded"] = client.infer("tiny", [encoded], outputs=wanted, model_version=answer["version"]).as_numpy(
    "logits"
).tolist()

done = []
pending = client.async_infer("tiny", [encoded], lambda result, error: done.append(error))
pending.get_result() if hasattr(pending, "get_result") else None

refused = {}
def refusal(name, call):
    try:
        call()
    except triton.InferenceServerException as error:
        refused[name] = [error.status(), error.message()]
refusal("model", lambda: client.infer("other", [encoded]))
refusal("version", lambda: client.infer("tiny", [encoded], model_version="2"))
refusal("sequence", lambda: client.infer("tiny", [encoded], sequence_id=5, sequence_start=True))
counted = triton.InferRequestedOutput("logits", class_count=2)
refusal("classification", lambda: client.infer("tiny", [encoded], outputs=[counted]))
refusal("load", lambda: client.load_model("tiny"))
refusal("unload", lambda: client.unload_model("tiny"))
refusal("statistics", lambda: client.get_inference_statistics("tiny"))
answer["refused"] = refused

operator = triton.InferenceServerClient(
    admin, ssl=True, root_certificates=f"{folder}/server.pem", private_key=f"{folder}/client.key",
    certificate_chain=f"{folder}/client.pem",
)
operator.unload_model("tiny")
answer["unloaded"] = [client.is_model_ready("tiny"), client.get_model_repository_index(as_json=True)]
refusal("unloaded", lambda: client.infer("tiny", [encoded]))
operator.load_model("tiny")
answer["loaded"] = client.is_model_ready("tiny")
print(json.dumps(answer))
"""

TRITON_ASYNCIO = """
import asyncio, json, sys
import numpy as np
import tritonclient.grpc.aio as triton

async def main():
    folder = sys.argv[3]
    images = np.load(f"{folder}/images.npy")
    async with triton.InferenceServerClient(sys.argv[1]) as client:
        assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("tiny")
        model = await client.get_model_metadata("tiny", as_json=True)
        def ask(image):
            tensor = triton.InferInput("image", [1, 3, 8, 8], "FP32").set_data_from_numpy(image[None])
            return client.infer("tiny", [tensor])
        results = await asyncio.gather(*map(ask, images))
        try:
            await client.infer("other", [triton.InferInput("image", [1, 3, 8, 8], "FP32")])
            refused = None
        except triton.InferenceServerException as error:
            refused = error.status()
        logits = [result.as_numpy("logits")[0].tolist() for result in results]
        print(json.dumps({"logits": logits, "refused": refused, "versions": model["versions"]}))

asyncio.run(main())
"""

KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient

async def main():
    images = np.load(f"{sys.argv[3]}/images.npy")
    client = InferenceGRPCClient(sys.argv[1])
    answer = {"live": await client.is_server_live(), "ready": await client.is_server_ready()}
    answer["model"] = [await client.is_model_ready(name) for name in ("tiny", "other")]
    for form in ("raw", "typed"):
        tensor = InferInput("image", list(images.shape), "FP32")
        tensor.set_data_from_numpy(images, binary_data=form == "raw")
        result = await client.infer(InferRequest("tiny", [tensor], request_id="mine"))
        assert result.id == "mine"
        outputs = {output.name: output for output in result.outputs}
        answer[form] = outputs["logits"].as_numpy().tolist()
    await client.close()
    print(json.dumps(answer))

asyncio.run(main())
"""


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def operated(start_server, tls_files):
    return start_server(
        admin_port=0,
        admin_certificate=tls_files / "server.pem",
        admin_key=tls_files / "server.key",
        admin_client_ca=tls_files / "client.pem",
    )


@pytest.fixture
def run(operated, tls_files, tiny, tmp_path):
    """Runs a program with the targets of a server and a folder with images; returns what it prints."""
    np.save(tmp_path / "images.npy", tiny.images(5))
    np.save(tmp_path / "pixels.npy", np.stack([tiny.pixels(9, 17, seed) for seed in range(2)]))
    (tmp_path / "image.png").write_bytes(png(tiny.pixels(8, 8)))
    for name in ("server.pem", "client.pem", "client.key"):
        (tmp_path / name).write_bytes((tls_files / name).read_bytes())

    def call(program, python=sys.executable):
        admin = f"localhost:{operated.server.admin_port}"
        command = [python, "-c", program, operated.server.target, admin, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return call


def needs(module):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


@needs("tritonclient")
def test_tritonclient_does_all_it_can(run, operated, tiny):
    answer = run(TRITON_SYNC)
    images, version = tiny.images(5), operated.server.model.version
    logits = tiny.logits(images)
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-4, atol=1e-6)
    powers = np.exp(logits)
    np.testing.assert_allclose(answer["probabilities"], powers / powers.sum(1, keepdims=True), rtol=1e-4)
    assert answer["label"] == [tiny.classes[i] for i in logits.argmax(1)]
    pixels = np.stack([tiny.preprocessing(tiny.pixels(9, 17, seed)) for seed in range(2)])
    np.testing.assert_allclose(answer["pixels"], tiny.logits(pixels), rtol=1e-4, atol=1e-6)
    file = tiny.logits(tiny.preprocessing(tiny.pixels(8, 8))[None])
    np.testing.assert_allclose(answer["encoded"], file, rtol=1e-4, atol=1e-6)
    assert answer["metadata"]["name"] == "keylock"
    assert answer["metadata"]["extensions"] == ["model_repository"]
    assert (answer["model"]["versions"], answer["version"]) == ([version], version)
    assert [tensor["name"] for tensor in answer["model"]["inputs"]] == ["image", "pixels", "encoded"]
    assert answer["index"]["models"] == [{"name": "tiny", "version": version, "state": "READY"}]
    assert {name: status for name, (status, _) in answer["refused"].items()} == {
        "model": "StatusCode.NOT_FOUND",
        "version": "StatusCode.NOT_FOUND",
        "sequence": "StatusCode.INVALID_ARGUMENT",
        "classification": "StatusCode.INVALID_ARGUMENT",
        "load": "StatusCode.PERMISSION_DENIED",
        "unload": "StatusCode.PERMISSION_DENIED",
        "statistics": "StatusCode.UNIMPLEMENTED",
        "unloaded": "StatusCode.UNAVAILABLE",
    }
    assert "on the admin port" in answer["refused"]["load"][1]
    ready, index = answer["unloaded"]
    assert not ready
    assert index["models"][0]["state"] == "UNAVAILABLE"
    assert answer["loaded"]


@needs("tritonclient")
def test_tritonclient_for_asyncio_asks_at_once(run, operated, tiny):
    answer = run(TRITON_ASYNCIO)
    np.testing.assert_allclose(answer["logits"], tiny.logits(tiny.images(5)), rtol=1e-4, atol=1e-6)
    assert answer["refused"] == "StatusCode.NOT_FOUND"
    assert answer["versions"] == [operated.server.model.version]


def test_client_of_kserve(run, tiny):
    """KSERVE_PYTHON names the Python of an environment that has the client, which brings a web server along."""
    python = os.environ.get("KSERVE_PYTHON") or (sys.executable if importlib.util.find_spec("kserve") else "")
    if not python or not Path(python).is_file():
        pytest.skip("the client of KServe is not installed: KSERVE_PYTHON names the Python of an environment with it")
    answer = run(KSERVE, python)
    assert (answer["live"], answer["ready"], answer["model"]) == (True, True, [True, False])
    for form in ("raw", "typed"):
        np.testing.assert_allclose(answer[form], tiny.logits(tiny.images(5)), rtol=1e-4, atol=1e-6)
