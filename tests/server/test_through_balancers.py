"""Clients whose calls and streams go through a real balancer, which ends streams that are quiet for two seconds."""

import itertools
import re
import sys
import threading
import time
from pathlib import Path

import pytest
from support import wait_for

from keylock_client import AsyncClient, Client, Tls, UnreachableError, _streams
from keylock_server.services.streams import ImageStream

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks" / "fleet"), str(ROOT / "benchmarks" / "serving")]

balancer = pytest.importorskip("balancer", reason="balancers are started by the benchmark of fleets")

# Servers say something every second; a busy machine may be late by nearly two more.
QUIET_S = 3


@pytest.fixture(params=sorted(balancer.BALANCERS))
def kind(request):
    """Every balancer that is installed here."""
    kind = balancer.BALANCERS[request.param]
    if kind.where() is None:
        pytest.skip(f"{request.param} is not installed here")
    return kind


@pytest.fixture
def before(kind, tmp_path):
    """Puts a balancer before servers, three at most, and returns its address."""
    made = []

    def put(*servers):
        targets = [f"127.0.0.1:{calls.server.port}" for calls in servers]
        targets += [f"127.0.0.1:{balancer.free_port()}" for _ in range(3 - len(servers))]
        made.append(kind(tmp_path, targets, least=len(servers), quiet_s=QUIET_S))
        return made[-1].target

    yield put
    for one in made:
        one.stop()


@pytest.fixture(params=["sync", "async"])
def explain_many(request, loop_thread):
    """Explains images over a stream, by either client; yields the results."""

    def explain(target, token, images, **options):
        if request.param == "sync":
            with Client(target, license=token) as client:
                yield from client.explain_many(images, **options)
            return

        async def collect():
            async with AsyncClient(target, license=token) as client:
                return [result async for result in client.explain_many(images, **options)]

        yield from loop_thread.run(collect())

    return explain


@pytest.fixture
def opened(monkeypatch):
    """The streams that servers have begun."""
    begun, run = [], ImageStream.run

    async def count(self, *arguments, **options):
        begun.append(self)
        await run(self, *arguments, **options)

    monkeypatch.setattr(ImageStream, "run", count)
    return begun


def let_images_take(monkeypatch, calls, seconds):
    """Lets each run of a model take as long as the next of these numbers, and no time after the last of them."""
    model, left = calls.server.model, iter(seconds)
    real = type(model).explain

    def wait(self, *arguments, **options):
        if self is model:
            time.sleep(next(left, 0))
        return real(self, *arguments, **options)

    monkeypatch.setattr(type(model), "explain", wait)


def used(target, token):
    with Client(target, license=token) as client:
        return {quota.period: quota.used for quota in client.usage()}["total"]


def test_an_image_may_take_longer_than_a_balancer_is_patient(
    before, start_server, vendor, tiny, explain_many, opened, monkeypatch
):
    monkeypatch.setattr(_streams, "_PROGRESS_EVERY_S", 1)
    calls, granted = start_server(), vendor.grant()
    let_images_take(monkeypatch, calls, [3 * QUIET_S])
    target = before(calls)
    results = list(explain_many(target, granted.token, tiny.images(3), timeout_s=30))
    assert sorted((one.number, one.error) for one in results) == [(0, None), (1, None), (2, None)]
    assert len(opened) == 1
    assert used(target, granted.token) == 3
    calls.stop().result(timeout=30)


def test_a_caller_may_take_longer_for_its_images_than_a_balancer_is_patient(
    before, start_server, vendor, tiny, explain_many, opened, monkeypatch
):
    monkeypatch.setattr(_streams, "_PROGRESS_EVERY_S", 1)
    calls, granted = start_server(), vendor.grant()

    def slowly():
        for image in tiny.images(2):
            yield image
            time.sleep(2 * QUIET_S)

    target = before(calls)
    results = list(explain_many(target, granted.token, slowly(), timeout_s=30))
    assert [(one.number, one.error) for one in results] == [(0, None), (1, None)]
    assert len(opened) == 1
    assert used(target, granted.token) == 2
    calls.stop().result(timeout=30)


def test_a_stream_that_a_balancer_has_ended_goes_on_and_is_charged_once(
    before, start_server, vendor, tiny, explain_many, opened, monkeypatch
):
    # As an older server does, which says nothing in between.
    monkeypatch.setattr(_streams, "_PROGRESS_EVERY_S", 0)
    calls, granted = start_server(), vendor.grant()
    # The first image is answered at once, the second is slow when it is asked for first.
    let_images_take(monkeypatch, calls, [0, 2 * QUIET_S])
    target = before(calls)
    results = list(explain_many(target, granted.token, tiny.images(4), in_flight=1, timeout_s=30))
    assert [(one.number, one.error) for one in results] == [(number, None) for number in range(4)]
    assert len(opened) > 1
    assert used(target, granted.token) == 4
    calls.stop().result(timeout=30)


def test_a_stream_stays_at_one_server_and_goes_on_at_another_when_that_ends(before, start_server, vendor, tiny, opened):
    servers, granted = [start_server(), start_server()], vendor.grant()
    target, images = before(*servers), tiny.images(40)
    go_on = threading.Event()

    def halting():
        yield from images[:20]
        go_on.wait(20)
        yield from images[20:]

    with Client(target, license=granted.token) as client:
        stream = client.explain_many(halting(), in_flight=4, timeout_s=30)
        first = [result.number for result in itertools.islice(stream, 16)]
        assert len(opened) == 1
        (busy,) = (calls for calls in servers if calls.server.parts.running.count)
        busy.stop(drain_s=0).result(timeout=30)
        go_on.set()
        rest = list(stream)
    assert sorted([*first, *(one.number for one in rest)]) == list(range(40))
    assert [one.error for one in rest if one.error is not None] == []
    assert len(opened) > 1
    assert used(target, granted.token) == 40
    (other,) = (calls for calls in servers if calls is not busy)
    wait_for(lambda: other.server.parts.running.count == 0)
    other.stop().result(timeout=30)


def test_where_no_server_is_left_the_error_says_so(before, start_server, tiny):
    calls = start_server()
    target = before(calls)
    with Client(target) as client:
        assert client.explain(tiny.images(1)[0]).map.shape == (8, 8)
        calls.stop(drain_s=0).result(timeout=30)
        with pytest.raises(UnreachableError, match="found none that answered: try again later"):
            client.explain(tiny.images(1)[0], timeout_s=10)


def test_the_lines_of_the_page_for_tls_encrypt_what_comes_to_a_balancer(
    kind, start_server, vendor, tiny, tls_files, tmp_path
):
    page = (ROOT / "docs" / "operating.md").read_text("utf-8")
    lines = next(block for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if f"{kind._port} " in block)
    certificate, key = tls_files / "server.pem", tls_files / "server.key"
    both = tmp_path / "balancer.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    for name, file in {"balancer.pem": both, "balancer.crt": certificate, "balancer.key": key}.items():
        lines = lines.replace(f"/run/secrets/{name}", str(file))
    calls, granted = start_server(), vendor.grant()
    targets = [f"127.0.0.1:{port}" for port in (calls.server.port, balancer.free_port(), balancer.free_port())]
    between = kind(tmp_path, targets, least=1, lines=lines.splitlines())
    try:
        with Client(between.target, license=granted.token, tls=Tls(ca=certificate, server_name="localhost")) as client:
            assert client.explain(tiny.images(1)[0]).keyed
        with Client(between.target, tls=False) as client, pytest.raises(UnreachableError):
            client.explain(tiny.images(1)[0], timeout_s=5)
    finally:
        between.stop()
    calls.stop().result(timeout=30)
