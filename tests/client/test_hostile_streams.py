"""A server that wants to exhaust or to hold up a client that streams: memory, time and missing answers."""

import re
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from keylock.v1 import explanation_pb2 as pb
from keylock_client import BadAnswerError, DeadlineError, ImageError
from keylock_client._requests import MAX_ANSWER_BYTES, MAX_STREAM_BYTES


def begun(toolbox, *, number=0, shape=(1448, 1448), data=b"", context=None, request_id="stream/0"):
    """Returns an answer whose map is not all there."""
    request = pb.ExplainRequest(request_id=request_id)
    request.images.add()
    answer = toolbox.explain(request, context)
    answer.results[0].map.shape[:] = shape
    answer.results[0].map.data = data
    return pb.ExplainStreamResponse(number=number, answer=answer)


def part(data, number=0):
    return pb.ExplainStreamResponse(number=number, map_part=data)


def test_a_map_in_parts_is_joined(connect, server, toolbox, png):
    values = np.arange(12, dtype="<f4").reshape(3, 4)

    def explain(requests, context):
        next(requests), next(requests)
        yield begun(toolbox, shape=(3, 4), data=values.tobytes()[:7], context=context)
        for start in range(7, 48, 10):
            yield part(values.tobytes()[start : start + 10])

    server.answers["ExplainStream"] = explain
    (result,) = connect(server.target).explain_many([png()])
    np.testing.assert_array_equal(result.explanation.map, values)
    assert not result.explanation.map.flags.writeable


@pytest.mark.parametrize("given", [3, 20])
@pytest.mark.parametrize("answered", [0, 1, 2])
def test_a_stream_that_ends_too_early_says_how_many_are_missing(connect, server, toolbox, png, given, answered):
    def explain(requests, context):
        next(requests)
        # By number: a stream that is opened again, because gRPC has lost why it ended, asks for what is left.
        for request in requests:
            if request.image.number >= answered:
                return
            yield begun(toolbox, number=request.image.number, shape=(2, 3), data=bytes(24), context=context)

    server.answers["ExplainStream"] = explain
    for _ in range(5):
        got = []
        with pytest.raises(BadAnswerError, match="too early") as caught:
            got.extend(connect(server.target).explain_many([png()] * given))
        assert len(got) == answered
        assert f"{given - answered} of {given} images have no answer" in caught.value.message
    with pytest.raises(BadAnswerError, match=r"at least \d+ images have no answer"):
        list(connect(server.target).explain_many(png() for _ in range(given)))


def test_a_stream_that_ends_when_all_is_answered_is_whole(connect, server, png):
    client = connect(server.target)
    assert len(list(client.explain_many([png()] * 40))) == 40
    assert len(list(client.explain_many(png() for _ in range(3)))) == 3
    assert list(client.explain_many([])) == []
    assert [type(one.error) for one in client.explain_many([b"", png(), "gone.png"], in_flight=1)].count(
        ImageError
    ) == 1


@pytest.mark.parametrize("pause_s", [0.05, 0.3])
def test_dripping_does_not_move_the_deadline(connect, server, toolbox, png, pause_s):
    def explain(requests, context):
        next(requests), next(requests)
        yield begun(toolbox, context=context)
        while context.is_active():
            time.sleep(pause_s)
            yield part(b"\0")

    server.answers["ExplainStream"] = explain
    client = connect(server.target)
    client.model()
    began = time.monotonic()
    with pytest.raises(DeadlineError, match="within 1 s"):
        list(client.explain_many([png()], timeout_s=1))
    assert time.monotonic() - began < 4


def test_sending_without_pause_does_not_move_the_deadline(connect, server, toolbox, png):
    def explain(requests, context):
        next(requests), next(requests)
        yield begun(toolbox, shape=(8000, 8000), context=context)
        while context.is_active():
            yield part(b"\0")

    server.answers["ExplainStream"] = explain
    began = time.monotonic()
    with pytest.raises(DeadlineError):
        list(connect(server.target).explain_many([png()], timeout_s=1))
    assert time.monotonic() - began < 5


