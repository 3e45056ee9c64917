"""Several processes on one address: one key, one ledger, one life, and a dead one is replaced."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from PIL import Image
from support import details_of, scrape

from keylock.errors import ServiceError
from keylock.files.limits import available_cores
from keylock.licensing import Quota
from keylock.store import LicenseStore
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc, license_pb2, license_pb2_grpc
from keylock_server import ServerSettings, start
from keylock_server.inference.cores import threads_per_batch
from keylock_server.operations.supervisor import Restarts

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux")

WORKERS = 2


class Program:
    """A `keylock serve` with several workers, and what it has printed since it answers."""

    def __init__(self, vendor, folder, *arguments, stdin=None, wait=True):
        self.ready, self._log = folder / "ready", folder / "log"
        command = [sys.executable, "-W", "error", "-m", "keylock", "serve", str(vendor.bundle), "--port", "0", "--json"]
        command += ["--workers", str(WORKERS), "--ready-file", str(self.ready), "--issuer", str(vendor.issuer_file)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"HOME": str(folder)},
            )
        self.printed = {}
        if wait:
            lines = []
            for line in self.process.stdout:
                lines.append(line)
                if line == "}\n":
                    break
            assert lines, self.log
            self.printed = json.loads("".join(lines))

    @property
    def log(self):
        return self._log.read_text()

    @property
    def pids(self):
        return [worker["pid"] for worker in self.printed["workers"]]

    def until(self, condition):
        limit = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < limit, self.log
            time.sleep(0.02)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode

    @contextlib.contextmanager
    def channels(self, count):
        """Opens connections of their own, which the kernel divides among the workers."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        opened = [grpc.insecure_channel(self.printed["target"], options=options) for _ in range(count)]
        yield opened
        for channel in opened:
            channel.close()


def explain(channel, images, *, token=None):
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    stub = explanation_pb2_grpc.ExplanationServiceStub(channel)
    return stub.Explain(pb.ExplainRequest(images=images), metadata=metadata, timeout=30)


EXPLAINED = 'keylock_calls_total{code="OK",method="/keylock.v1.ExplanationService/Explain"'


def metrics(program, name):
    """Reads a metric of each worker."""
    found = []
    for worker in program.printed["workers"]:
        lines = scrape(worker["metrics_port"]).splitlines()
        found.append(sum(float(line.split()[-1]) for line in lines if line.startswith(name)))
    return found


def alive(pid):
    try:
        # The state comes after the name, which is in parentheses; nobody may be there to bury an orphan.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def image(tiny):
    return tiny.tensor_image(tiny.images(1)[0])


def test_workers_share_address_secrets_and_ledger_and_a_dead_one_is_replaced(vendor, image, tmp_path):
    # What comes from a pipe can be read once; the workers have what their parent has read.
    reading, writing = os.pipe()
    os.write(writing, vendor.seed_file.read_bytes())
    os.close(writing)
    # A store of its own: what is charged by the real clock would be later than what other tests charge.
    url = f"sqlite:///{tmp_path / 'licenses.db'}"
    arguments = ["--key-seed-file", "/dev/stdin", "--license-store", url, "--metrics-port", "0"]
    program = Program(vendor, tmp_path, *arguments, stdin=reading)
    os.close(reading)
    now, day = datetime.now(UTC), timedelta(days=1)
    with LicenseStore(url) as store:
        granted = vendor.grant(quota=Quota(total=24), not_before=now - day, expires=now + day, store=store)
    try:
        with program.channels(16) as channels, ThreadPoolExecutor(8) as pool:
            # An access token that one worker has signed is good for all of them.
            exchanged = license_pb2_grpc.LicenseServiceStub(channels[0]).ExchangeToken(
                license_pb2.ExchangeTokenRequest(), metadata=[("authorization", f"Bearer {granted.token}")], timeout=30
            )
            tasks = [pool.submit(explain, channels[i % 16], [image], token=exchanged.access_token) for i in range(32)]
            errors = [task.exception() for task in tasks]
        # Thirty-two units asked for on sixteen connections, and exactly those charged that the license has.
        assert sum(error is None for error in errors) == 24
        assert {error.code() for error in errors if error} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert all(task.result().results[0].keyed for task in tasks if not task.exception())
        counts = metrics(program, EXPLAINED)
        assert sum(counts) == 24
        assert min(counts) > 0

        os.kill(program.pids[1], signal.SIGKILL)
        program.until(lambda: program.log.count("keylock_server[1] -: serving") == 2)
        with program.channels(16) as channels:
            assert all(explain(channel, [image]).results for channel in channels)
    finally:
        code = program.stop()
    assert code == 0, program.log
    assert program.printed["key_id"] == vendor.key.id
    assert not program.ready.exists()
    lines = [line for line in program.log.splitlines() if "only_torch is not served" not in line]
    unexpected = [line for line in lines if " INFO keylock_server" not in line]
    assert len(unexpected) == 1
    assert f"worker 1 (process {program.pids[1]}) was ended by signal 9: another follows in 0.5 s" in unexpected[0]
    assert vendor.seed.reveal().hex() not in program.log


