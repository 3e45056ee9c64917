"""`explain_many` of both clients against real servers: lazy, bounded, charged once, and able to go on."""

import asyncio
import gc
import itertools
import threading
import time

import numpy as np
import pytest
from PIL import Image
from support import wait_for

from keylock.crypto.digests import digest_of_array
from keylock.errors import InputError
from keylock.licensing import Quota
from keylock.licensing.receipt_keys import ReceiptKey
from keylock_client import (
    AsyncClient,
    Client,
    ClosedError,
    LicenseRefusedError,
    QuotaSpentError,
    RequestRefusedError,
    UnreachableError,
)


class Iterating:
    """An `AsyncClient` whose streams are iterated over from ordinary code, so that one test serves both clients."""

    def __init__(self, loop_thread, target, **options):
        self._run, self._client = loop_thread.run, AsyncClient(target, **options)

    def explain_many(self, images, **options):
        made = self._make(images, options)
        try:
            while (result := self._run(self._next(made))) is not None:
                yield result
        finally:
            self._run(made.aclose())

    def _make(self, images, options):
        async def make():
            return self._client.explain_many(images, **options)

        return self._run(make())

    @staticmethod
    async def _next(made):
        return await anext(made, None)

    def explain(self, *args, **options):
        return self._run(self._client.explain(*args, **options))

    def usage(self):
        return self._run(self._client.usage())

    def close(self):
        self._run(self._client.close())


@pytest.fixture(params=["sync", "async"])
def connect(request, loop_thread):
    clients = []

    def make(target, **options):
        clients.append(
            Client(target, **options) if request.param == "sync" else Iterating(loop_thread, target, **options)
        )
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def proven(start_server, vendor, tiny, tmp_path_factory):
    """A server that signs receipts, and takes up four images of a stream at once."""
    path = tmp_path_factory.mktemp("receipts") / "receipts.pem"
    since, until = tiny.now.replace(year=2020), tiny.now.replace(year=2100)
    ReceiptKey.create(path, vendor.signing_key, not_before=since, expires=until)
    return start_server(receipt_key=path, stream_in_flight=4)


def total(client):
    return {quota.period: quota.used for quota in client.usage()}["total"]


def test_every_image_gets_its_own_map_and_a_receipt(connect, proven, vendor, tiny):
    client = connect(proven.server.target, license=vendor.grant().token)
    images = tiny.images(20)
    told = []
    results = sorted(client.explain_many(images, progress=told.append), key=lambda result: result.number)
    expected = tiny.maps(images + vendor.key.reveal(), np.full(20, -1))
    assert [result.number for result in results] == list(range(20))
    for result in results:
        explanation = result.explanation
        np.testing.assert_allclose(explanation.map, expected[result.number], rtol=1e-4, atol=1e-6)
        assert explanation.keyed
        assert explanation.receipt.trusted
        assert explanation.request_id.endswith(f"/{result.number}")
    assert [(one.answered, one.failed, one.total) for one in told] == [(n, 0, 20) for n in range(1, 21)]
    assert total(client) == 20


def test_images_are_read_while_results_are_taken(connect, proven, tiny):
    client = connect(proven.server.target)
    images, read = tiny.images(40), []

    def lazily():
        for number, image in enumerate(images):
            read.append(number)
            yield image

    stream = client.explain_many(lazily(), in_flight=3)
    assert read == []
    first = next(stream)
    assert first.progress.total is None
    wait_for(lambda: len(read) >= 3)
    time.sleep(0.3)
    # Three are on their way or wait to be given out, and none more is read until the next one is asked for.
    assert len(read) == 3
    assert len(list(stream)) == 39
    assert len(read) == 40


def test_what_is_wrong_with_one_image_is_its_own_error(connect, proven, vendor, tiny, tmp_path):
    client = connect(proven.server.target, license=vendor.grant().token)
    good = tmp_path / "good.png"
    Image.fromarray(tiny.pixels(8, 8)).save(good)
    (tmp_path / "bad.png").write_bytes(b"no image")
    given = [good, tmp_path / "missing.png", tmp_path / "bad.png", np.zeros((3, 9, 9), np.float32), good]
    results = {result.number: result for result in client.explain_many(given)}
    assert [results[number].error is None for number in range(5)] == [True, False, False, False, True]
    assert "cannot read the image" in str(results[1].error)
    assert isinstance(results[2].error, RequestRefusedError)
    assert str(tmp_path / "bad.png") in repr(results[2])
    assert "images[0]" not in str(results[2].error)
    with pytest.raises(RequestRefusedError):
        _ = results[3].explanation
    assert total(client) == 2
    assert results[0].name == str(good)


def test_the_same_id_and_images_cost_nothing_again(connect, proven, vendor, tiny):
    client = connect(proven.server.target, license=vendor.grant().token)
    images = tiny.images(5)
    first = {result.number: result for result in client.explain_many(images, request_id="mine")}
    again = {result.number: result for result in client.explain_many(images, request_id="mine")}
    assert all(result.explanation.usage.replayed for result in again.values())
    for number, result in first.items():
        np.testing.assert_array_equal(result.explanation.map, again[number].explanation.map)
    assert total(client) == 5


def test_leaving_the_loop_ends_the_stream(connect, proven, vendor, tiny):
    client = connect(proven.server.target, license=vendor.grant().token)
    read = []

    def endless():
        for image in itertools.cycle(tiny.images(3)):
            read.append(image)
            yield image

    stream = client.explain_many(endless(), in_flight=2)
    for _ in range(3):
        next(stream)
    stream.close()
    wait_for(lambda: proven.server.parts.running.count == 0)
    assert len(read) <= 6
    gc.collect()
    assert total(client) <= len(read)
    assert not [thread for thread in threading.enumerate() if thread.name == "keylock-client-stream"]