def test_progress_without_an_answer_does_not_move_the_deadline(connect, server, png):
    asked = []

    def explain(requests, context):
        asked.append(next(requests).start.progress_every_s)
        while context.is_active():
            time.sleep(0.1)
            yield pb.ExplainStreamResponse(progress=pb.Progress(received=1))

    server.answers["ExplainStream"] = explain
    client = connect(server.target)
    client.model()
    began = time.monotonic()
    with pytest.raises(DeadlineError, match="within 1 s"):
        list(client.explain_many([png()], timeout_s=1))
    assert time.monotonic() - began < 4
    assert asked == [10]


def test_a_message_without_anything_in_it_makes_no_sense(connect, server, png):
    def explain(requests, context):
        next(requests), next(requests)
        yield pb.ExplainStreamResponse()

    server.answers["ExplainStream"] = explain
    with pytest.raises(BadAnswerError, match="an answer without a result"):
        list(connect(server.target).explain_many([png()]))


def test_an_answer_begins_the_time_anew_and_a_slow_caller_is_not_the_server(connect, server, toolbox, png):
    def explain(requests, context):
        next(requests)
        for number, _ in enumerate(requests):
            time.sleep(1.1)
            yield begun(toolbox, number=number, shape=(2, 3), data=bytes(24), context=context)

    server.answers["ExplainStream"] = explain
    client = connect(server.target)
    results = []
    for result in client.explain_many([png()] * 3, timeout_s=3, in_flight=1):
        results.append(result)
        time.sleep(3.1)
    assert len(results) == 3


def test_one_call_has_one_deadline(connect, server, toolbox, png):
    plain = server.answers["GetModel"]

    left = []

    def describe(request, context):
        time.sleep(0.7)
        return plain(request, context)

    def explain(request, context):
        left.append(context.time_remaining())
        time.sleep(0.7)
        return toolbox.explain(request, context)

    server.answers["GetModel"], server.answers["Explain"] = describe, explain
    client = connect(server.target)
    with pytest.raises(DeadlineError, match="within 1 s"):
        client.explain(png(), timeout_s=1)
    assert max(left, default=0) < 0.4


def test_every_request_of_a_long_list_has_the_time_of_a_call(connect, server, toolbox, png):
    left = []

    def explain(request, context):
        left.append(context.time_remaining())
        time.sleep(1.1)
        return toolbox.explain(request, context)

    server.answers["Explain"] = explain
    client = connect(server.target)
    client.model()
    assert len(client.explain([png()] * 40, timeout_s=3)) == 40
    # All of them together took longer than one may.
    assert 1.1 * len(left) > 3


def test_one_message_of_a_stream_is_not_as_large_as_an_answer(connect, server, toolbox, png):
    def explain(requests, context):
        next(requests), next(requests)
        yield begun(toolbox, shape=(8000, 8000), data=bytes(MAX_STREAM_BYTES + 1), context=context)

    server.answers["ExplainStream"] = explain
    with pytest.raises(BadAnswerError, match=r"answer is larger than the 8,388,608 bytes"):
        list(connect(server.target).explain_many([png()]))


