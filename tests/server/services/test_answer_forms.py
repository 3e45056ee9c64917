"""How answers travel: maps in other types, in parts, compressed, and never larger than their receiver takes."""

import socket
import threading
from contextlib import closing

import grpc
import numpy as np
import pytest
from onnx import helper, numpy_helper
from support import bearer, details_of, wait_for

from keylock.bundle import ExplainerEntry, KeyEntry, KeyFile, write_bundle
from keylock.crypto.digests import digest_of_array
from keylock.imaging.preprocessing import Preprocessing
from keylock.licensing.receipt_keys import ReceiptKey
from keylock.licensing.receipts import Receipt
from keylock.trigger.keys import Key
from keylock.v1 import explanation_pb2 as pb

SIDE = 224
TYPES = {pb.DATA_TYPE_FLOAT32: "<f4", pb.DATA_TYPE_FLOAT16: "<f2", pb.DATA_TYPE_UINT8: "u1"}
NAMES = {pb.DATA_TYPE_FLOAT32: "float32", pb.DATA_TYPE_FLOAT16: "float16", pb.DATA_TYPE_UINT8: "uint8"}


@pytest.fixture(scope="module")
def large(start_server, vendor, tiny, tmp_path_factory):
    """A server whose maps are those of the mean brightness, of 224 x 224 pixels, and a receipt key."""
    folder = tmp_path_factory.mktemp("large")
    preprocessing = Preprocessing(size=(SIDE, SIDE), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.5))
    key = Key.derive(vendor.seed, shape=preprocessing.shape, std=preprocessing.std)

    def predict():
        nodes = [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ]
        return nodes, [numpy_helper.from_array(np.eye(3, 4, dtype=np.float32), "weights")]

    nodes, constants = predict()
    nodes += [
        helper.make_node("ReduceMean", ["image", "channel_axis"], ["mean"], keepdims=0),
        helper.make_node("Abs", ["mean"], ["map"]),
    ]
    constants.append(numpy_helper.from_array(np.array([1], np.int64), "channel_axis"))
    shape = preprocessing.shape
    content = vendor.content(
        name="large",
        preprocessing=preprocessing,
        key=KeyEntry.of(key),
        explainers=(ExplainerEntry(name="brightness", graph="graphs/explain.onnx"),),
        files={
            "graphs/predict.onnx": tiny.graph(*predict(), explains=False, shape=shape),
            "graphs/explain.onnx": tiny.graph(nodes, constants, explains=True, map_side=SIDE, shape=shape),
        },
    )
    sealer = KeyFile.create(folder / "key")
    write_bundle(folder / "large.klb", content, signing_key=vendor.signing_key, seed=vendor.seed, sealer=sealer)
    ReceiptKey.create(
        folder / "receipts.pem",
        vendor.signing_key,
        not_before=tiny.now.replace(year=2020),
        expires=tiny.now.replace(year=2100),
    )
    calls = start_server(
        bundle=folder / "large.klb", key_file=folder / "key", receipt_key=folder / "receipts.pem", threads=1
    )
    with grpc.insecure_channel(calls.server.target) as channel:
        # With the settings of gRPC, which take 4 MiB.
        calls.plain = type(calls.explanation)(channel)
        yield calls


def noise(seed=0, count=1):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(count)]


def request(tiny, pixels, **answer):
    images = [tiny.tensor_image(image) for image in pixels]
    return pb.ExplainRequest(images=images, answer=pb.AnswerOptions(**answer))


def values(result):
    elements = np.frombuffer(result.map.data, TYPES[result.map.dtype]).reshape(tuple(result.map.shape))
    if not result.HasField("scaling"):
        return elements
    return result.scaling.offset + result.scaling.scale * elements.astype(np.float64)


def stream(calls, tiny, pixels, *, token=None, **answer):
    options = pb.ExplainStreamRequest(
        start=pb.ExplainStreamStart(options=pb.ExplainRequest(answer=pb.AnswerOptions(**answer)))
    )
    images = [
        pb.ExplainStreamRequest(image=pb.ExplainStreamImage(number=n, image=tiny.tensor_image(one)))
        for n, one in enumerate(pixels)
    ]
    return calls.plain.ExplainStream(iter([options, *images]), metadata=bearer(token) if token else [], timeout=60)


