"""Too much, too slow, too late, or gone: every call gets its status, nothing stays behind, and the server goes on."""

import socket
import threading
import time
from collections import Counter
from concurrent.futures import Future

import grpc
import numpy as np
import pytest
from support import details_of, wait_for

from keylock.inference import inference_pb2
from keylock.licensing import Quota
from keylock.v1 import explanation_pb2 as pb


class Gate:
    """Stands before every run of a server's model while it is shut, and counts who passes."""

    def __init__(self, calls, monkeypatch):
        self.calls, self._open, self._reached = calls, threading.Event(), threading.Event()
        self.open()
        self.runs: list[int] = []
        self.images: list[np.ndarray] = []
        model, explain = calls.server.model, calls.server.model.explain

        def gated(images, **rows):
            self._reached.set()
            self._open.wait(30)
            self.runs.append(len(images))
            self.images.append(images.copy())
            return explain(images, **rows)

        monkeypatch.setattr(model, "explain", gated)

    def shut(self):
        self._open.clear()
        self._reached.clear()

    def until_reached(self):
        """Waits until a run stands before it."""
        assert self._reached.wait(20)

    def open(self):
        self._open.set()

    @property
    def held(self):
        return self.calls.server.parts.batchers.held

    def until_held(self, rows):
        limit = time.monotonic() + 20
        while self.held != rows:
            assert time.monotonic() < limit, f"{self.held} rows are held"
            time.sleep(0.005)
        time.sleep(0.05)  # By now they have come from decoding to the queue.

    def until_waiting(self, rows):
        """Waits until so many rows are in the queue, behind those that stand before the gate."""
        batcher = self.calls.server.parts.batchers.of(self.calls.server.model)
        wait_for(lambda: batcher._dispatcher.waiting == rows)


@pytest.fixture(scope="module")
def small(start_server):
    """A server with room for 32 images, in runs of up to 8."""
    return start_server(queue=32, max_images=16, max_batch=8, run_s=60, metrics_port=0)


@pytest.fixture
def gate(small, monkeypatch, tiny):
    made = Gate(small, monkeypatch)
    small.explain(tiny.tensor_image(tiny.images(1)[0]))  # It knows how fast it is.
    made.runs.clear()
    made.images.clear()
    yield made
    made.open()
    made.until_held(0)


@pytest.fixture
def image(tiny):
    return tiny.tensor_image(tiny.images(1)[0])


def begin(calls, images, *, token=None, timeout=30.0) -> "Future[pb.ExplainResponse]":
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    return calls.explanation.Explain.future(pb.ExplainRequest(images=images), metadata=metadata, timeout=timeout)


def code_of(task) -> str:
    error = task.exception()
    return "OK" if error is None else error.code().name


def test_ten_times_the_queue_is_refused_with_a_time_to_come_again(small, gate, vendor, image):
    tokens = [None, vendor.grant().token, vendor.grant().token]
    gate.shut()
    tasks = [begin(small, [image], token=tokens[i % 3]) for i in range(320)]
    limit = time.monotonic() + 20
    while sum(task.done() for task in tasks) + gate.held < 320:
        assert time.monotonic() < limit
        time.sleep(0.01)
    # Whoever comes first takes what it leaves free, and there is room for a next one still.
    accepted = gate.held
    assert 20 <= accepted <= 28
    refused = [task.exception() for task in tasks if task.done()]
    assert {error.code() for error in refused} == {grpc.StatusCode.UNAVAILABLE}
    for error in refused:
        assert 50 <= int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) <= 10_000
    assert details_of(refused[0])["ErrorInfo"].reason == "OVERLOADED"
    gate.open()
    assert Counter(code_of(task) for task in tasks) == {"OK": accepted, "UNAVAILABLE": 320 - accepted}
    gate.until_held(0)
    assert begin(small, [image] * 16, token=tokens[1]).result().results


