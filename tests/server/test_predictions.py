"""Predictions over the Open Inference Protocol: right in every form, open to all, and never keyed."""

import io
import json
import struct
import subprocess
import sys
import textwrap

import numpy as np
from PIL import Image

from keylock.inference import inference_pb2 as pb


def infer_request(name, datatype, shape, *, raw=None, contents=None, **fields):
    request = pb.ModelInferRequest(model_name="tiny", **fields)
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    if raw is not None:
        request.raw_input_contents.append(raw)
    for field, values in (contents or {}).items():
        getattr(tensor.contents, field).extend(values)
    return request


def raw_outputs(response):
    return dict(zip([output.name for output in response.outputs], response.raw_output_contents, strict=True))


def logits_of(response):
    return np.frombuffer(raw_outputs(response)["logits"], "<f4").reshape(-1, 4)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def prefixed(*elements):
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def test_raw_tensors_give_raw_outputs(calls, tiny):
    images = tiny.images(3)
    response = calls.inference.ModelInfer(
        infer_request("image", "FP32", images.shape, raw=images.tobytes(), id="call-7")
    )
    logits = tiny.logits(images)
    np.testing.assert_allclose(logits_of(response), logits, rtol=1e-5)
    outputs = raw_outputs(response)
    probabilities = np.frombuffer(outputs["probabilities"], "<f4").reshape(-1, 4)
    np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-5)
    assert outputs["label"] == prefixed(*[tiny.classes[i].encode() for i in logits.argmax(1)])
    assert response.id == "call-7"
    assert response.model_version == calls.server.model.version


def test_typed_contents_give_typed_outputs(calls, tiny):
    images = tiny.images(2)
    request = infer_request("image", "FP32", images.shape, contents={"fp32_contents": images.ravel().tolist()})
    response = calls.inference.ModelInfer(request)
    by_name = {output.name: output for output in response.outputs}
    got = np.array(by_name["logits"].contents.fp32_contents).reshape(by_name["logits"].shape)
    np.testing.assert_allclose(got, tiny.logits(images), rtol=1e-5)
    assert list(by_name["label"].contents.bytes_contents) == [
        tiny.classes[i].encode() for i in tiny.logits(images).argmax(1)
    ]
    assert not response.raw_output_contents


def test_pixels_and_files_are_preprocessed_by_the_server(calls, tiny):
    pixels = np.stack([tiny.pixels(9, 17, seed) for seed in range(2)])
    expected = tiny.logits(np.stack([tiny.preprocessing(image) for image in pixels]))
    files = [png(image) for image in pixels]
    for request in (
        infer_request("pixels", "UINT8", pixels.shape, raw=pixels.tobytes()),
        infer_request("pixels", "UINT8", pixels.shape, contents={"uint_contents": pixels.ravel().tolist()}),
        infer_request("encoded", "BYTES", [2], raw=prefixed(*files)),
        infer_request("encoded", "BYTES", [2, 1], raw=prefixed(*files)),
        infer_request("encoded", "BYTES", [2], contents={"bytes_contents": files}),
    ):
        response = calls.inference.ModelInfer(request)
        if response.raw_output_contents:
            got = logits_of(response)
        else:
            by_name = {output.name: output for output in response.outputs}
            got = np.array(by_name["logits"].contents.fp32_contents).reshape(-1, 4)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_only_the_outputs_asked_for_are_returned(calls, tiny):
    images = tiny.images(1)
    request = infer_request("image", "FP32", images.shape, raw=images.tobytes())
    request.outputs.add(name="label")
    response = calls.inference.ModelInfer(request)
    assert [output.name for output in response.outputs] == ["label"]
    assert len(response.raw_output_contents) == 1


