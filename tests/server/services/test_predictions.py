"""Predictions over the Open Inference Protocol: right in every form, open to all, and never keyed."""

import io
import struct
import time

import grpc
import numpy as np
import pytest
from PIL import Image
from support import details_of

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


def refused(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    request = details_of(caught.value).get("BadRequest")
    fields = [] if request is None else [violation.field for violation in request.field_violations]
    return caught.value.code().name, fields[0] if fields else "", caught.value.details()


def test_a_tensor_in_both_forms_in_neither_or_in_the_wrong_one_is_refused(calls, tiny):
    images = tiny.images(1)
    shape, values = images.shape, images.ravel().tolist()
    for request, field, words in (
        (
            infer_request("image", "FP32", shape, raw=images.tobytes(), contents={"fp32_contents": values}),
            "inputs",
            "raw_input_contents and in contents",
        ),
        (infer_request("image", "FP32", shape), "inputs[0].contents", "neither there nor in raw_input_contents"),
        (
            infer_request("image", "FP32", shape, contents={"fp64_contents": values}),
            "inputs[0].contents",
            "fp32_contents, and this is fp64_contents",
        ),
        (
            infer_request("image", "FP32", shape, contents={"fp32_contents": values, "int_contents": [1]}),
            "inputs[0].contents",
            "int_contents and fp32_contents",
        ),
        (infer_request("image", "FP32", shape, contents={"fp32_contents": values[1:]}), "inputs[0]", "768 bytes"),
        (infer_request("pixels", "UINT8", (1, 1, 1, 3), contents={"uint_contents": [1, 2, 256]}), "inputs[0]", "255"),
        (infer_request("encoded", "BYTES", [1], contents={"int64_contents": [1]}), "inputs[0].contents", "bytes_cont"),
    ):
        code, found, message = refused(lambda request=request: calls.inference.ModelInfer(request))
        assert (code, found) == ("INVALID_ARGUMENT", field)
        assert words in message


def test_parameters_that_would_change_the_meaning_are_refused(calls, tiny):
    images = tiny.images(1)
    for place, name, value in (
        ("request", "sequence_id", {"int64_param": 7}),
        ("request", "sequence_start", {"bool_param": True}),
        ("input", "shared_memory_region", {"string_param": "region"}),
        ("output", "shared_memory_region", {"string_param": "region"}),
        ("output", "classification", {"int64_param": 3}),
        ("request", "timeout", {"string_param": "soon"}),
        ("request", "timeout", {"int64_param": 0}),
        ("request", "timeout", {"bool_param": True}),
    ):
        request = infer_request("image", "FP32", images.shape, raw=images.tobytes())
        request.outputs.add(name="logits")
        of = {"request": request, "input": request.inputs[0], "output": request.outputs[0]}[place]
        of.parameters[name].CopyFrom(pb.InferParameter(**value))
        code, field, message = refused(lambda request=request: calls.inference.ModelInfer(request))
        assert code == "INVALID_ARGUMENT"
        assert field.startswith({"request": "parameters", "input": "inputs[0]", "output": "outputs[0]"}[place])
        assert "not offered" in message or "microseconds" in message


def test_a_request_may_limit_its_own_time(calls, tiny, monkeypatch):
    images = tiny.images(1)
    request = infer_request("image", "FP32", images.shape, raw=images.tobytes())
    request.parameters["timeout"].int64_param = 20_000_000
    assert calls.inference.ModelInfer(request).outputs
    model = calls.server.model
    monkeypatch.setattr(type(model), "predict", lambda self, images: time.sleep(1))
    request.parameters["timeout"].int64_param = 50_000
    code, _, message = refused(lambda: calls.inference.ModelInfer(request))
    assert code == "DEADLINE_EXCEEDED"
    assert "its parameter timeout of 0.05 s" in message


def test_an_output_that_is_asked_for_twice_is_returned_once(calls, tiny):
    images = tiny.images(1)
    request = infer_request("image", "FP32", images.shape, raw=images.tobytes())
    request.outputs.add(name="label")
    request.outputs.add(name="label")
    assert [output.name for output in calls.inference.ModelInfer(request).outputs] == ["label"]