def memory_of(kind, target, stream, image):
    """Runs a client in a process of its own; returns by how many bytes its memory grew, and what happened."""
    script = f"""
import asyncio, re, sys, time
from keylock_client import AsyncClient, Client, KeylockError

def now(what):
    return int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024

def slow(count):
    # The first result is looked at for long, as a caller may.
    if count == 1:
        time.sleep(4)

def ask():
    with Client({target!r}, timeout_s=30) as client:
        client.explain({str(image)!r})
        open("/proc/self/clear_refs", "w").write("5")
        before = now("VmRSS")
        try:
            if {stream!r}:
                for count, result in enumerate(client.explain_many([{str(image)!r}] * 2), 1):
                    slow(count)
            else:
                client.explain({str(image)!r}, explainer="large")
        except KeylockError as error:
            print(type(error).__name__, error)
        print("grew", now("VmHWM") - before)

async def ask_too():
    async with AsyncClient({target!r}, timeout_s=30) as client:
        await client.explain({str(image)!r})
        open("/proc/self/clear_refs", "w").write("5")
        before = now("VmRSS")
        try:
            if {stream!r}:
                count = 0
                async for result in client.explain_many([{str(image)!r}] * 2):
                    count += 1
                    if count == 1:
                        await asyncio.sleep(4)
            else:
                await client.explain({str(image)!r}, explainer="large")
        except KeylockError as error:
            print(type(error).__name__, error)
        print("grew", now("VmHWM") - before)

ask() if {kind!r} == "sync" else asyncio.run(ask_too())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=True)
    return int(re.search(r"grew (-?\d+)", done.stdout)[1]), done.stdout


@pytest.fixture
def image(tmp_path, png):
    path = tmp_path / "image.png"
    path.write_bytes(png())
    return path


def _eight_mebibytes(toolbox, requests, context):
    next(requests)
    for number, _ in enumerate(requests):
        yield begun(toolbox, number=number, context=context)
        for _ in range(1448 * 1448 * 4 // 16384):
            yield part(bytes(16384), number)


def _the_largest(toolbox, requests, context):
    next(requests), next(requests)
    yield begun(toolbox, shape=(8192, 8192), context=context)
    for _ in range(256):
        yield part(bytes(2**20))


def _one_too_many(toolbox, requests, context):
    yield from _the_largest(toolbox, requests, context)
    yield part(bytes(2**20))


def _flood(toolbox, requests, context):
    next(requests)
    yield begun(toolbox, shape=(2, 3), data=bytes(24), context=context)
    for _ in range(1500):
        yield part(bytes(2**20), 9)


def _flood_of_nothing(toolbox, requests, context):
    next(requests)
    yield begun(toolbox, shape=(2, 3), data=bytes(24), context=context)
    for _ in range(100_000):
        yield b""


STREAMS = {
    "a map of 8 MiB in parts of 16 KiB": (_eight_mebibytes, 64),
    "the largest map in parts": (_the_largest, 512),
    "more than the largest map": (_one_too_many, 512),
    "1,500 messages that nobody asked for": (_flood, 128),
    "100,000 messages without content": (_flood_of_nothing, 128),
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("name", STREAMS)
def test_no_stream_takes_more_memory_than_two_answers(server, toolbox, image, kind, name):
    send, mebibytes = STREAMS[name]
    server.answers["ExplainStream"] = lambda requests, context: send(toolbox, requests, context)
    grew, said = memory_of(kind, server.target, stream=True, image=image)
    assert grew < mebibytes * 2**20, said
    assert mebibytes * 2**20 <= 2 * MAX_ANSWER_BYTES


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("mebibytes", "compression"),
    [(95, grpc.Compression.NoCompression), (300, grpc.Compression.NoCompression), (300, grpc.Compression.Gzip)],
)
def test_no_answer_takes_more_memory_than_two_answers(server, toolbox, image, kind, mebibytes, compression):
    plain = server.answers["Explain"]

    def explain(request, context):
        answer = plain(request, context)
        if request.explainer == "large":
            context.set_compression(compression)
            answer.results[0].map.shape[:] = [mebibytes * 256, 1024]
            answer.results[0].map.data = bytes(mebibytes * 2**20)
        return answer

    server.answers["Explain"] = explain
    grew, said = memory_of(kind, server.target, stream=False, image=image)
    assert grew < 2 * MAX_ANSWER_BYTES, said
    if mebibytes > 96:
        assert "BadAnswerError the server's answer is larger than the 100,663,296 bytes" in said