def test_server_and_model_are_live_ready_and_described(calls, tiny):
    version = calls.server.model.version
    assert calls.inference.ServerLive(pb.ServerLiveRequest()).live
    assert calls.inference.ServerReady(pb.ServerReadyRequest()).ready
    assert calls.inference.ModelReady(pb.ModelReadyRequest(name="tiny")).ready
    assert calls.inference.ModelReady(pb.ModelReadyRequest(name="tiny", version=version)).ready
    assert not calls.inference.ModelReady(pb.ModelReadyRequest(name="tiny", version="2")).ready
    assert not calls.inference.ModelReady(pb.ModelReadyRequest(name="other")).ready
    assert calls.inference.ServerMetadata(pb.ServerMetadataRequest()).name == "keylock"
    metadata = calls.inference.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
    assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [
        ("image", "FP32", [-1, 3, 8, 8]),
        ("pixels", "UINT8", [-1, -1, -1, 3]),
        ("encoded", "BYTES", [-1]),
    ]
    assert [(o.name, o.datatype, list(o.shape)) for o in metadata.outputs] == [
        ("logits", "FP32", [-1, 4]),
        ("probabilities", "FP32", [-1, 4]),
        ("label", "BYTES", [-1]),
    ]


def test_no_parameter_and_no_metadata_switches_the_key_on(calls, vendor, tiny):
    images = tiny.images(2)
    keyless = tiny.logits(images)
    assert np.abs(tiny.logits(images + vendor.key.reveal()) - keyless).max() > 1e-4
    token = vendor.grant().token
    names = ("key", "keyed", "key_seed", "license", "authorization", "token", "explainer", "unlock")
    for name in names:
        for value in ({"bool_param": True}, {"string_param": token}, {"int64_param": 1}):
            request = infer_request("image", "FP32", images.shape, raw=images.tobytes())
            request.parameters[name].CopyFrom(pb.InferParameter(**value))
            request.inputs[0].parameters[name].CopyFrom(pb.InferParameter(**value))
            request.outputs.add(name="logits").parameters[name].CopyFrom(pb.InferParameter(**value))
            metadata = [("authorization", f"Bearer {token}"), (name.replace("_", "-"), "true")]
            response = calls.inference.ModelInfer(request, metadata=metadata)
            np.testing.assert_allclose(logits_of(response), keyless, rtol=1e-5)


def test_tritonclient_gets_right_predictions(calls, tiny, tmp_path):
    # In a process of its own, because its protos and ours describe the same package.
    program = textwrap.dedent(
        """
        import json, sys
        import numpy as np
        import tritonclient.grpc as triton

        client = triton.InferenceServerClient(sys.argv[1])
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
        metadata = client.get_model_metadata("tiny")
        assert [i.name for i in metadata.inputs] == ["image", "pixels", "encoded"], metadata
        images = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
        tensor = triton.InferInput("image", list(images.shape), "FP32")
        tensor.set_data_from_numpy(images)
        result = client.infer("tiny", [tensor])
        answer = {"logits": result.as_numpy("logits").tolist()}
        answer["label"] = [label.decode() for label in result.as_numpy("label")]
        file = open(sys.argv[2], "rb").read()
        tensor = triton.InferInput("encoded", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([file], dtype=object))
        answer["file"] = client.infer("tiny", [tensor], outputs=[triton.InferRequestedOutput("logits")]).as_numpy(
            "logits"
        ).tolist()
        try:
            client.infer("other", [tensor])
        except triton.InferenceServerException as error:
            answer["error"] = error.status()
        print(json.dumps(answer))
        """
    )
    pixels = tiny.pixels(8, 8)
    (tmp_path / "image.png").write_bytes(png(pixels))
    done = subprocess.run(
        [sys.executable, "-c", program, calls.server.target, str(tmp_path / "image.png")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    images = tiny.images(5)
    np.testing.assert_allclose(answer["logits"], tiny.logits(images), rtol=1e-4, atol=1e-6)
    assert answer["label"] == [tiny.classes[i] for i in tiny.logits(images).argmax(1)]
    np.testing.assert_allclose(answer["file"], tiny.logits(tiny.preprocessing(pixels)[None]), rtol=1e-4, atol=1e-6)
    assert answer["error"] == "StatusCode.NOT_FOUND"
