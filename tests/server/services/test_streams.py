"""Streams of images: answered as they are ready, each charged once, bounded, and ended with a reason."""

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from support import bearer, books, details_of, wait_for

from keylock.licensing import Quota, Rate
from keylock.store import LicenseStore
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import license_pb2


def start(total=None, progress_every_s=0, **options):
    options = pb.ExplainRequest(**options)
    begun = pb.ExplainStreamStart(options=options, total=total, progress_every_s=progress_every_s)
    return pb.ExplainStreamRequest(start=begun)


def numbered(number, image):
    return pb.ExplainStreamRequest(image=pb.ExplainStreamImage(number=number, image=image))


def ask(calls, messages, *, token=None, timeout=30):
    return list(calls.explanation.ExplainStream(iter(messages), metadata=bearer(token), timeout=timeout))


def used(calls, token):
    answer = calls.license.GetUsage(license_pb2.GetUsageRequest(), metadata=bearer(token), timeout=20)
    return {window.period: window.used for window in answer.quotas}["total"]


def refused(stream):
    """Reads a stream that the server ends; returns the sorted numbers of its answers, and why it ended."""
    got = []
    with pytest.raises(grpc.RpcError) as caught:
        got.extend(iter(stream.next, None))
    return sorted(answer.number for answer in got), reason_of(caught.value)


def reason_of(error):
    return error.code().name, details_of(error)["ErrorInfo"].reason


@pytest.fixture
def images(tiny):
    return tiny.images(7)


@pytest.fixture
def messages(images, tiny):
    return [numbered(number, tiny.tensor_image(image)) for number, image in enumerate(images)]


def test_every_image_is_answered_with_its_own_map_and_the_progress(calls, vendor, images, messages, tiny):
    granted = vendor.grant(quota=Quota(total=10))
    answers = ask(calls, [start(total=7, request_id="s"), *messages], token=granted.token)
    assert sorted(answer.number for answer in answers) == list(range(7))
    keyed = tiny.maps(images + vendor.key.reveal(), np.full(7, -1))
    for answer in answers:
        one = answer.answer
        np.testing.assert_allclose(tiny.to_array(one.results[0].map), keyed[answer.number], rtol=1e-4, atol=1e-6)
        assert one.results[0].keyed
        assert (one.request_id, one.usage.units) == (f"s/{answer.number}", 1)
    assert [answer.progress.answered for answer in answers] == list(range(1, 8))
    assert answers[-1].progress == pb.Progress(received=7, answered=7, failed=0, total=7)
    assert used(calls, granted.token) == 7


def test_a_stream_that_is_sent_again_costs_nothing_and_gives_the_same(calls, vendor, messages):
    granted = vendor.grant()
    first = ask(calls, [start(request_id="s"), *messages[:4]], token=granted.token)
    again = ask(calls, [start(request_id="s"), *messages], token=granted.token)
    assert used(calls, granted.token) == 7
    replayed = {answer.number: answer.answer for answer in again}
    assert [replayed[number].usage.replayed for number in range(7)] == [True] * 4 + [False] * 3
    for answer in first:
        assert replayed[answer.number].results == answer.answer.results


def test_without_a_license_the_stream_is_of_decoys_and_has_an_id(calls, messages, images, tiny):
    answers = ask(calls, [start(), *messages])
    decoys = tiny.maps(images, np.full(7, -1))
    ids = {answer.answer.request_id.partition("/")[0] for answer in answers}
    assert len(ids) == 1
    for answer in answers:
        (result,) = answer.answer.results
        assert not result.keyed
        np.testing.assert_allclose(tiny.to_array(result.map), decoys[answer.number], rtol=1e-4, atol=1e-6)


def test_an_image_that_cannot_be_explained_does_not_end_the_others(calls, vendor, messages):
    granted = vendor.grant()
    bad = [numbered(7, pb.Image(encoded=b"no image")), numbered(8, pb.Image())]
    answers = ask(calls, [start(request_id="s", target_index=1), *messages, *bad], token=granted.token)
    failures = {answer.number: answer.failure for answer in answers if answer.HasField("failure")}
    assert set(failures) == {7, 8}
    info = error_details_pb2.ErrorInfo()
    assert failures[7].details[0].Unpack(info)
    assert info.reason == "INVALID_IMAGE"
    assert answers[-1].progress.failed == 2
    # What was set aside for an image that failed is given back a moment after its answer.
    wait_for(lambda: used(calls, granted.token) == 7)


