"""What holds for every RPC, on both ports: limits of time, secrets, details of errors, and callers that go away.

An RPC, or a field of its request, that no row of `tests/rpc_rows.py` knows fails a test that says what to add there.
"""

import asyncio
import base64
import importlib
import logging
import math
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rpc_rows import CASES, IMAGE, PIXELS, PORTS, ROWS, Case, stream
from support import bearer, books, details_of, logged, scrape, wait_for

from keylock.licensing import DisclosureTerms, Quota, Rate
from keylock.licensing.receipt_keys import ReceiptKey
from keylock.licensing.receipts import Receipt
from keylock.store import LicenseStore
from keylock.transparency import leaf_hash
from keylock_server.auth.authentication import Authenticator, Caller
from keylock_server.scheduling.batching import QueueQuota
from keylock_server.transport.calls import current_call
from keylock_server.transport.interceptors import Logs, Requests
from keylock_server.transport.statuses import LICENSE_STATUSES, STATUSES

ROOT = Path(__file__).parents[3]
# Of each reason in the table of docs/protocol.md, the statuses it comes with.
DOCUMENTED = {
    (code, reason)
    for code, reasons in re.findall(
        r"^\| `([A-Z_]+)` \| ([`\w, ]+) \|", (ROOT / "docs/protocol.md").read_text("utf-8"), re.M
    )
    for reason in re.findall(r"`(\w+)`", reasons)
}

# Not well formed as a request id, which stands in the log.
PASSPHRASE = "correct horse battery staple"

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_held_case = pytest.mark.parametrize(
    ("case", "place"),
    [
        pytest.param(case, place, id=f"{case} in the {place}")
        for case in CASES
        for place in (("loop",) if case.is_refused else case.row.works)
    ],
)


# The rows are complete.


def test_every_service_is_on_a_port():
    served = {service.full_name for services in PORTS.values() for service in services}
    for path in (ROOT / "proto").rglob("*.proto"):
        name = ".".join(path.relative_to(ROOT / "proto").with_suffix("").parts) + "_pb2"
        for service in importlib.import_module(name).DESCRIPTOR.services_by_name.values():
            assert service.full_name in served, (
                f"{service.full_name} is on no port: add it to SERVICES of the server, or to PORTS in tests/rpc_rows.py"
            )


def test_every_rpc_has_a_row():
    methods = {method.full_name: method for services in PORTS.values() for one in services for method in one.methods}
    for name in sorted(methods.keys() - ROWS.keys()):
        pytest.fail(f"{name} has no row: add a good request, and a bad value for each field, to tests/rpc_rows.py")
    assert not ROWS.keys() - methods.keys(), "there are rows of no RPC: take them out of ROWS"
    for name, row in ROWS.items():
        fields = set(methods[name].input_type.fields_by_name)
        named = {*row.free, *row.inside, *(re.split(r"\W", path)[0] for path in row.bad)}
        assert not fields - named, f"{name}: add {sorted(fields - named)} to bad or free of its row in ROWS"
        assert not named - fields, f"{name}: take {sorted(named - fields)} out of its row in ROWS"
        assert set(row.inside.values()) <= set(row.bad)


# The servers, and how they are asked.


