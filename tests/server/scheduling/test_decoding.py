"""Large images take turns in a number of bytes and hold no thread while they wait; small ones go on beside them."""

import asyncio
import io
import threading
from itertools import chain

import grpc
import numpy as np
import pytest
from PIL import Image as PillowImage

from keylock.errors import InputError
from keylock.inference import inference_pb2
from keylock.v1 import explanation_pb2 as pb
from keylock_server.scheduling.decoder_pool import DecoderPool
from keylock_server.scheduling.decoding import Decoder, DecodingMemory, decode_small
from keylock_server.transport.calls import Call, set_call

MIB = 2**20
ROW = np.zeros((1, 1, 1, 1), np.float32)


class Image:
    """An image that takes memory, and is decoded when it is told."""

    def __init__(self, count, memory=None):
        self.count, self.memory, self.most = count, memory, 0
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, claim):
        claim(self.count)
        self.begun.set()
        if self.memory is not None:
            self.most = self.memory.taken_bytes
        assert self.go.wait(10)
        return ROW + self.count


def of_party(tenant, awaitable):
    """Runs something as a call of a tenant does."""

    async def run():
        set_call(Call("Explain", "id", tenant=tenant))
        return await awaitable

    return asyncio.create_task(run())


async def until(true):
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


def in_loop(test):
    """Runs a test in an event loop, with two threads and 300 MiB."""

    async def run():
        workers = DecoderPool(threads=2)
        memory = DecodingMemory(300 * MIB, at_once=4)
        try:
            await test(Decoder(workers, memory), memory, workers)
            await until(lambda: memory.taken_bytes == 0 and not workers.pending)
        finally:
            workers.close()

    asyncio.run(run())


def test_large_images_that_wait_hold_no_thread():
    async def test(decoder, memory, workers):
        first, others = Image(300 * MIB), [Image(200 * MIB) for _ in range(8)]
        tasks = [of_party("big", decoder.run(lambda image=image: [image])) for image in (first, *others)]
        await until(first.begun.is_set)
        await until(lambda: memory.waiting == 8)
        assert workers.pending == 1

        small = Image(10 * MIB)
        small.go.set()
        assert (await asyncio.wait_for(decoder.run(lambda: [small]), 5)).shape == (1, 1, 1, 1)
        for image in (first, *others):
            image.go.set()
        await asyncio.gather(*tasks)

    in_loop(test)


def test_no_more_is_taken_than_there_is_and_everybody_gets_the_own_images_in_order():
    async def test(decoder, memory, workers):
        sizes = [[120, 1, 140], [300], [40, 40, 2], [299], [100, 100]]
        images = [[Image(size * MIB, memory) for size in row] for row in sizes]
        for image in chain(*images):
            image.go.set()
        found = await asyncio.gather(*(decoder.run(lambda row=row: row) for row in images))
        for row, answer in zip(sizes, found, strict=True):
            assert (answer.ravel() / MIB).tolist() == row
        assert max(image.most for image in chain(*images)) <= 300 * MIB

    in_loop(test)


def test_parties_take_turns_and_nobody_overtakes_a_larger_image():
    async def test(decoder, memory, workers):
        order = []

        def image(name, count):
            def step(claim):
                claim(count * MIB)
                order.append(name)
                return ROW

            return [step]

        first = Image(300 * MIB)
        tasks = [of_party("first", decoder.run(lambda: [first]))]
        await until(first.begun.is_set)
        for tenant, name, count in (("a", "a1", 250), ("a", "a2", 250), ("a", "a3", 40), ("b", "b1", 280)):
            tasks.append(of_party(tenant, decoder.run(lambda name=name, count=count: image(name, count))))
            waiting = len(tasks) - 1
            await until(lambda waiting=waiting: memory.waiting == waiting)
        first.go.set()
        await asyncio.gather(*tasks)
        assert order == ["a1", "b1", "a2", "a3"]

    in_loop(test)


def test_what_nobody_waits_for_gives_its_memory_back_when_its_thread_has_ended():
    async def test(decoder, memory, workers):
        running, waiting = Image(300 * MIB), Image(300 * MIB)
        tasks = [asyncio.create_task(decoder.run(lambda image=image: [image])) for image in (running, waiting)]
        await until(lambda: running.begun.is_set() and memory.waiting == 1)
        tasks[1].cancel()
        await until(lambda: memory.waiting == 0)
        tasks[0].cancel()
        await asyncio.wait(tasks)
        # A thread cannot be stopped, and its memory is not there for others until it has ended.
        assert memory.taken_bytes == 300 * MIB
        running.go.set()
        await until(lambda: memory.taken_bytes == 0)
        assert not waiting.begun.is_set()

    in_loop(test)


def test_an_image_that_fails_gives_its_memory_back_and_the_next_one_goes_on():
    async def test(decoder, memory, workers):
        def damaged(claim):
            claim(300 * MIB)
            raise InputError("damaged")

        image = Image(300 * MIB)
        image.go.set()
        failing, good = (asyncio.create_task(decoder.run(lambda step=step: [step])) for step in (damaged, image))
        with pytest.raises(InputError, match="damaged"):
            await failing
        assert (await good).shape == (1, 1, 1, 1)

    in_loop(test)


def png(side):
    buffer = io.BytesIO()
    PillowImage.new("RGB", (side, side), (9, 99, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def test_what_takes_more_than_there_is_is_refused_before_it_is_decoded(start_server):
    calls = start_server(decoding_memory_bytes=32 * MIB)
    with pytest.raises(grpc.RpcError) as caught:
        calls.explain(pb.Image(encoded=png(16)), pb.Image(encoded=png(3000)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "takes about 34 MiB and this server has 32 MiB for that" in caught.value.details()


def test_a_server_answers_small_images_while_large_ones_wait(start_server):
    calls = start_server(decoding_memory_bytes=128 * MIB)
    large = pb.ExplainRequest(images=[pb.Image(encoded=png(5000))])
    waiting = [calls.explanation.Explain.future(large, timeout=60) for _ in range(6)]

    assert calls.explain(pb.Image(encoded=png(20))).results
    assert sum(call.done() for call in waiting) < 3
    assert all(call.result().results for call in waiting)


def test_pixels_are_limited_by_what_the_model_looks_at(start_server):
    calls = start_server(max_image_ratio=16)
    assert calls.explanation.GetModel(pb.GetModelRequest()).limits.max_image_pixels == 16 * 64
    assert calls.explain(pb.Image(encoded=png(32))).results
    with pytest.raises(grpc.RpcError) as explained:
        calls.explain(pb.Image(encoded=png(33)))
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="encoded", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(png(33))
    with pytest.raises(grpc.RpcError) as predicted:
        calls.inference.ModelInfer(inference_pb2.ModelInferRequest(inputs=[tensor]))
    for caught in (explained, predicted):
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "the image has 33 x 33 pixels and at most 1,024 are accepted" in caught.value.details()


@in_loop
async def test_what_is_small_is_decoded_at_once_and_the_rest_goes_on_from_there(decoder, memory, workers):
    images = [Image(count) for count in (1, 2, 5 * MIB, 3)]
    for image in images:
        image.go.set()
    done = decode_small(images)
    assert [float(rows.item()) for rows in done] == [1, 2]
    assert not images[2].begun.is_set()
    images[0].begun.clear()
    rows = await decoder.run(lambda: images, done=done)
    assert rows.ravel().tolist() == [1, 2, 5 * MIB, 3]
    assert not images[0].begun.is_set()
