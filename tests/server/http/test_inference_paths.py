"""The Open Inference Protocol over HTTP: health, metadata, and tensors in JSON and in binary form."""

import base64
import json
import struct

import numpy as np
import pytest

from keylock import __version__

INFER = "/v2/models/tiny/infer"


def tensor(images, **changes):
    return {"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": images.tolist()} | changes


def binary(plain, *contents):
    text = json.dumps(plain).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    return b"".join([text, *contents]), headers


def test_the_server_is_live_ready_and_described(web):
    assert web.get("/v2/health/live").plain == {"live": True}
    assert web.get("/v2/health/ready").plain == {"ready": True}
    described = web.get("/v2").plain
    assert described == {
        "name": "keylock",
        "version": __version__,
        "extensions": ["model_repository", "binary_tensor_data"],
    }


def test_models_are_ready_or_not_in_status_and_body(web):
    version = web.calls.server.model.version
    for path in ("/v2/models/tiny/ready", f"/v2/models/tiny/versions/{version}/ready"):
        ready = web.get(path)
        assert (ready.status, ready.plain) == (200, {"name": "tiny", "ready": True})
    for path in ("/v2/models/other/ready", "/v2/models/tiny/versions/2/ready"):
        unready = web.get(path)
        assert (unready.status, unready.plain["ready"]) == (503, False)
        assert unready.headers["content-type"] == "application/json"


def test_a_model_is_described(web):
    described = web.get("/v2/models/tiny").plain
    assert described["versions"] == [web.calls.server.model.version]
    assert described["inputs"][0] == {"name": "image", "datatype": "FP32", "shape": [-1, 3, 8, 8]}
    assert [output["name"] for output in described["outputs"]] == ["logits", "probabilities", "label"]


def test_the_repository_is_listed_and_changed_by_operators_alone(web):
    (listed,) = web.post("/v2/repository/index").plain
    assert (listed["name"], listed["state"]) == ("tiny", "READY")
    assert web.get("/v2/repository/index").plain == web.post("/v2/repository/index", {"ready": True}).plain == [listed]
    for change in ("load", "unload"):
        refused = web.post(f"/v2/repository/models/tiny/{change}")
        assert (refused.status, refused.plain["reason"]) == (403, "OPERATORS_ONLY")


@pytest.mark.parametrize("flat", [True, False])
def test_tensors_in_json(web, tiny, flat):
    images = tiny.images(3)
    sent = tensor(images, data=images.ravel().tolist() if flat else images.tolist())
    reply = web.post(INFER, {"id": "mine", "inputs": [sent]})
    assert reply.headers["content-type"] == "application/json"
    answer = reply.plain
    assert (answer["id"], answer["model_name"]) == ("mine", "tiny")
    assert reply.headers["x-request-id"] == "mine"
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["logits"]["shape"] == [3, 4]
    logits = tiny.logits(images)
    np.testing.assert_allclose(np.reshape(outputs["logits"]["data"], (3, 4)), logits, rtol=1e-4, atol=1e-6)
    assert outputs["label"]["data"] == [tiny.classes[index] for index in logits.argmax(1)]


def test_tensors_in_binary_form(web, tiny):
    images = tiny.images(3)
    sent = tensor(images, parameters={"binary_data_size": images.nbytes})
    del sent["data"]
    asked = {"inputs": [sent], "parameters": {"binary_data_output": True}, "outputs": [{"name": "logits"}]}
    asked["outputs"].append({"name": "label", "parameters": {"binary_data": False}})
    body, headers = binary(asked, images.tobytes())
    reply = web.post(INFER, body, headers=headers)
    length = int(reply.headers["inference-header-content-length"])
    logits, label = json.loads(reply.body[:length])["outputs"]
    assert logits["parameters"] == {"binary_data_size": 3 * 4 * 4}
    found = np.frombuffer(reply.body[length:], "<f4").reshape(logits["shape"])
    np.testing.assert_allclose(found, tiny.logits(images), rtol=1e-4, atol=1e-6)
    assert label["data"] == [tiny.classes[index] for index in tiny.logits(images).argmax(1)]