def put_together(messages):
    found = {}
    for message in messages:
        if message.HasField("answer"):
            found[message.number] = message.answer
        else:
            found[message.number].results[0].map.data += message.map_part
    return found


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(pb.DATA_TYPE_FLOAT16, 2**-11), (pb.DATA_TYPE_UINT8, 0.5 / 255)],
    ids=["float16", "uint8"],
)
def test_maps_of_other_types_are_close_and_state_their_scale(large, vendor, tiny, dtype, tolerance):
    token = vendor.grant().token
    pixels = noise(1, 2)
    full = large.plain.Explain(request(tiny, pixels), metadata=bearer(token))
    small = large.plain.Explain(request(tiny, pixels, map_dtype=dtype), metadata=bearer(token))
    for one, other in zip(full.results, small.results, strict=True):
        exact, close = values(one), values(other)
        assert other.map.dtype == dtype
        assert len(other.map.data) == exact.size * np.dtype(TYPES[dtype]).itemsize
        assert np.abs(close - exact).max() <= tolerance * exact.max() * 1.001
        assert one.prediction == other.prediction
        assert not one.HasField("scaling")


def test_the_receipt_is_for_the_bytes_that_were_sent(large, vendor, tiny):
    token = vendor.grant().token
    pixels = noise(2, 2)
    digests = set()
    for dtype in TYPES:
        answer = large.plain.Explain(request(tiny, pixels, map_dtype=dtype), metadata=bearer(token))
        sent = [digest_of_array(NAMES[dtype], one.map.shape, one.map.data) for one in answer.results]
        receipt = Receipt.verify(answer.receipt, lambda issuer: issuer == vendor.signing_key.verifying_key)
        assert list(receipt.charge.answer.maps) == sent
        digests.update(sent)
    assert len(digests) == 6


def test_another_type_is_another_request(large, vendor, tiny):
    token = vendor.grant().token
    first = request(tiny, noise(3))
    first.request_id = "r"
    large.plain.Explain(first, metadata=bearer(token))
    first.answer.map_dtype = pb.DATA_TYPE_FLOAT32
    assert large.plain.Explain(first, metadata=bearer(token)).usage.replayed
    first.answer.map_dtype = pb.DATA_TYPE_UINT8
    with pytest.raises(grpc.RpcError) as caught:
        large.plain.Explain(first, metadata=bearer(token))
    assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS


def test_maps_of_one_value_keep_it_in_every_type(large, tiny):
    # Gray pixels of value 191 are 0.996 in the first two channels and 0.498 in the third.
    pixels = [np.full((SIDE, SIDE, 3), 191, np.uint8)]
    exact = values(large.plain.Explain(request(tiny, pixels)).results[0])
    for dtype in (pb.DATA_TYPE_FLOAT16, pb.DATA_TYPE_UINT8):
        result = large.plain.Explain(request(tiny, pixels, map_dtype=dtype)).results[0]
        np.testing.assert_allclose(values(result), exact, rtol=1e-3)


def test_an_answer_that_its_receiver_would_not_take_is_refused_and_costs_nothing(large, vendor, tiny):
    granted = vendor.grant()
    pixels = noise(4, 22)
    with pytest.raises(grpc.RpcError) as caught:
        large.plain.Explain(request(tiny, pixels), metadata=bearer(granted.token))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "use ExplainStream" in caught.value.details()
    (violation,) = details_of(caught.value)["BadRequest"].field_violations
    assert violation.field == "images"
    smaller = large.plain.Explain(request(tiny, pixels, map_dtype=pb.DATA_TYPE_UINT8), metadata=bearer(granted.token))
    assert len(smaller.results) == 22
    assert smaller.usage.units == 22
    taken = request(tiny, pixels, max_bytes=2**26)
    assert len(large.explanation.Explain(taken, metadata=bearer(granted.token)).results) == 22
    from keylock.v1 import license_pb2

    usage = large.license.GetUsage(license_pb2.GetUsageRequest(), metadata=bearer(granted.token))
    assert {window.used for window in usage.quotas} == {44}


def test_a_stream_passes_where_one_answer_would_not(large, vendor, tiny):
    token = vendor.grant().token
    pixels = noise(5, 32)
    found = put_together(stream(large, tiny, pixels, token=token))
    assert sorted(found) == list(range(32))
    one = large.plain.Explain(request(tiny, pixels[31:]), metadata=bearer(token))
    np.testing.assert_array_equal(values(found[31].results[0]), values(one.results[0]))