def test_an_id_that_stands_for_another_image_is_the_failure_of_that_image(calls, vendor, messages, tiny):
    granted = vendor.grant()
    ask(calls, [start(request_id="s"), messages[0]], token=granted.token)
    other = numbered(0, tiny.tensor_image(tiny.images(1, seed=9)[0]))
    answers = ask(calls, [start(request_id="s"), other, messages[1]], token=granted.token)
    (failure,) = (answer.failure for answer in answers if answer.number == 0)
    assert failure.code == grpc.StatusCode.ALREADY_EXISTS.value[0]
    assert [answer.HasField("answer") for answer in answers if answer.number == 1] == [True]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"explainer": "nothing"}, ("NOT_FOUND", "UNKNOWN_NAME")),
        ({"model_name": "nothing"}, ("NOT_FOUND", "UNKNOWN_NAME")),
        ({"target_index": 4}, ("INVALID_ARGUMENT", "INVALID_INPUT")),
        ({"images": [pb.Image()]}, ("INVALID_ARGUMENT", "INVALID_INPUT")),
        ({"request_id": "x" * 118}, ("INVALID_ARGUMENT", "INVALID_INPUT")),
        ({"request_id": "a b"}, ("INVALID_ARGUMENT", "INVALID_INPUT")),
        ({"answer": pb.AnswerOptions(map_dtype=9)}, ("INVALID_ARGUMENT", "INVALID_INPUT")),
        ({"answer": pb.AnswerOptions(compression=9)}, ("INVALID_ARGUMENT", "INVALID_INPUT")),
        ({"answer": pb.AnswerOptions(max_bytes=1)}, ("INVALID_ARGUMENT", "INVALID_INPUT")),
    ],
    ids=str,
)
def test_wrong_options_end_the_stream_at_once(calls, messages, options, expected):
    with pytest.raises(grpc.RpcError) as caught:
        ask(calls, [start(**options), *messages])
    assert reason_of(caught.value) == expected


def test_a_target_without_a_license_ends_the_stream_at_once(calls, open_targets, messages):
    options = start(target_label="south-west")
    with pytest.raises(grpc.RpcError) as caught:
        ask(calls, [options, *messages])
    assert reason_of(caught.value) == ("UNAUTHENTICATED", "TARGET_NEEDS_LICENSE")
    (violation,) = details_of(caught.value)["BadRequest"].field_violations
    assert violation.field == "start.options.target_label"
    assert {one.answer.results[0].target.index for one in ask(open_targets, [options, *messages])} == {2}