def test_pixels_and_files(web, tiny):
    import io

    from PIL import Image

    pixels = tiny.pixels(8, 8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    expected = tiny.logits(tiny.preprocessing(pixels)[None])[0]
    as_pixels = {"name": "pixels", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": pixels[None].tolist()}
    as_file = {"name": "encoded", "datatype": "BYTES", "shape": [1]}
    text = base64.b64encode(file.getvalue()).decode()
    wanted = {"outputs": [{"name": "logits"}]}
    replies = [web.post(INFER, {"inputs": [one], **wanted}) for one in (as_pixels, {**as_file, "data": [text]})]
    raw = struct.pack("<I", len(file.getvalue())) + file.getvalue()
    body, headers = binary({"inputs": [{**as_file, "parameters": {"binary_data_size": len(raw)}}], **wanted}, raw)
    replies.append(web.post(INFER, body, headers=headers))
    for reply in replies:
        np.testing.assert_allclose(reply.plain["outputs"][0]["data"], expected, rtol=1e-4, atol=1e-6)


IMAGES = np.zeros((1, 3, 8, 8), np.float32)
GOOD = tensor(IMAGES)
BAD = {
    "no JSON": (b"{", "is not JSON"),
    "no UTF-8": (b'"\xff"', "UTF-8"),
    "no object": ([], "the body is no JSON object"),
    "NaN": (json.dumps({"inputs": [tensor(IMAGES * np.nan)]}).encode(), "JSON has no NaN"),
    "infinity": (json.dumps({"inputs": [tensor(IMAGES + np.inf)]}).encode(), "JSON has no Infinity"),
    "a number beyond floats": (
        b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "data": [1e400]}]}',
        "FP32",
    ),
    "a name twice": (b'{"id": "a", "id": "b"}', "one name twice"),
    "deep nesting": (b"[" * 100_000, "nested too deeply"),
    "an unknown member": ({"inputs": [GOOD], "secret": 1}, "'secret'"),
    "no inputs": ({}, "0 inputs"),
    "two inputs": ({"inputs": [GOOD, GOOD]}, "2 inputs"),
    "inputs that are no list": ({"inputs": {}}, "inputs is no list"),
    "a text for an input": ({"inputs": ["x"]}, "inputs[0] is no JSON object"),
    "an unknown input": ({"inputs": [{**GOOD, "name": "x"}]}, "input"),
    "another datatype": ({"inputs": [{**GOOD, "datatype": "FP64"}]}, "FP32"),
    "a shape of texts": ({"inputs": [{**GOOD, "shape": ["1"]}]}, "inputs[0].shape is no list of whole numbers"),
    "texts for numbers": ({"inputs": [{**GOOD, "data": ["1"] * 192}]}, "no numbers"),
    "truth values": ({"inputs": [{**GOOD, "data": [True] * 192}]}, "no numbers"),
    "uneven lists": ({"inputs": [{**GOOD, "data": [[1], [1, 2]]}]}, "unevenly"),
    "another nesting": ({"inputs": [{**GOOD, "data": [[0.0] * 192]}]}, "inputs[0].data has the shape [1, 192]"),
    "too few values": ({"inputs": [{**GOOD, "data": [0.0]}]}, "make shape, type and data agree"),
    "no data": ({"inputs": [{name: GOOD[name] for name in ("name", "datatype", "shape")}]}, "or neither"),
    "size without bytes": (
        {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}]},
        "the 0 bytes that are left",
    ),
    "pixels above 255": (
        {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 0, 256]}]},
        "from 0 to 255",
    ),
    "a file without Base64": (
        {"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "data": ["é"]}]},
        "inputs[0].data[0] is no Base64",
    ),
    "an unknown output": ({"inputs": [GOOD], "outputs": [{"name": "x"}]}, "output"),
    "a classification": (
        {"inputs": [GOOD], "outputs": [{"name": "logits", "parameters": {"classification": 2}}]},
        "classification",
    ),
    "a parameter that is a list": ({"inputs": [GOOD], "parameters": {"x": []}}, "no text, number or truth value"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_in_the_form_of_the_protocol(web, case):
    body, words = BAD[case]
    reply = web.post(INFER, body)
    assert (reply.status // 100, reply.headers["content-type"]) == (4, "application/json")
    assert words in reply.plain["error"]
    assert reply.plain["request_id"] == reply.headers["x-request-id"]


def test_binary_data_that_does_not_add_up_are_refused(web):
    sent = {name: GOOD[name] for name in ("name", "datatype", "shape")}
    asked = {"inputs": [{**sent, "parameters": {"binary_data_size": IMAGES.nbytes}}]}
    for contents, words in (
        (IMAGES.tobytes()[:-1], "bytes that are left"),
        (IMAGES.tobytes() + b"x", "1 bytes follow"),
    ):
        body, headers = binary(asked, contents)
        reply = web.post(INFER, body, headers=headers)
        assert (reply.status, words in reply.plain["error"]) == (400, True), reply.plain
    for length in ("-1", "x", "10000000", "1e3"):
        reply = web.post(INFER, body, headers={**headers, "Inference-Header-Content-Length": length})
        assert "Inference-Header-Content-Length is not a length" in reply.plain["error"]
