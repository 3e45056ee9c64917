"""Answers that make no sense, one change each: an error of one kind in one sentence, and never a result or a traceback.

Each row changes one thing in an answer that was good.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import license_pb2
from keylock_client import BadAnswerError, KeylockError
from keylock_client._requests import MAX_ANSWER_BYTES

NAN, INFINITE = float("nan"), float("inf")


def result(change):
    """Returns a change of the only explanation of an answer."""
    return lambda answer: change(answer.results[0])


def put(path, value):
    """Returns a change that sets a field, given by its path from an explanation."""

    def change(explanation):
        *way, last = path.split(".")
        for name in way:
            explanation = explanation[int(name)] if name.isdigit() else getattr(explanation, name)
        setattr(explanation, last, value)

    return result(change)


def data(values):
    def change(explanation):
        explanation.map.data = np.asarray(values, "<f4").tobytes()

    return result(change)


def shape(*sides):
    def change(explanation):
        explanation.map.shape[:] = sides

    return result(change)


def parameter(value):
    def change(explanation):
        explanation.explainer.parameters.fields["layer"].number_value = value

    return result(change)


def nested(answer):
    inner = answer.results[0].explainer.parameters.fields["a"].list_value
    inner.values.add().struct_value.fields["b"].number_value = NAN


def scaled(scale, offset):
    def change(explanation):
        explanation.scaling.scale, explanation.scaling.offset = scale, offset

    return result(change)


def logits(*values):
    def change(explanation):
        explanation.prediction.logits[:] = values

    return result(change)


def more_top(answer):
    for _ in range(5):
        answer.results[0].prediction.top.add(index=0, label="circle")


def time_of(seconds):
    def change(answer):
        answer.usage.charged_at.seconds = seconds

    return change


EXPLAIN = {
    "a logit that is not a number": logits(0, NAN, 2),
    "an infinite logit": logits(0, INFINITE, 2),
    "too few logits": logits(0, 2),
    "too many logits": logits(0, 1, 2, 3),
    "a probability of 7": put("prediction.probability", 7.0),
    "a negative probability": put("prediction.probability", -0.1),
    "a probability that is not a number": put("prediction.probability", NAN),
    "a class of a million": put("prediction.index", 1_000_000),
    "a class below zero": put("prediction.index", -1),
    "a label of another class": put("prediction.label", "circle"),
    "a label of no class": put("prediction.label", "\x1b[2Jstar"),
    "a target of a million": put("target.index", 1_000_000),
    "a target of another label": put("target.label", "circle"),
    "a target's probability that is not a number": put("target.probability", NAN),
    "a top class of a million": put("prediction.top.0.index", 1_000_000),
    "a top probability of 7": put("prediction.top.0.probability", 7.0),
    "six top classes": more_top,
    "a parameter that is not a number": parameter(NAN),
    "an infinite parameter": parameter(-INFINITE),
    "a parameter that is not a number, deep down": nested,
    "a map that is not a number": data([0, 1, 2, NAN, 4, 5]),
    "an infinite map": data([0, 1, 2, INFINITE, 4, 5]),
    "a negative map": data([0, 1, 2, -3, 4, 5]),
    "a map of other bytes than its shape": data([0, 1, 2, 3, 4]),
    "a map of one side": shape(6),
    "a map of three sides": shape(1, 2, 3),
    "a map without pixels": shape(0, 6),
    "a map of negative sides": shape(-2, -3),
    "a map of 2^62 pixels": shape(2**31, 2**31),
    "a map of 2^63-1": shape(2**63 - 1, 2**63 - 1),
    "a map of no type": put("map.dtype", pb.DATA_TYPE_UNSPECIFIED),
    "a map of an unknown type": put("map.dtype", 99),
    "a map of another type": put("map.dtype", pb.DATA_TYPE_UINT8),
    "a scale that is not a number": scaled(NAN, 0),
    "an infinite offset": scaled(1, INFINITE),
    "a scale that turns the map over": scaled(-1, 5),
    "a scale beyond what fits": scaled(1e300, 0),
    "no explanation": lambda answer: answer.ClearField("results"),
    "two explanations": lambda answer: answer.results.append(answer.results[0]),
    "an empty answer": lambda answer: answer.Clear(),
    "a time long after": time_of(2**62),
    "a time long before": time_of(-(2**62)),
    "a time of negative nanoseconds": lambda answer: setattr(answer.usage.resets_at, "nanos", -(2**31)),
    "a receipt that is none": lambda answer: setattr(answer, "receipt", "none"),
    "a receipt of points": lambda answer: setattr(answer, "receipt", "..."),
    "a receipt of a token": lambda answer: setattr(answer, "receipt", "eyJhbGciOiJub25lIn0.e30."),
    "a receipt of control characters": lambda answer: setattr(answer, "receipt", "\x1b[2J.\0.\n"),
    "a long receipt": lambda answer: setattr(answer, "receipt", "ey" + "a" * 2**20 + ".e30.e30"),
}


@pytest.mark.parametrize("name", EXPLAIN)
@pytest.mark.parametrize("way", ["explain", "explain_many"])
def test_a_changed_explanation_is_an_error(connect, server, toolbox, png, token, name, way):
    def change(answer):
        EXPLAIN[name](answer)
        return answer

    server.answers["Explain"] = lambda request, context: change(toolbox.explain(request, context))

    def stream(requests, context):
        next(requests)
        for request in requests:
            alone = pb.ExplainRequest(request_id="stream/0", images=[request.image.image])
            yield pb.ExplainStreamResponse(number=request.image.number, answer=change(toolbox.explain(alone, context)))

    server.answers["ExplainStream"] = stream
    client = connect(server.target, license=token, timeout_s=5)
    with pytest.raises(KeylockError) as caught:
        client.explain(png()) if way == "explain" else list(client.explain_many([png()], timeout_s=1))
    assert_told(caught.value)
    if "map of other bytes" in name or "another type" in name:
        # Of a stream, what is missing may come yet.
        return
    assert type(caught.value).__name__ in {"BadAnswerError", "BadReceiptError"}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
def test_no_explanation_of_the_table_takes_more_memory_than_two_answers(connect, server, toolbox, png, token):
    """Of client and server together, which run in one process here."""

    def memory(what):
        return int(re.search(what + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

    rows = iter([lambda answer: None, *EXPLAIN.values()])

    def explain(request, context):
        answer = toolbox.explain(request, context)
        next(rows)(answer)
        return answer

    server.answers["Explain"] = explain
    client = connect(server.target, license=token, timeout_s=5)
    client.explain(png())
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    for _ in EXPLAIN:
        with pytest.raises(KeylockError):
            client.explain(png())
    assert memory("VmHWM") - before < 2 * MAX_ANSWER_BYTES


def assert_told(error):
    assert error.message.isprintable()
    assert len(error.message) < 700
    assert ": " in error.message


def model(**fields):
    def change(answer):
        for name, value in fields.items():
            setattr(answer.preprocessing, name, value)

    return change


def mean(*values):
    def change(answer):
        answer.preprocessing.mean[:] = values

    return change


def classes(*names):
    def change(answer):
        answer.classes[:] = names

    return change


def parameter_of_explainer(answer):
    answer.explainers[0].parameters.fields["x"].number_value = NAN


MODEL = {
    "no classes": classes(),
    "one class twice": classes("a", "b", "a"),
    "a class without a name": classes("a", ""),
    "no height": model(height=0),
    "a height of millions": model(height=2**32 - 1),
    "two channels": model(channels=2),
    "an unknown way of resizing": model(resize="\x1b[2J"),
    "more bits than there are": model(bits=2**32 - 1),
    "no bits at all": model(bits=0),
    "too few means": mean(0.5),
    "a mean that is not a number": mean(0.5, NAN, 0.5),
    "no preprocessing": lambda answer: answer.ClearField("preprocessing"),
    "an explainer without a name": lambda answer: setattr(answer.explainers[0], "name", ""),
    "a parameter that is not a number": parameter_of_explainer,
    "no model": lambda answer: answer.ClearField("model"),
    "an empty answer": lambda answer: answer.Clear(),
}


@pytest.mark.parametrize("name", MODEL)
def test_a_changed_description_of_the_model_is_an_error(connect, server, png, name):
    plain = server.answers["GetModel"]

    def describe(request, context):
        answer = plain(request, context)
        MODEL[name](answer)
        return answer

    server.answers["GetModel"] = describe
    client = connect(server.target, timeout_s=5)
    for ask in (client.model, lambda: client.predict(png()), lambda: list(client.explain_many([png()]))):
        with pytest.raises(BadAnswerError) as caught:
            ask()
        assert_told(caught.value)


def raw(values):
    def change(answer):
        answer.raw_output_contents[0] = np.asarray(values, "<f4").tobytes()

    return change


def output(**fields):
    def change(answer):
        for name, value in fields.items():
            if name == "shape":
                answer.outputs[0].shape[:] = value
            else:
                setattr(answer.outputs[0], name, value)

    return change


INFER = {
    "a logit that is not a number": raw([0, NAN, 1]),
    "an infinite logit": raw([0, 3, INFINITE]),
    "too few logits": raw([0, 1]),
    "too many logits": raw([0, 1, 2, 3]),
    "no logits": raw([]),
    "no output": lambda answer: answer.ClearField("outputs"),
    "two outputs": lambda answer: answer.outputs.append(answer.outputs[0]),
    "another name": output(name="probabilities"),
    "another type": output(datatype="FP64"),
    "another shape": output(shape=[3, 1]),
    "a huge shape": output(shape=[2**62, 2**62]),
    "an empty answer": lambda answer: answer.Clear(),
}


@pytest.mark.parametrize("name", INFER)
def test_a_changed_prediction_is_an_error(connect, server, png, name):
    plain = server.answers["ModelInfer"]

    def infer(request, context):
        answer = plain(request, context)
        INFER[name](answer)
        return answer

    server.answers["ModelInfer"] = infer
    with pytest.raises(BadAnswerError) as caught:
        connect(server.target, timeout_s=5).predict(png())
    assert_told(caught.value)


@pytest.mark.parametrize("text", ["", " ", "a b", "a\nb", "\0", "\x1b[2J", "é", "a" * 9000, "=", "a=b"])
def test_an_access_token_that_is_none_is_an_error(connect, server, png, token, text):
    server.answers["ExchangeToken"] = lambda request, context: license_pb2.ExchangeTokenResponse(access_token=text)
    client = connect(server.target, license=token, exchange_tokens=True, timeout_s=5)
    for ask in (lambda: client.explain(png()), lambda: list(client.explain_many([png()])), client.license):
        with pytest.raises(BadAnswerError, match="an access token that is malformed") as caught:
            ask()
        assert_told(caught.value)


LICENSE = {
    "an end long after": lambda granted: setattr(granted.expires, "seconds", 2**62),
    "a rate that is not a number": lambda granted: setattr(granted.rate, "per_second", NAN),
    "an infinite rate": lambda granted: setattr(granted.rate, "per_second", INFINITE),
    "a negative rate": lambda granted: setattr(granted.rate, "per_second", -1),
}


@pytest.mark.parametrize("name", LICENSE)
def test_a_changed_license_is_an_error(connect, server, token, name):
    plain = server.answers["GetLicense"]

    def grant(request, context):
        answer = plain(request, context)
        LICENSE[name](answer.license)
        return answer

    server.answers["GetLicense"] = grant
    with pytest.raises(BadAnswerError) as caught:
        connect(server.target, license=token, timeout_s=5).license()
    assert_told(caught.value)


def test_a_period_of_a_quota_that_makes_no_sense_is_an_error(connect, server, token):
    answer = license_pb2.GetUsageResponse()
    answer.quotas.add(period="day", used=3).resets_at.seconds = 2**62
    server.answers["GetUsage"] = lambda request, context: answer
    with pytest.raises(BadAnswerError) as caught:
        connect(server.target, license=token, timeout_s=5).usage()
    assert_told(caught.value)


@pytest.mark.parametrize("answer", [b"\xff", b"\x08", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe", b"\0" * 1000])
@pytest.mark.parametrize("method", ["GetModel", "Explain", "ModelInfer", "ExplainStream"])
def test_bytes_that_are_no_message_are_an_error(connect, server, png, method, answer):
    def stream(requests, context):
        next(requests)
        next(requests)
        yield answer

    server.answers[method] = stream if method == "ExplainStream" else lambda request, context: answer
    client = connect(server.target, timeout_s=5)
    asks = {
        "GetModel": client.model,
        "Explain": lambda: client.explain(png()),
        "ModelInfer": lambda: client.predict(png()),
        "ExplainStream": lambda: list(client.explain_many([png()])),
    }
    with pytest.raises(BadAnswerError) as caught:
        asks[method]()
    assert_told(caught.value)


STREAM = {
    "an answer to no image": lambda good: [pb.ExplainStreamResponse(number=7, answer=good)],
    "an answer twice": lambda good: [pb.ExplainStreamResponse(number=0, answer=good)] * 2,
    "a message without content": lambda good: [pb.ExplainStreamResponse(number=0)],
    "a part that nothing begins": lambda good: [pb.ExplainStreamResponse(number=0, map_part=b"1234")],
    "an answer without a result": lambda good: [pb.ExplainStreamResponse(number=0, answer=pb.ExplainResponse())],
}


@pytest.mark.parametrize("name", STREAM)
def test_messages_out_of_order_are_an_error(connect, server, toolbox, png, name):
    def stream(requests, context):
        next(requests)
        request = next(requests)
        alone = pb.ExplainRequest(request_id="stream/0", images=[request.image.image])
        yield from STREAM[name](toolbox.explain(alone, context))
        list(requests)

    server.answers["ExplainStream"] = stream
    with pytest.raises(BadAnswerError) as caught:
        list(connect(server.target, timeout_s=5).explain_many([png(), png()]))
    assert_told(caught.value)