@dataclass
class World:
    """A running server with both ports, and what good requests are made of."""

    calls: Any
    channels: Mapping[str, grpc.Channel]
    store: LicenseStore | None
    vendor: Any
    token: str = ""
    leaf: bytes = bytes(32)

    def grant(self, **terms: Any) -> Any:
        """Issues a license that this server knows."""
        return self.vendor.grant(store=self.store, record=self.store is not None, **terms)

    def begin(
        self, case: Case, sent: Any, *, token: str | None = None, timeout: float | None = 20, id: str = ""
    ) -> Any:
        """Begins a call with one message, the messages of a stream, or bytes; on the wire every RPC is a stream."""
        messages = sent if isinstance(sent, list) else [sent]
        write = None if isinstance(messages[0], bytes) else type(messages[0]).SerializeToString
        read = message_factory.GetMessageClass(case.method.output_type).FromString
        metadata = [*bearer(token), *([("x-request-id", id)] if id else [])]
        call = self.channels[case.port].stream_stream(case.path, write, read)
        return call(iter(messages), metadata=metadata, timeout=timeout)

    def ask(self, case: Case, sent: Any, *, token: str | None = None) -> list[Any]:
        """Returns the answers to a call."""
        return answers_of(self.begin(case, sent, token=token))

    def ask_well(self, case: Case) -> list[Any]:
        """Returns the answers to a good request, and leaves the server as it was."""
        answers = self.ask(case, self.good(case), token=self.token)
        if case.method.name == "RepositoryModelUnload":
            self.calls.loop_thread.run(self.calls.server.models.load("tiny"))
        return answers

    def keep_receipt(self) -> None:
        """Charges an explanation, whose receipt can be proved then."""
        receipt = self.calls.explain(IMAGE, token=self.token).receipt
        self.leaf = leaf_hash(Receipt.verify(receipt, lambda _: True).entry)

    def good(self, case: Case) -> Any:
        return case.row.good(self)

    def bad(self, case: Case) -> dict[str, Any]:
        return {path: sent(self) if callable(sent) else sent for path, sent in case.row.bad.items()}

    def tasks(self) -> set[Any]:
        """The tasks of the event loop, without those in which gRPC waits for the next call."""

        async def others() -> set[Any]:
            found = asyncio.all_tasks() - {asyncio.current_task()}
            return {one for one in found if "_request" not in one.get_coro().__qualname__}

        found: set[Any] = self.calls.loop_thread.run(others())
        return found

    def work(self) -> tuple[int, int, int]:
        """What the server holds for calls on the public port: calls, images, and jobs for threads."""
        parts = self.calls.server.parts
        return parts.running.count, parts.batchers.held, parts.pool.pending


def answers_of(call: Any) -> list[Any]:
    """Returns all answers to a call, which is ended here where the server does not end it."""
    ending = threading.Timer(30, call.cancel)
    ending.start()
    try:
        return list(call)
    finally:
        ending.cancel()


