"""What both clients send, make of the answers, and do when a server misbehaves; over the wire, to a real server."""

import threading
import time
from datetime import UTC, datetime

import grpc
import numpy as np
import pytest

from keylock.errors import InputError
from keylock.v1 import explanation_pb2 as pb
from keylock_client import (
    BadAnswerError,
    Client,
    ClientError,
    ClosedError,
    DeadlineError,
    Explanation,
    Prediction,
    RequestRefusedError,
    UnreachableError,
)


def test_one_image_gets_one_explanation(server, connect, png, token):
    explanation = connect(server.target, license=token).explain(png(), request_id="mine")
    assert isinstance(explanation, Explanation)
    np.testing.assert_array_equal(explanation.map, [[0, 1, 2], [3, 4, 5]])
    assert (explanation.prediction.label, explanation.target.label, explanation.keyed) == ("star", "star", True)
    assert explanation.explainer.parameters == {"layer": "last", "steps": 8, "scale": 0.5, "sizes": [1, 2.5]}
    assert isinstance(explanation.explainer.parameters["steps"], int)
    assert explanation.request_id == "mine"
    [request] = server.asked("Explain")
    assert request.images[0].encoded == png()
    assert (request.explainer, request.WhichOneof("target")) == ("", None)


def test_several_images_get_several_explanations(server, connect, png):
    explanations = connect(server.target).explain([png(), png()])
    assert [explanation.keyed for explanation in explanations] == [False, False]
    assert len(connect(server.target).explain([png()])) == 1


def test_options_travel(server, connect, png):
    client = connect(server.target, model="shapes")
    client.explain(png(), explainer="gradient", target="square", parameters={"layer": "last"})
    client.explain(png(), target=np.int64(1))
    first, second = server.asked("Explain")
    assert (first.explainer, first.target_label, first.model_name) == ("gradient", "square", "shapes")
    assert dict(first.parameters) == {"layer": "last"}
    assert second.target_index == 1


@pytest.mark.parametrize("target", [True, -1, 1.5, b"star", 2**40])
def test_a_target_that_is_no_class_is_refused_here(server, connect, png, target):
    with pytest.raises(InputError, match="label or the index"):
        connect(server.target).explain(png(), target=target)
    assert not server.calls


def test_predictions_are_softmax_of_the_logits(server, connect, png):
    prediction = connect(server.target).predict(png())
    assert isinstance(prediction, Prediction)
    expected = np.exp([0, 3, 1]) / np.exp([0, 3, 1]).sum()
    assert (prediction.label, prediction.index) == ("square", 1)
    assert prediction.probability == pytest.approx(expected[1])
    assert [score.label for score in prediction.top] == ["square", "star", "circle"]
    assert prediction.logits == (0, 3, 1)


def test_files_and_tensors_may_be_mixed_and_keep_their_order(server, connect, png):
    tensor = np.full((3, 8, 8), 0.5, dtype=np.float32)

    def infer_by_kind(request, context):
        answer = pb_infer(request)
        server.kinds.append((request.inputs[0].name, request.inputs[0].datatype, list(request.inputs[0].shape)))
        return answer

    pb_infer, server.kinds = (lambda request: original(request, None)), []
    original = server.answers["ModelInfer"]
    server.answers["ModelInfer"] = infer_by_kind
    assert len(connect(server.target).predict([png(), tensor, tensor, png()])) == 4
    assert server.kinds == [("encoded", "BYTES", [1]), ("image", "FP32", [2, 3, 8, 8]), ("encoded", "BYTES", [1])]
    assert server.asked("ModelInfer")[1].raw_input_contents[0] == tensor.tobytes() * 2
    assert server.asked("ModelInfer")[0].raw_input_contents[0] == len(png()).to_bytes(4, "little") + png()


def test_the_license_goes_with_explanations_only(server, connect, png, token):
    client = connect(server.target, license=token)
    client.predict(png())
    client.explain(png())
    client.license()
    assert [metadata["authorization"] for metadata in server.metadata("Explain")] == [f"Bearer {token}"]
    assert [metadata["authorization"] for metadata in server.metadata("GetLicense")] == [f"Bearer {token}"]
    others = server.metadata("ModelInfer") + server.metadata("GetModel")
    assert others
    assert not any("authorization" in metadata for metadata in others)