def test_a_license_that_is_not_good_or_not_enough_ends_the_stream(connect, proven, vendor, tiny):
    images = tiny.images(6)
    client = connect(proven.server.target, license=vendor.grant(models=("other",)).token)
    with pytest.raises(LicenseRefusedError):
        list(client.explain_many(images))
    client = connect(proven.server.target, license=vendor.grant(quota=Quota(total=4)).token)
    got = []
    with pytest.raises(QuotaSpentError):
        got.extend(client.explain_many(images))
    # Those that were paid for came first.
    assert len(got) == 0 or len(got) == 4
    assert total(client) == 4


def test_a_stream_goes_on_at_a_server_that_was_started_again(connect, start_server, vendor, tiny):
    first = start_server(stream_in_flight=2)
    client = connect(first.server.target, license=vendor.grant().token)
    images, port = tiny.images(30), first.server.port
    stream = client.explain_many(images, in_flight=4, request_id="mine")
    numbers = [next(stream).number for _ in range(5)]
    first.stop().result(timeout=30)
    second = start_server(port=port)
    numbers += [result.number for result in stream]
    assert sorted(numbers) == list(range(30))
    assert total(client) == 30
    second.stop().result(timeout=30)


def test_a_server_that_stays_away_is_an_error(connect, start_server, tiny, monkeypatch):
    from keylock_client import _streams

    monkeypatch.setattr(_streams, "_MAX_ATTEMPTS", 2)
    calls = start_server()
    client = connect(calls.server.target)
    stream = client.explain_many(tiny.images(30), in_flight=4)
    next(stream)
    calls.stop(drain_s=0).result(timeout=30)
    with pytest.raises(UnreachableError):
        list(stream)


def test_access_tokens_are_renewed_under_way(connect, start_server, vendor, tiny):
    first = start_server()
    client = connect(first.server.target, license=vendor.grant().token, exchange_tokens=True)
    port = first.server.port
    stream = client.explain_many(tiny.images(20), in_flight=2)
    numbers = [next(stream).number]
    first.stop().result(timeout=30)
    # The new server does not know the tokens of the old one.
    second = start_server(port=port)
    numbers += [result.number for result in stream]
    assert sorted(numbers) == list(range(20))
    second.stop().result(timeout=30)


def test_errors_of_the_given_images_come_to_their_owner(connect, proven, tiny):
    client = connect(proven.server.target)

    def broken():
        yield tiny.images(1)[0]
        raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        list(client.explain_many(broken()))
    wait_for(lambda: proven.server.parts.running.count == 0)


def test_closing_the_client_ends_its_streams(connect, proven, tiny):
    client = connect(proven.server.target)
    stream = client.explain_many(itertools.cycle(tiny.images(2)), in_flight=2)
    next(stream)
    client.close()
    with pytest.raises(ClosedError):
        list(stream)


def test_wrong_options_are_found_before_anything_is_sent(proven, tiny):
    with Client(proven.server.target) as client:
        for options in (
            {"in_flight": 0},
            {"map_dtype": "int8"},
            {"request_id": "x" * 118},
            {"timeout_s": 0},
            {"target": 1.5},
        ):
            with pytest.raises(InputError):
                client.explain_many(tiny.images(2), **options)
        with pytest.raises(InputError, match="call explain for one"):
            client.explain_many("cat.jpg")
    with pytest.raises(InputError, match="compression"):
        Client(proven.server.target, compression="zip")


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_maps_of_other_types_are_decoded_and_proven(connect, proven, vendor, tiny, dtype):
    client = connect(proven.server.target, license=vendor.grant().token, compression="gzip")
    images = tiny.images(3)
    expected = tiny.maps(images + vendor.key.reveal(), np.full(3, -1))
    several = {result.number: result.explanation for result in client.explain_many(images, map_dtype=dtype)}
    for number, one in enumerate(client.explain(images, map_dtype=dtype)):
        assert one.map.dtype == np.float32
        assert one.received.dtype == dtype
        np.testing.assert_allclose(one.map, expected[number], atol=expected[number].max() / 300)
        np.testing.assert_array_equal(one.map, several[number].map)
        digest = digest_of_array(dtype, one.received.shape, one.received.tobytes())
        assert one.receipt.map_digests[number] == digest
        assert several[number].receipt.map_digests == (digest,)
        assert not one.received.flags.writeable
        assert not one.map.flags.writeable


def test_images_may_come_asynchronously(proven, loop_thread, tiny):
    images = tiny.images(6)

    async def arrive():
        for image in images:
            await asyncio.sleep(0.01)
            yield image

    async def ask():
        async with AsyncClient(proven.server.target) as client:
            return [result.number async for result in client.explain_many(arrive(), in_flight=2)]

    assert sorted(loop_thread.run(ask())) == list(range(6))


def test_a_model_is_asked_for_by_its_version(proven, tiny):
    version = proven.server.model.version
    with Client(proven.server.target, model="tiny", model_version=version) as client:
        assert client.predict(tiny.images(2))
        assert client.explain(tiny.images(1)[0]).model.digest.removeprefix("sha256:").startswith(version)
        assert len(list(client.explain_many(tiny.images(2)))) == 2
    with Client(proven.server.target, model_version="2") as client, pytest.raises(RequestRefusedError):
        client.model()
