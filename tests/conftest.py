"""What all tests share: the precision that training takes, and one event loop for everything that speaks gRPC."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Coroutine, Generator, Iterator
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# With `--import-mode=importlib` tests are no package; what they share outside of fixtures is found beside this file.
sys.path.insert(0, str(Path(__file__).parent))

# As the command line does, before anything imports torch, and as keylock does, before anything imports ONNX Runtime.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--precision",
        choices=["float32", "bfloat16"],
        help="let all training compute in it; by default float32, and what is quickly trained in both",
    )


def pytest_configure() -> None:
    # The same examples in every run, however long a busy machine takes for one or makes them.
    if find_spec("hypothesis") is not None:
        from hypothesis import settings

        settings.load_profile("ci")
    # What torch traces for its own tools would bury what a failed test says: thousands of lines for each graph.
    logging.getLogger("torch.__trace").addFilter(lambda _: False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Shows what a process said that failed or took too long, which its exception does not."""
    report = yield
    error = None if call.excinfo is None else call.excinfo.value
    if isinstance(error, subprocess.CalledProcessError | subprocess.TimeoutExpired):
        for name, said in (("output", error.output), ("errors", error.stderr)):
            text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
            if text:
                report.sections.append((f"{name} of the process", text))
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "precision" in metafunc.fixturenames:
        forced = metafunc.config.getoption("precision")
        slow = metafunc.definition.get_closest_marker("slow")
        metafunc.parametrize(
            "precision", [forced] if forced else ["float32"] if slow else ["float32", "bfloat16"], indirect=True
        )


def _pretend_processor(precision: str) -> pytest.MonkeyPatch:
    """Let training take a processor for one that is quick in a precision, so that no test depends on this one."""
    patch = pytest.MonkeyPatch()
    if find_spec("torch") is not None:
        import torch

        patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: precision == "bfloat16")
    return patch


@pytest.fixture(scope="session", autouse=True)
def _same_precision_on_all_processors(request: pytest.FixtureRequest) -> Iterator[None]:
    patch = _pretend_processor(request.config.getoption("precision") or "float32")
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _same_random_numbers_in_any_order() -> None:
    """Begins the generator that torch shares anew, so that what a test draws does not depend on those before it."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """What training takes by itself inside the test: float32 in one run of the test, bfloat16 in another."""
    patch = _pretend_processor(request.param)
    yield request.param
    patch.undo()


class LoopThread:
    """One event loop for every asynchronous server and client, because a process must not have two with grpc.aio."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.submit(coroutine).result(timeout=60)

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=10)
        self.loop.close()


@pytest.fixture(scope="session")
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Any]:
    """A real PostgreSQL; tests that need it are skipped where its programs are not installed."""
    pytest.importorskip("psycopg")
    from postgresql_cluster import Cluster, NotInstalledError

    try:
        cluster = Cluster()
    except NotInstalledError as error:
        pytest.skip(str(error))
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def sealed_lock() -> Any:
    """A lock with a sealed delta and its secrets, as `tests/sealed_lock.py` makes it."""
    pytest.importorskip("torch")
    from sealed_lock import make_sealed_lock

    return make_sealed_lock()


@pytest.fixture(scope="session")
def sealed_bundle(sealed_lock: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """That lock as a bundle with a public copy, as `tests/sealed_bundle.py` publishes it."""
    pytest.importorskip("onnxscript")
    from sealed_bundle import publish_sealed_lock

    return publish_sealed_lock(sealed_lock, tmp_path_factory.mktemp("sealed"))


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, on both databases."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'licenses.db'}"
    url: str = request.getfixturevalue("postgresql").new_url()
    return url
