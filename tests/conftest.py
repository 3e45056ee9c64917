"""What all tests share: one event loop for everything asynchronous that speaks gRPC."""

import asyncio
import sys
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

# With `--import-mode=importlib` tests are no package; what they share outside of fixtures is found beside this file.
sys.path.insert(0, str(Path(__file__).parent))


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
def two_factors() -> Any:
    """A two-factor lock with its secrets, as `tests/two_factor_lock.py` makes it."""
    pytest.importorskip("torch")
    from two_factor_lock import make_two_factors

    return make_two_factors()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, on both databases."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'licenses.db'}"
    url: str = request.getfixturevalue("postgresql").new_url()
    return url