def test_messages_out_of_place_are_refused(calls, messages):
    for wrong in (
        [],
        messages,
        [start(), start()],
        [start(), pb.ExplainStreamRequest()],
        [start(), messages[1], messages[1]],
        [start(), messages[1], messages[0]],
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ask(calls, wrong)
        assert reason_of(caught.value) == ("INVALID_ARGUMENT", "INVALID_INPUT")


def test_a_license_that_is_not_good_ends_the_stream(calls, vendor, messages):
    for token, expected in (
        ("nonsense", ("UNAUTHENTICATED", "LICENSE_MALFORMED")),
        (vendor.grant(models=("other",)).token, ("PERMISSION_DENIED", "LICENSE_WRONG_MODEL")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ask(calls, [start(), *messages], token=token)
        assert reason_of(caught.value) == expected


def test_a_spent_quota_ends_the_stream_after_what_it_paid_for(calls, vendor, messages):
    granted = vendor.grant(quota=Quota(total=3))
    answers = calls.explanation.ExplainStream(iter([start(), *messages]), metadata=bearer(granted.token), timeout=20)
    got = []
    with pytest.raises(grpc.RpcError) as caught:
        got.extend(iter(answers.next, None))
    assert reason_of(caught.value) == ("RESOURCE_EXHAUSTED", "QUOTA_SPENT")
    assert len(got) == used(calls, granted.token) == 3


def test_a_stream_waits_where_a_license_is_used_too_fast(calls, vendor, messages, tiny, start_server):
    # The clock of this server goes on, so that the bucket of the license is filled again.
    began = time.monotonic()
    calls = start_server(now=lambda: tiny.now + timedelta(seconds=time.monotonic() - began))
    granted = vendor.grant(rate=Rate(per_second=10, burst=2))
    answers = ask(calls, [start(), *messages], token=granted.token)
    assert len(answers) == 7
    assert time.monotonic() - began > 0.3
    calls.stop().result(timeout=30)


class Feed:
    """Messages that are sent when the test says so."""

    def __init__(self, *messages):
        self._queue = queue.Queue()
        self.send(*messages)

    def send(self, *messages):
        for message in messages:
            self._queue.put(message)

    def end(self):
        self._queue.put(None)

    def __iter__(self):
        return iter(self._queue.get, None)


@pytest.fixture
def held(start_server, store_url, monkeypatch):
    """A server on each database whose explanations wait until they are let go."""
    go = threading.Event()
    calls = start_server(license_store=store_url, stream_in_flight=3)
    model = calls.server.model
    real = type(model).explain

    def wait(self, *arguments, **options):
        if self is model:
            go.wait(20)
        return real(self, *arguments, **options)

    monkeypatch.setattr(type(model), "explain", wait)
    with LicenseStore(store_url) as store:
        yield calls, store, go
    go.set()
    calls.stop(drain_s=0).result(timeout=30)


def test_cancelling_releases_what_was_not_answered(held, vendor, messages):
    calls, store, go = held
    granted = vendor.grant(quota=Quota(total=10), store=store)
    feed = Feed(start(request_id="s"), *messages)
    stream = calls.explanation.ExplainStream(iter(feed), metadata=bearer(granted.token), timeout=30)
    wait_for(lambda: books(store)[2] == 3)
    stream.cancel()
    wait_for(lambda: books(store) == (0, 0, 0))
    go.set()
    feed.end()
    wait_for(lambda: calls.server.parts.running.count == 0)
    assert books(store) == (0, 0, 0)
    answers = ask(calls, [start(request_id="s"), *messages], token=granted.token)
    assert len(answers) == 7
    assert books(store) == (7, 7, 0)


def test_a_license_that_is_revoked_under_way_ends_the_stream(held, vendor, messages):
    calls, store, go = held
    granted = vendor.grant(store=store)
    feed = Feed(start(), *messages)
    stream = calls.explanation.ExplainStream(iter(feed), metadata=bearer(granted.token), timeout=30)
    wait_for(lambda: books(store)[2] == 3)
    store.revoke(granted.id, at=granted.license.issued_at)
    go.set()
    # What was under way was good when it began.
    assert refused(stream) == ([0, 1, 2], ("UNAUTHENTICATED", "LICENSE_REVOKED"))
    assert books(store) == (3, 3, 0)
    feed.end()


def test_no_more_images_are_taken_up_than_are_answered(held, vendor, messages):
    calls, store, go = held
    granted = vendor.grant(store=store)
    feed = Feed(start(), *messages)
    feed.end()
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(ask, calls, feed, token=granted.token)
        wait_for(lambda: books(store)[2] == 3)
        time.sleep(0.3)
        assert books(store)[2] == 3
        go.set()
        assert len(answers.result(timeout=30)) == 7


def test_a_server_that_stops_answers_what_is_under_way(held, vendor, messages):
    calls, store, go = held
    granted = vendor.grant(store=store)
    feed = Feed(start(request_id="s"), *messages)
    stream = calls.explanation.ExplainStream(iter(feed), metadata=bearer(granted.token), timeout=30)
    wait_for(lambda: books(store)[2] == 3)
    stopping = calls.stop(drain_s=20)
    time.sleep(0.2)
    go.set()
    assert refused(stream) == ([0, 1, 2], ("UNAVAILABLE", "LEAVING"))
    assert books(store) == (3, 3, 0)
    stopping.result(timeout=30)
    feed.end()


def test_a_stream_on_which_nothing_moves_is_ended(start_server, messages):
    calls = start_server(deadline_s=2)
    feed = Feed(start(), messages[0])
    stream = calls.explanation.ExplainStream(iter(feed), timeout=20)
    assert stream.next().number == 0
    with pytest.raises(grpc.RpcError) as caught:
        stream.next()
    assert reason_of(caught.value) == ("DEADLINE_EXCEEDED", "DEADLINE")
    feed.end()
    calls.stop().result(timeout=30)


@pytest.mark.parametrize(("every_s", "expected"), [(1, 2), (0, 0)])
def test_a_quiet_stream_says_how_far_it_is_where_that_is_asked_for(held, messages, every_s, expected):
    calls, _, go = held
    feed = Feed(start(total=4, progress_every_s=every_s), *messages[:2])
    began = time.monotonic()
    stream = calls.explanation.ExplainStream(iter(feed), timeout=30)
    quiet = [stream.next().progress for _ in range(expected)]
    assert time.monotonic() - began > 0.9 * expected
    assert {one.total for one in quiet} <= {4}
    assert quiet[-1:] == [pb.Progress(received=2, total=4)] * (expected > 0)
    if not expected:
        time.sleep(1.5)
    go.set()
    # On a busy machine it may say so once more before it goes on.
    while (message := stream.next()).WhichOneof("outcome") is None:
        assert expected
    feed.end()
    # Answers without a license wait, each for a time of its own, so that the second may be there first.
    assert sorted([message.number, *(one.number for one in stream)]) == [0, 1]


def test_a_stream_that_says_how_far_it_is_ends_as_one_on_which_nothing_moves(start_server, messages):
    calls = start_server(deadline_s=4.5)
    feed = Feed(start(progress_every_s=1), messages[0])
    stream = calls.explanation.ExplainStream(iter(feed), timeout=20)
    said = []
    with pytest.raises(grpc.RpcError) as caught:
        said.extend(one.WhichOneof("outcome") for one in stream)
    # Four times, or fewer on a busy machine; what it says does not begin its time anew.
    assert said[:2] == ["answer", None]
    assert said[1:] == [None] * len(said[1:])
    assert len(said) <= 5
    assert reason_of(caught.value) == ("DEADLINE_EXCEEDED", "DEADLINE")
    feed.end()
    calls.stop().result(timeout=30)