def refusal_of(call: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        answers_of(call)
    return caught.value


@pytest.fixture(scope="module")
def make_world(start_server, vendor, tiny, tls_files, tmp_path_factory) -> Iterator[Callable[..., World]]:
    """Starts servers with both ports."""
    made: list[World] = []
    files = [(tls_files / name).read_bytes() for name in ("server.pem", "client.key", "client.pem")]

    def make(*, stored: bool = True, **settings: Any) -> World:
        folder = tmp_path_factory.mktemp("every_rpc")
        year = timedelta(days=365)
        ReceiptKey.create(
            folder / "receipts.pem", vendor.signing_key, not_before=tiny.now - year, expires=tiny.now + year
        )
        url = f"sqlite:///{folder / 'licenses.db'}"
        calls = start_server(
            license_store=url if stored else None,
            receipt_key=folder / "receipts.pem",
            admin_port=0,
            admin_certificate=tls_files / "server.pem",
            admin_key=tls_files / "server.key",
            admin_client_ca=tls_files / "client.pem",
            **settings,
        )
        operators = grpc.secure_channel(f"localhost:{calls.server.admin_port}", grpc.ssl_channel_credentials(*files))
        world = World(
            calls, {"public": calls.channel, "operators": operators}, LicenseStore(url) if stored else None, vendor
        )
        world.token = world.grant(disclosure=DisclosureTerms(per_day=1000)).token
        made.append(world)
        return world

    yield make
    for world in made:
        world.channels["operators"].close()
        if world.store is not None:
            world.store.close()


@pytest.fixture(scope="module")
def world(make_world) -> World:
    """The ordinary server, which has a receipt to prove."""
    made: World = make_world()
    made.keep_receipt()
    return made


@pytest.fixture(scope="module")
def hasty(make_world) -> World:
    """A server that gives no call more than a moment."""
    made: World = make_world(deadline_s=0.1)
    return made


def check_refusal(error: grpc.RpcError, *, id: str, reason: str = "", path: str = "") -> dict[str, Any]:
    """Checks what every refusal says, and returns its details."""
    details = details_of(error)
    info = details["ErrorInfo"]
    assert info.domain == "keylock"
    assert (error.code().name, info.reason) in DOCUMENTED
    assert info.reason == (reason or info.reason)
    assert details["RequestInfo"].request_id == id
    assert dict(error.trailing_metadata())["x-request-id"] == id
    violations = details["BadRequest"].field_violations if "BadRequest" in details else ()
    assert [violation.field for violation in violations] == ([path] if path else [])
    return details


def faults_in(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.ERROR]


def lines_of(log: pytest.LogCaptureFixture, id: str) -> list[Any]:
    """What was logged about the end of a call."""
    return [one for one in log.records if one.name == "keylock_server.calls" and getattr(one, "request_id", "") == id]


class Hold:
    """Holds the work of calls at one place until it is let go."""

    def __init__(self, place: str, world: World, patch: pytest.MonkeyPatch) -> None:
        self.reached, self._go, self._inside = threading.Event(), threading.Event(), list[int]()
        {"loop": self._hold_loop, "thread": self._hold_threads, "model": self._hold_model}[place](world, patch)

    def let_go(self) -> None:
        """Lets the work go on, and returns when it is done."""
        self._go.set()
        wait_for(lambda: not self._inside)

    def _held(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def stand(*arguments: Any, **options: Any) -> Any:
            self._inside.append(threading.get_ident())
            try:
                self.reached.set()
                assert self._go.wait(30)
                return work(*arguments, **options)
            finally:
                self._inside.remove(threading.get_ident())

        return stand

    def _hold_loop(self, world: World, patch: pytest.MonkeyPatch) -> None:
        around = Requests.around

        async def held(self_: Requests, method: str, request: Any, context: Any, _: Any) -> Any:
            async def stand(_request: Any, _context: Any) -> None:
                self.reached.set()
                await asyncio.get_running_loop().create_future()

            return await around(self_, method, request, context, stand)

        patch.setattr(Requests, "around", held)

    def _hold_threads(self, world: World, patch: pytest.MonkeyPatch) -> None:
        to_thread = asyncio.to_thread

        async def held(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            # What the server does by itself goes on.
            return await to_thread(work if current_call() is None else self._held(work), *arguments, **options)

        def wait(_authenticator: Authenticator, _caller: Caller) -> None:
            raise BlockingIOError

        patch.setattr(asyncio, "to_thread", held)
        # As where the store is a database server, which is always waited for.
        patch.setattr(Authenticator, "authenticate_at_once", wait)

    def _hold_model(self, world: World, patch: pytest.MonkeyPatch) -> None:
        model = world.calls.server.model
        for name in ("explain", "predict"):
            patch.setattr(model, name, self._held(getattr(model, name)))


@contextmanager
def held(place: str, world: World) -> Iterator[Hold]:
    with pytest.MonkeyPatch.context() as patch:
        hold = Hold(place, world, patch)
        try:
            yield hold
        finally:
            hold.let_go()


# Deadlines.


@every_case
def test_a_call_lasts_as_long_as_the_server_allows(hasty, case, server_log):
    before = hasty.tasks()
    with held("loop" if case.is_refused else case.row.works[0], hasty):
        # Without a deadline, and with a later one than the server's.
        begun = [
            hasty.begin(case, hasty.good(case), token=hasty.token, timeout=timeout, id="late")
            for timeout in (None, 3600)
        ]
        errors = [refusal_of(call) for call in begun]
    for error in errors:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        check_refusal(error, id="late", reason="DEADLINE")
    lines = lines_of(server_log, "late")
    assert [line.code for line in lines] == ["DEADLINE_EXCEEDED"] * 2
    assert max(line.milliseconds for line in lines) < 5000
    wait_for(lambda: not hasty.tasks() - before and not any(hasty.work()) and books(hasty.store) == (0, 0, 0))
    assert faults_in(server_log) == []


# Callers that go away.


@every_held_case
@pytest.mark.parametrize("leaves", ["cancels", "runs out of time"])
def test_a_caller_that_goes_away_leaves_nothing_behind(world, case, place, leaves, server_log):
    tasks, charged = world.tasks(), books(world.store)
    # Time in which the call has come to the place; more where this machine is slow.
    for timeout in (0.1, 0.5, 3.0):
        with held(place, world) as hold:
            sent, id = world.good(case), f"gone-{timeout}"
            call = world.begin(case, sent, token=world.token, timeout=30 if leaves == "cancels" else timeout, id=id)
            if leaves == "cancels":
                assert hold.reached.wait(20)
                call.cancel()
            else:
                assert refusal_of(call).code() == grpc.StatusCode.DEADLINE_EXCEEDED
            if hold.reached.is_set():
                wait_for(lambda id=id: lines_of(server_log, id))
                # The server knows it, and its work is still held.
                assert [line.code for line in lines_of(server_log, id)] == ["CANCELLED"]
                wait_for(lambda: world.work()[:2] == (0, 0))
                break
    assert hold.reached.is_set()
    wait_for(lambda: not world.tasks() - tasks and not any(world.work()) and books(world.store) == charged)
    if not (case.row.ends_the_server or case.is_refused):
        assert world.ask_well(case)
    assert faults_in(server_log) == []


# Details of errors.


@every_case
def test_what_is_wrong_is_named_by_its_field(world, case, server_log):
    for path, sent in world.bad(case).items():
        error = refusal_of(world.begin(case, sent, token=world.token, id="wrong"))
        reason = case.row.refused_on.get(case.port, "")
        check_refusal(error, id="wrong", reason=reason, path="" if reason else path)
    assert faults_in(server_log) == []


@every_case
def test_bytes_that_are_no_message_are_an_invalid_argument(world, case, server_log):
    error = refusal_of(world.begin(case, b"\xff" * 20, id="noise"))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    check_refusal(error, id="noise", reason="INVALID_INPUT")
    assert faults_in(server_log) == []


@pytest.mark.parametrize("case", [case for case in CASES if case.row.license != "ignored"], ids=str)
def test_a_license_that_is_not_good_is_refused_with_its_reason(world, case, server_log):
    head, claims, _ = world.token.split(".")
    for token, reason in ((f"{head}.{claims}", "LICENSE_MALFORMED"), (f"{head}.{claims}.{'A' * 86}", "LICENSE_FORGED")):
        check_refusal(refusal_of(world.begin(case, world.good(case), token=token, id="who")), id="who", reason=reason)
    if case.row.license == "needed":
        error = refusal_of(world.begin(case, world.good(case), id="who"))
        check_refusal(error, id="who", reason="LICENSE_MISSING")
    assert faults_in(server_log) == []


@pytest.mark.parametrize("case", [case for case in CASES if case.row.units], ids=str)
def test_a_spent_quota_is_named(world, case):
    granted = world.grant(quota=Quota(total=0))
    error = refusal_of(world.begin(case, world.good(case), token=granted.token, id="spent"))
    details = check_refusal(error, id="spent", reason="QUOTA_SPENT")
    (violation,) = details["QuotaFailure"].violations
    assert violation.subject == f"license:{granted.id}"
    assert {"period": "total", "limit": "0", "units": "1"}.items() <= dict(details["ErrorInfo"].metadata).items()


# Of a stream neither is a refusal: it waits.
UNARY = [case for case in CASES if not (case.method.client_streaming or case.is_refused)]


def check_when_to_come_again(error: grpc.RpcError, *, reason: str) -> None:
    delay = check_refusal(error, id="again", reason=reason)["RetryInfo"].retry_delay
    assert delay.ToTimedelta() > timedelta(0)
    assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) == math.ceil(delay.ToMicroseconds() / 1000)


@pytest.mark.parametrize("case", [case for case in UNARY if "model" in case.row.works], ids=str)
def test_a_full_queue_says_when_to_come_again(world, case, monkeypatch):
    monkeypatch.setattr(QueueQuota, "take", lambda *_: False)
    error = refusal_of(world.begin(case, world.good(case), token=world.token, id="again"))
    check_when_to_come_again(error, reason="OVERLOADED")


@pytest.mark.parametrize("case", [case for case in UNARY if case.row.units], ids=str)
def test_a_license_that_is_used_too_fast_says_when_to_come_again(world, case):
    token = world.grant(rate=Rate(per_second=0.5, burst=1)).token
    assert world.ask(case, world.good(case), token=token)
    error = refusal_of(world.begin(case, world.good(case), token=token, id="again"))
    check_when_to_come_again(error, reason="RATE_LIMITED")


@contextmanager
def failing(text: str) -> Iterator[None]:
    """Lets a fault of the server be the end of every call, whatever it was to do."""
    around = Logs.around

    async def fail(_request: Any, _context: Any) -> None:
        raise RuntimeError(text) from ValueError(text)

    async def broken(self: Logs, method: str, request: Any, context: Any, _: Any) -> Any:
        return await around(self, method, request, context, fail)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Logs, "around", broken)
        yield


@every_case
def test_a_fault_of_the_server_is_internal_with_an_id_and_no_text(world, case, server_log):
    with failing("the text of a fault"):
        error = refusal_of(world.begin(case, world.good(case), token=world.token, id="fault"))
    assert error.code() == grpc.StatusCode.INTERNAL
    error_id = check_refusal(error, id="fault", reason="INTERNAL")["ErrorInfo"].metadata["error_id"]
    assert error_id in error.details()
    assert error_id in server_log.text
    assert "the text of a fault" not in server_log.text + str(error) + str(error.trailing_metadata())


def test_every_reason_is_documented():
    reasons = {(row.code.name, row.reason) for row in STATUSES.values() if row.reason != "LICENSE"}
    reasons |= {(code.name, reason.value) for reason, code in LICENSE_STATUSES.items()}
    assert reasons == DOCUMENTED


# Secrets.


def filled(kind: Descriptor, only: str = "", depth: int = 0) -> Any:
    """A message with a secret in each field that takes text or bytes, or in one of them alone."""
    message = message_factory.GetMessageClass(kind)()
    secret = {FieldDescriptor.TYPE_STRING: PASSPHRASE, FieldDescriptor.TYPE_BYTES: PIXELS.tobytes()}
    for one in kind.fields:
        if only not in ("", one.name) or (one.message_type and one.message_type.GetOptions().map_entry):
            continue
        value = filled(one.message_type, depth=depth + 1) if one.message_type and depth < 4 else secret.get(one.type)
        if one.is_repeated and value is not None:
            getattr(message, one.name).append(value)
        elif isinstance(value, Message):
            getattr(message, one.name).CopyFrom(value)
        elif value is not None:
            setattr(message, one.name, value)
    return message


def requests_with_secrets(case: Case) -> Iterator[Any]:
    kind = case.method.input_type
    for only in ("", *kind.fields_by_name) if kind.fields else ():
        sent = filled(kind, only)
        if case.method.client_streaming:
            yield [sent]
            yield [stream()[0], sent]
        else:
            yield sent


def forms(secret: bytes) -> set[str]:
    """How bytes could be written."""
    return {
        secret.hex(),
        repr(secret)[2:-1],
        base64.b64encode(secret).decode(),
        base64.urlsafe_b64encode(secret).decode(),
    }


def refusals_of(world: World, case: Case, token: str) -> Iterator[grpc.RpcError]:
    """Asks in every way that fails, and sends secrets in every field."""
    for sent in (*world.bad(case).values(), *requests_with_secrets(case), b"\xff" * 11 + PIXELS.tobytes()):
        try:
            world.ask(case, sent, token=token)
        except grpc.RpcError as error:
            yield error
    if case.row.license != "ignored":
        yield refusal_of(world.begin(case, world.good(case), token=token[:-8] + "AAAAAAAA"))
    with failing(f"{token} {PASSPHRASE} {PIXELS.tobytes()!r} {world.vendor.seed.reveal()!r}"):
        yield refusal_of(world.begin(case, world.good(case), token=token))


@pytest.mark.parametrize("stored", [True, False], ids=["with a store", "without a store"])
def test_no_secret_is_told_by_any_rpc(make_world, vendor, stored, server_log, capfd):
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    world = make_world(stored=stored, metrics_port=0, tracer_provider=provider)
    if stored:
        world.keep_receipt()
    refusals, tokens = [], [world.token]
    for case in sorted(CASES, key=lambda case: case.row.ends_the_server):
        refusals += refusals_of(world, case, world.token)
        if case.row.ends_the_server:
            scraped = scrape(world.calls.server.metrics_port)
        reason = case.row.refused_on.get(case.port) or ("" if stored else case.row.without_store)
        if reason:
            refusals.append(refusal_of(world.begin(case, world.good(case), token=world.token)))
            assert details_of(refusals[-1])["ErrorInfo"].reason == reason
            continue
        tokens += [answer.access_token for answer in world.ask_well(case) if hasattr(answer, "access_token")]
    world.calls.loop_thread.run(world.calls.server.wait())

    told = logged(server_log, capfd.readouterr()) | {
        "metrics": scraped,
        "spans": "\n".join(span.to_json() for span in spans.get_finished_spans()),
        "errors": "\n".join(f"{error} {error.details()} {error.trailing_metadata()}" for error in refusals),
    }
    for place in ("log as text", "log as JSON", "metrics"):
        assert [case for case in CASES if case.path not in told[place]] == []
    assert [case for case in CASES if case.path[1:] not in told["spans"]] == []
    secrets = forms(vendor.seed.reveal()) | forms(PIXELS.tobytes()[:24]) | {vendor.key_file.read_text().strip()}
    secrets |= {part for token in tokens for part in (token, *token.split(".")[1:])}
    assert len(tokens) == 2
    found = [(place, secret) for place, text in told.items() for secret in secrets if secret in text]
    # What is sent as a name comes back to whoever sent it, and goes nowhere else.
    found += [(place, PASSPHRASE) for place, text in told.items() if place != "errors" and PASSPHRASE in text]
    assert found == []
    assert "Traceback" not in "".join(told.values())


# Health and reflection, which are gRPC's own services.

WATCH, REFLECT = "/grpc.health.v1.Health/Watch", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
OTHERS = (
    pytest.param(WATCH, health_pb2.HealthCheckRequest(), id="health"),
    pytest.param(REFLECT, reflection_pb2.ServerReflectionRequest(list_services=""), id="reflection"),
)


@pytest.mark.parametrize("path", ["/grpc.health.v1.Health/Check", WATCH, REFLECT])
def test_bytes_that_are_no_message_of_grpc_itself_are_an_invalid_argument(world, path, server_log):
    with pytest.raises(grpc.RpcError) as caught:
        list(world.channels["public"].stream_stream(path)(iter([b"\xff" * 20]), timeout=20))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "is not a message of this method" in caught.value.details()
    assert details_of(caught.value)["ErrorInfo"].reason == "INVALID_INPUT"
    assert faults_in(server_log) == []


@pytest.mark.parametrize(("path", "asked"), OTHERS)
@pytest.mark.parametrize("leaves", ["cancels", "runs out of time"])
def test_health_and_reflection_last_until_their_caller_goes_away(hasty, path, asked, leaves, server_log):
    before, more = hasty.tasks(), queue.Queue()
    more.put(asked.SerializeToString())
    timeout = None if leaves == "cancels" else 0.5
    call = hasty.channels["public"].stream_stream(path)(iter(more.get, None), timeout=timeout)
    try:
        assert next(call)
        # Another call is ended meanwhile, because it took longer than calls may.
        case = CASES[0]
        with held(case.row.works[0], hasty):
            assert refusal_of(hasty.begin(case, hasty.good(case))).code() == grpc.StatusCode.DEADLINE_EXCEEDED
        if leaves == "cancels":
            assert call.is_active()
            call.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code().name == ("CANCELLED" if leaves == "cancels" else "DEADLINE_EXCEEDED")
    finally:
        more.put(None)
    wait_for(lambda: not hasty.tasks() - before)
    assert faults_in(server_log) == []


def test_reflection_lists_the_services_of_the_public_port_each_time(world):
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")] * 2
    answers = list(reflection_pb2_grpc.ServerReflectionStub(world.channels["public"]).ServerReflectionInfo(iter(asked)))
    for answer in answers:
        names = {service.name for service in answer.list_services_response.service}
        assert names == {
            *(service.full_name for service in PORTS["public"]),
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
    assert len(answers) == 2