def test_workers_share_the_query_guard_and_it_outlives_them(vendor, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("KEYLOCK_SERVER_QUERY_GUARD_SCORES", "4")
    pixels, copies = tiny.pixels(8, 8), []
    for number in range(24):
        copies.append(pixels.copy())
        copies[-1][number // 8, number % 8] ^= 128
    program = Program(vendor, tmp_path, "--key-file", str(vendor.key_file), "--metrics-port", "0")

    def ask(number):
        with program.channels(1) as (channel,):
            try:
                return bool(explain(channel, [tiny.tensor_image(copies[number])]).results)
            except grpc.RpcError as error:
                return details_of(error)["ErrorInfo"].reason

    try:
        with program.channels(1) as (channel,):
            explain(channel, [tiny.tensor_image(pixels)])
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(ask, range(16)))
        assert found.count(True) == 4
        assert found.count("QUERIES_TOO_SIMILAR") == 12
        assert min(metrics(program, "keylock_guarded_images_total")) > 0
        for pid in program.pids:
            os.kill(pid, signal.SIGKILL)
        for number in range(WORKERS):
            program.until(lambda number=number: program.log.count(f"keylock_server[{number}] -: serving") == 2)
        assert {ask(number) for number in range(16, 24)} == {"QUERIES_TOO_SIMILAR"}
        # What was answered is answered again.
        assert [ask(number) for number in range(16)] == found
    finally:
        code = program.stop()
    assert code == 0, program.log


@pytest.mark.usefixtures("heard_hangups")
def test_workers_drain_when_told_and_when_their_parent_dies(vendor, tiny, tmp_path):
    slow = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(slow, "PNG")
    images = [pb.Image(encoded=slow.getvalue())] * 2
    program = Program(vendor, tmp_path, "--key-file", str(vendor.key_file), "--metrics-port", "0")
    try:
        with program.channels(2) as channels, ThreadPoolExecutor(2) as pool:
            running = [pool.submit(explain, channel, images) for channel in channels]
            program.until(lambda: sum(metrics(program, "keylock_pending_images")) == 4)
            # To the parent and to each worker, as a terminal and some init systems do it: it counts once.
            for pid in program.pids:
                os.kill(pid, signal.SIGINT)
                os.kill(pid, signal.SIGHUP)
            code = program.stop(signal.SIGHUP)
            assert [len(task.result().results) for task in running] == [2, 2]
        assert code == 0, program.log
        assert not any(alive(pid) for pid in program.pids)
        orphaned = Program(vendor, tmp_path, "--key-file", str(vendor.key_file))
        orphaned.stop(signal.SIGKILL)
        orphaned.until(lambda: not any(alive(pid) for pid in orphaned.pids))
    finally:
        program.process.kill()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--key-file", "missing"], 6, "missing"),
        # Found by the workers alone, and told once.
        (["--keyless", "--license-store", "postgresql://x"], 7, "sqlite"),
        (["--keyless", "--host", "no-such-host.invalid"], 7, "no address"),
    ],
)
def test_what_keeps_workers_from_starting_is_told_once(vendor, tmp_path, arguments, code, words):
    program = Program(vendor, tmp_path, *arguments, wait=False)
    output, _ = program.process.communicate(timeout=60)
    errors = [line for line in program.log.splitlines() if line.startswith("error: ")]
    assert program.process.returncode == code, program.log
    assert len(errors) == 1
    assert words in errors[0]
    assert output == ""
    assert "Traceback" not in program.log
    assert "Warning" not in program.log


def test_a_server_in_this_process_is_one_process(vendor, loop_thread):
    settings = ServerSettings.load(bundle=vendor.bundle, port=0, keyless=True, workers=2)
    with pytest.raises(ServiceError, match="keylock serve"):
        loop_thread.run(start(settings))


def test_workers_are_replaced_more_and_more_slowly():
    restarts = Restarts()
    assert [restarts.after(1.0) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert restarts.after(61.0) == 0.5


def test_cores_are_shared_out():
    found = available_cores()
    for fields, threads in (
        ({}, found),
        ({"workers": found}, 1),
        ({"workers": 0}, 1),
        ({"workers": 2 * found}, 1),
        ({"batches": found}, 1),
        ({"workers": found, "threads": 3}, 3),
    ):
        assert threads_per_batch(ServerSettings.load(bundle="x", **fields)) == threads
