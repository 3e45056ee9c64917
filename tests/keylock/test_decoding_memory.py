"""Large images take turns in a number of bytes; small ones do not wait."""

import threading

import pytest

from keylock.decoding_memory import DecodingMemory

MIB = 2**20


def test_no_more_is_taken_than_there_is():
    memory, most, lock = DecodingMemory(300 * MIB), [0], threading.Lock()

    def decode():
        with memory.share(lambda: None) as claim:
            claim(120 * MIB)
            with lock:
                most[0] = max(most[0], memory.taken_bytes)
            threading.Event().wait(0.01)

    threads = [threading.Thread(target=decode) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (most[0], memory.taken_bytes) == (240 * MIB, 0)


def test_what_takes_more_than_all_is_decoded_alone_and_small_ones_beside_it():
    memory = DecodingMemory(100 * MIB)
    with memory.share(lambda: None) as first:
        first(5000 * MIB)
        assert memory.taken_bytes == 100 * MIB
        with memory.share(lambda: pytest.fail("a small image waits")) as second:
            second(10 * MIB)
    assert memory.taken_bytes == 0


def test_nobody_waits_for_an_image_that_was_given_up():
    class GivenUpError(Exception):
        pass

    def stop():
        raise GivenUpError

    memory = DecodingMemory(100 * MIB)
    with memory.share(lambda: None) as first:
        first(100 * MIB)
        with pytest.raises(GivenUpError), memory.share(stop) as second:
            second(100 * MIB)
        assert memory.taken_bytes == 100 * MIB
    assert memory.taken_bytes == 0