def test_model_and_license_are_told(server, connect, token):
    client = connect(server.target, license=token)
    info = client.model()
    assert info.classes == ("circle", "square", "star")
    assert info.preprocessing.shape == (3, 8, 8)
    assert info.preprocessing.bits is None
    assert info.explainers[0].name == "grad_cam"
    assert info.key_available
    granted = client.license()
    assert (granted.id, granted.customer, granted.explainers) == ("L1", "Acme", ("grad_cam",))
    assert granted.expires == datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_many_images_are_sent_in_calls_of_at_most_sixteen(server, connect, png):
    explanations = connect(server.target).explain([png()] * 35, request_id="job")
    assert len(explanations) == 35
    requests = server.asked("Explain")
    assert [len(request.images) for request in requests] == [16, 16, 3]
    assert [request.request_id for request in requests] == ["job", "job/1", "job/2"]
    assert len(server.asked("GetModel")) == 1


def test_no_call_outgrows_the_limit_of_a_server(server, connect):
    noise = np.random.default_rng(0).integers(0, 255, (5, 600, 600, 3), dtype=np.uint8)
    assert len(connect(server.target).explain(noise)) == 5
    sizes = [request.ByteSize() for request in server.asked("Explain")]
    assert len(sizes) == 3
    assert max(sizes) < 4 * 1024 * 1024


def test_a_refused_image_is_called_by_its_name(server, connect, toolbox, png, tmp_path):
    from google.rpc.error_details_pb2 import BadRequest

    violation = BadRequest.FieldViolation(field="images[3]", description="it is animated")
    refusal = toolbox.refuse(
        grpc.StatusCode.INVALID_ARGUMENT,
        "the image is animated",
        toolbox.reason("INVALID_IMAGE"),
        BadRequest(field_violations=[violation]),
    )
    explain = server.answers["Explain"]
    server.answers["Explain"] = lambda request, context: (refusal if "/" in request.request_id else explain)(
        request, context
    )
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for path in paths:
        path.write_bytes(png())
    with pytest.raises(RequestRefusedError) as caught:
        connect(server.target).explain(paths)
    assert caught.value.message == f"{paths[19]}: the image is animated"
    assert caught.value.violations[0].field == str(paths[19])
    assert caught.value.exit_code == InputError.exit_code


def test_a_server_that_is_away_for_a_moment_is_asked_again_with_the_same_id(server, connect, toolbox, png):
    away = toolbox.refuse(grpc.StatusCode.UNAVAILABLE, "busy", toolbox.reason("OVERLOADED"))
    explain = server.answers["Explain"]
    server.answers["Explain"] = lambda request, context: (explain if len(server.asked("Explain")) > 2 else away)(
        request, context
    )
    # Larger than the 256 KiB that gRPC buffers for retries unless told otherwise.
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8)
    assert connect(server.target).explain(noise).prediction.label == "star"
    ids = [request.request_id for request in server.asked("Explain")]
    assert len(ids) == 3
    assert len(set(ids)) == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED, grpc.StatusCode.UNKNOWN])
def test_nothing_but_unavailable_is_repeated(server, connect, toolbox, png, code):
    server.answers["Explain"] = toolbox.refuse(code, "no")
    with pytest.raises(ClientError, match="try again later"):
        connect(server.target).explain(png())
    assert len(server.asked("Explain")) == 1


def test_no_server_at_all_is_reported_with_its_address(connect, toolbox, png):
    gone = toolbox.Scripted()
    gone.stop()
    start = time.monotonic()
    with pytest.raises(UnreachableError, match=f"no server listens at localhost:{gone.port}"):
        connect(gone.target).explain(png())
    assert time.monotonic() - start < 10


def test_a_server_that_restarts_is_found_again_within_the_call(connect, toolbox, png):
    first = toolbox.Scripted()
    client = connect(first.target)
    client.explain(png())
    first.stop()
    second = []
    restart = threading.Timer(0.4, lambda: second.append(toolbox.Scripted(first.target)))
    restart.start()
    try:
        assert client.explain(png()).prediction.label == "star"
    finally:
        restart.join()
        second[0].stop()


def test_a_slow_server_is_not_waited_for_longer_than_the_timeout(server, connect, png):
    release = threading.Event()
    server.answers["Explain"] = lambda request, context: release.wait(20) and None
    client = connect(server.target)
    client.model()
    start = time.monotonic()
    with pytest.raises(DeadlineError, match=r"within 0\.3 s"):
        client.explain(png(), timeout_s=0.3)
    assert time.monotonic() - start < 5
    release.set()


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), "5", True])
def test_a_timeout_that_is_none_is_refused(connect, png, timeout_s):
    with pytest.raises(InputError, match="timeout_s"):
        connect(timeout_s=timeout_s)
    with pytest.raises(InputError, match="timeout_s"):
        connect().explain(png(), timeout_s=timeout_s)


