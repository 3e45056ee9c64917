"""What is larger than the server takes is refused here, before it is copied, encoded or sent."""

import contextlib
import os
import threading

import numpy as np
import pytest
from PIL import Image

from keylock.errors import InputError
from keylock.v1 import explanation_pb2 as pb
from keylock_client import DeadlineError, RequestLimits, TooLargeError, UnreachableError


def say(server, **limits):
    """Let the server say what it takes."""
    plain = server.answers["GetModel"]

    def describe(request, context):
        answer = plain(request, context)
        answer.limits.CopyFrom(pb.RequestLimits(**limits))
        return answer

    server.answers["GetModel"] = describe


# None of these is in memory: each would take 30 GB or more if it were copied.
HUGE = {
    "pixels": np.broadcast_to(np.uint8(0), (100_000, 100_000, 3)),
    "grey": np.broadcast_to(np.uint8(0), (100_000, 300_000)),
    "tensor": np.broadcast_to(np.float64(0), (3, 100_000, 100_000)),
    "batch": np.broadcast_to(np.uint8(0), (2, 100_000, 100_000, 3)),
}


@pytest.mark.parametrize("kind", HUGE)
@pytest.mark.parametrize("method", ["predict", "explain"])
def test_a_huge_array_is_refused_before_it_is_copied(connect, server, kind, method):
    with pytest.raises(TooLargeError, match=r"the server takes at most [\d,]+: "):
        getattr(connect(server.target), method)(HUGE[kind])
    assert not server.asked("Explain") + server.asked("ModelInfer")


def test_a_huge_pillow_image_is_refused_before_it_is_decoded(connect, server, tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (9000, 9000)).save(path)
    with Image.open(path) as image, pytest.raises(TooLargeError, match="9000 x 9000 pixels"):
        connect(server.target).explain(image)


def test_a_file_without_an_end_is_read_no_further_than_it_takes(connect, server, tmp_path):
    say(server, max_image_bytes=2**20)
    client = connect(server.target)
    client.model()
    with pytest.raises(TooLargeError, match=r"'/dev/zero' has more than 1,048,576 bytes"):
        client.explain("/dev/zero")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    written = []

    def write():
        with pipe.open("wb", buffering=0) as file, contextlib.suppress(BrokenPipeError):
            while True:
                written.append(file.write(b"0" * 65536))

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(TooLargeError):
        client.explain(pipe)
    writer.join()
    assert sum(written) < 2**21


def test_bytes_are_counted_too(connect, server):
    with pytest.raises(TooLargeError, match=r"has more than 33,554,432 bytes"):
        connect(server.target).explain(bytes(32 * 2**20 + 1))


def test_a_server_that_takes_more_gets_more(connect, server):
    say(server, max_image_pixels=100_000_000)
    client = connect(server.target)
    assert client.predict(np.zeros((6000, 10_000), np.uint8)).label == "square"
    assert client.model().limits == RequestLimits(image_pixels=100_000_000)
    with pytest.raises(TooLargeError, match="at most 100,000,000"):
        client.predict(HUGE["pixels"])


def test_a_server_that_takes_less_is_known_from_its_description(connect, server):
    say(server, max_image_pixels=100, max_images=3)
    client = connect(server.target)
    client.model()
    with pytest.raises(TooLargeError, match="at most 100: "):
        client.explain(np.zeros((20, 20), np.uint8))
    client.explain([np.zeros((4, 4), np.uint8)] * 8)
    assert [len(request.images) for request in server.asked("Explain")] == [3, 3, 2]


def test_limits_of_a_server_that_make_no_sense_do_no_harm(connect, server):
    say(
        server, max_image_bytes=2**64 - 1, max_image_pixels=2**64 - 1, max_message_bytes=2**64 - 1, max_images=2**32 - 1
    )
    limits = connect(server.target).model().limits
    assert limits.message_bytes == limits.image_bytes == 2**31 - 1


def test_too_large_is_an_input_error_also_where_no_server_is(connect):
    assert issubclass(TooLargeError, InputError)
    # Whether this server takes more cannot be known, so that it has to be asked.
    with pytest.raises((UnreachableError, DeadlineError)):
        connect("localhost:1", timeout_s=0.5).predict(HUGE["pixels"])