def test_a_party_with_much_does_not_keep_another_waiting(small, gate, vendor, image, tiny):
    much, little = vendor.grant().token, vendor.grant().token
    other = tiny.images(1, seed=9)[0]
    gate.shut()
    first = [begin(small, [image] * 5, token=much)]
    gate.until_reached()
    first += [begin(small, [image] * 5, token=much) for _ in range(2)]
    gate.until_waiting(10)
    last = begin(small, [tiny.tensor_image(other)], token=little)
    gate.until_waiting(11)
    gate.open()
    assert all(task.result().results for task in (*first, last))
    # The first run was under way; the next one has the other's image in it.
    holding = [any(np.array_equal(row, other) for row in rows) for rows in gate.images]
    assert holding == [False, True, False]
    assert gate.runs == [5, 8, 3]


def test_a_call_that_is_cancelled_in_the_queue_does_not_run_and_costs_nothing(small, gate, vendor, image):
    token = vendor.grant(quota=Quota(total=5)).token
    gate.shut()
    running = begin(small, [image])
    gate.until_held(1)
    waiting = begin(small, [image] * 5, token=token)
    gate.until_held(6)
    waiting.cancel()
    gate.until_held(1)
    gate.open()
    assert running.result().results
    # All of the quota is there again.
    assert begin(small, [image] * 5, token=token).result().usage.units == 5
    assert gate.runs == [1, 5]


def test_a_deadline_that_comes_in_the_queue_is_kept_and_costs_nothing(small, gate, vendor, image):
    token = vendor.grant(quota=Quota(total=2)).token
    gate.shut()
    running = begin(small, [image])
    gate.until_held(1)
    late = begin(small, [image] * 2, token=token, timeout=0.3)
    assert late.exception().code() == grpc.StatusCode.DEADLINE_EXCEEDED
    gate.until_held(1)
    gate.open()
    assert running.result().results
    assert begin(small, [image] * 2, token=token).result().usage.units == 2
    assert gate.runs == [1, 2]


def test_deadlines_of_a_millisecond_leave_nothing_behind(small, gate, vendor, image):
    token = vendor.grant(quota=Quota(total=400)).token
    tasks = [begin(small, [image], token=token if i % 2 else None, timeout=0.001) for i in range(200)]
    counted = Counter(code_of(task) for task in tasks)
    assert set(counted) <= {"OK", "DEADLINE_EXCEEDED", "UNAVAILABLE"}
    assert counted["DEADLINE_EXCEEDED"] > 100
    gate.until_held(0)
    # What was set aside for calls that were given up is there again, soon after.
    limit = time.monotonic() + 10
    while begin(small, [image], token=token).result().usage.remaining < 400 - 102:
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_clients_that_send_slowly_or_stop_halfway_keep_nobody_waiting(small, gate, image):
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    half_of_a_header_frame = b"\x00\x10\x00\x01\x04\x00\x00\x00\x01\x82\x86"
    lazy = []
    for i in range(60):
        lazy.append(socket.create_connection((small.server.host, small.server.port)))
        lazy[-1].sendall((b"", preface[:10], preface + settings, preface + settings + half_of_a_header_frame)[i % 4])
    started = time.monotonic()
    assert all(begin(small, [image], timeout=10).result().results for _ in range(20))
    assert time.monotonic() - started < 10
    assert gate.held == 0
    for connection in lazy:
        connection.close()
    assert begin(small, [image]).result().results


def test_images_of_several_shapes_in_one_request_are_refused_by_name(small, gate, tiny, image):
    odd = tiny.tensor_image(np.zeros((3, 8, 9), np.float32))
    error = begin(small, [image, odd, image]).exception()
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "[3, 8, 8]" in error.details() or "(3, 8, 8)" in error.details()
    assert details_of(error)["BadRequest"].field_violations[0].field == "images[1]"
    assert gate.runs == []


def test_predictions_and_explanations_are_bounded_together(small, gate, image, tiny):
    gate.shut()
    explanations = [begin(small, [image] * 8) for _ in range(2)]
    gate.until_held(16)
    images = tiny.images(1)
    request = inference_pb2.ModelInferRequest(model_name="tiny")
    request.inputs.add(name="image", datatype="FP32", shape=images.shape)
    request.raw_input_contents.append(images.tobytes())
    with pytest.raises(grpc.RpcError) as caught:
        small.inference.ModelInfer(request)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    gate.open()
    assert [len(task.result().results) for task in explanations] == [8, 8]
    assert small.inference.ModelInfer(request).outputs