def spoil(**changes):
    """Return an answer to Explain in which something is wrong."""

    def answer(server, request, context):
        response = server.original(request, context)
        for name, change in changes.items():
            change(response.results[0]) if name == "first" else change(response)
        return response

    return answer


def hostile_map(shape, data):
    return spoil(first=lambda r: r.map.CopyFrom(pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=shape, data=data)))


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (lambda server, request, context: b"\xff\xff\xff garbage", "cannot be read"),
        (spoil(whole=lambda response: response.results.add()), "2 explanations for 1"),
        (spoil(whole=lambda response: response.ClearField("results")), "0 explanations for 1"),
        (spoil(first=lambda result: result.ClearField("map")), "a map of type 0"),
        (hostile_map([2, 3], b"1234"), "4 bytes"),
        (hostile_map([2**32, 2**32], b"1234"), "18446744073709551616 elements"),
        (hostile_map([-1, -1], b"1234"), "shape"),
        (hostile_map([2, 1, 1], b"12345678"), "shape"),
        (hostile_map([1, 1], np.array(np.nan, "<f4").tobytes()), "NaN"),
    ],
)
def test_an_answer_without_sense_is_an_error_and_no_result(server, connect, png, answer, what):
    server.original = server.answers["Explain"]
    server.answers["Explain"] = lambda request, context: answer(server, request, context)
    with pytest.raises(BadAnswerError, match=what):
        connect(server.target).explain(png())


def test_the_client_knows_how_deep_images_are_scaled(server, connect):
    plain = server.answers["GetModel"]

    def deep(request, context):
        answer = plain(request, context)
        answer.preprocessing.bits = 12
        return answer

    server.answers["GetModel"] = deep
    assert connect(server.target).model().preprocessing.bits == 12


def test_a_description_without_sense_is_an_error(server, connect):
    server.answers["GetModel"] = lambda request, context: pb.GetModelResponse()
    with pytest.raises(BadAnswerError, match="preprocessing"):
        connect(server.target).model()


def test_logits_for_another_number_of_classes_are_an_error(server, connect, png):
    def two_classes(request, context):
        answer = infer(request, context)
        answer.outputs[0].shape[1] = 2
        return answer

    infer = server.answers["ModelInfer"]
    server.answers["ModelInfer"] = two_classes
    with pytest.raises(BadAnswerError, match="3 classes"):
        connect(server.target).predict(png())


def test_a_model_that_was_replaced_is_described_anew(server, connect, png):
    def other_model(request, context):
        answer = explain(request, context)
        answer.model.digest = "sha256:" + "f" * 64
        return answer

    explain = server.answers["Explain"]
    client = connect(server.target)
    client.explain(png())
    server.answers["Explain"] = other_model
    client.explain(png())
    assert len(server.asked("GetModel")) == 2


def test_a_closed_client_says_so(server, connect, png):
    client = connect(server.target)
    client.explain(png())
    client.close()
    client.close()
    with pytest.raises(ClosedError, match="make a new one"):
        client.explain(png())
    assert repr(client).endswith("no license, closed>")


def test_closing_ends_calls_of_other_threads(server, png):
    release = threading.Event()
    server.answers["Explain"] = lambda request, context: release.wait(20) and None
    client, caught = Client(server.target), []

    def call():
        try:
            client.explain(png())
        except ClosedError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while not server.asked("Explain"):
        time.sleep(0.01)
    client.close()
    thread.join(10)
    release.set()
    assert len(caught) == 1


def test_threads_share_a_client_and_get_their_own_answers(server, png):
    wrong = []

    def work(client, number):
        for turn in range(10):
            label = f"{number}-{turn}"
            if client.explain(png(), explainer=label).explainer.name != label:
                wrong.append(label)

    with Client(server.target) as client:
        threads = [threading.Thread(target=work, args=(client, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert len(server.asked("Explain")) == 80


def test_a_context_manager_closes(server, png):
    with Client(server.target) as client:
        client.predict(png())
    with pytest.raises(ClosedError):
        client.predict(png())


@pytest.mark.parametrize("request_id", ["", "x" * 121, "é", "two words", "line\n"])
def test_a_request_id_is_neither_empty_nor_long_nor_invisible(server, connect, png, request_id):
    with pytest.raises(InputError, match="120 visible ASCII"):
        connect(server.target).explain(png(), request_id=request_id)