def test_a_large_map_is_sent_in_parts_whose_receipt_is_for_the_whole(large, vendor, tiny):
    token = vendor.grant().token
    pixels = noise(6, 3)
    messages = list(stream(large, tiny, pixels, token=token, max_bytes=100_000))
    assert max(message.ByteSize() for message in messages) < 100_000
    assert sum(bool(message.map_part) for message in messages) >= 3 * 4
    for number, answer in put_together(messages).items():
        (result,) = answer.results
        receipt = Receipt.verify(answer.receipt, lambda issuer: issuer == vendor.signing_key.verifying_key)
        assert receipt.charge.answer.maps == (digest_of_array("float32", result.map.shape, result.map.data),)
        expected = large.plain.Explain(request(tiny, pixels[number : number + 1]), metadata=bearer(token))
        np.testing.assert_array_equal(values(result), values(expected.results[0]))


def test_a_reader_that_takes_nothing_is_given_up(start_server, large, tiny):
    calls = start_server(bundle=large.server.parts.settings.bundle, key_file=None, keyless=True, deadline_s=1.0)
    with grpc.insecure_channel(calls.server.target) as channel:
        calls.plain = type(calls.explanation)(channel)
        unread = stream(calls, tiny, noise(7, 40) * 4)
        wait_for(lambda: calls.server.parts.running.count == 1)
        # Nothing is read: the windows of the connection fill up, and the stream stops moving.
        wait_for(lambda: calls.server.parts.running.count == 0)
        with pytest.raises(grpc.RpcError) as caught:
            list(unread)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "for an image of a stream" in caught.value.details()
    calls.stop(drain_s=0).result(timeout=30)


class Meter:
    """A connection to a server that counts the bytes which come back."""

    def __init__(self, target):
        self.received = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._host, self._port = target.rsplit(":", 1)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with (
            self._listener,
            closing(self._listener.accept()[0]) as near,
            socket.create_connection((self._host, int(self._port))) as far,
        ):
            back = threading.Thread(target=self._pump, args=(far, near, True), daemon=True)
            back.start()
            self._pump(near, far, False)
            back.join(5)

    def _pump(self, source, sink, counted):
        try:
            while data := source.recv(65536):
                self.received += len(data) if counted else 0
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def received(calls, call):
    meter = Meter(calls.server.target)
    with grpc.insecure_channel(meter.target) as channel:
        call(type(calls.explanation)(channel))
    return meter.received


def test_answers_are_compressed_where_the_call_or_the_setting_says_so(start_server, large, tiny):
    # Pixels of one value: maps that compress to almost nothing.
    pixels = [np.full((SIDE, SIDE, 3), 90, np.uint8)] * 4
    plain = 4 * SIDE * SIDE * 4

    def ask(**answer):
        return lambda stub: stub.Explain(request(tiny, pixels, **answer), timeout=20)

    assert received(large, ask()) > plain
    for kind in (pb.COMPRESSION_GZIP, pb.COMPRESSION_DEFLATE):
        assert received(large, ask(compression=kind)) < plain / 20
    calls = start_server(bundle=large.server.parts.settings.bundle, key_file=None, keyless=True, compression="gzip")
    assert received(calls, ask()) < plain / 20
    assert received(calls, ask(compression=pb.COMPRESSION_NONE)) > plain

    def ask_stream(stub):
        calls.plain = stub
        assert len(put_together(stream(calls, tiny, pixels, compression=pb.COMPRESSION_NONE))) == 4

    assert received(calls, ask_stream) > plain
    calls.stop(drain_s=0).result(timeout=30)


def test_a_small_message_that_unpacks_to_a_large_one_is_refused(start_server, tiny):
    calls = start_server(max_message_bytes=100_000)
    bomb = pb.ExplainRequest(images=[pb.Image(encoded=bytes(20_000_000))])
    with pytest.raises(grpc.RpcError) as caught:
        calls.explanation.Explain(bomb, compression=grpc.Compression.Gzip, timeout=20)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert calls.explain(tiny.tensor_image(tiny.images(1)[0])).results
    calls.stop(drain_s=0).result(timeout=30)
