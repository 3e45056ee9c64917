"""Ray for one job: started on this machine and ended with the job, or a cluster that is there already.

What Ray does by itself and is not wanted: it sends usage statistics, writes a token into the home folder, and takes
the address of a cluster out of a variable. The token of a job lies in a folder of this user alone. Ray's processes
listen on all addresses of the machine, whatever they are told; who has not the token is refused. They talk to each
other over the loopback device.
"""

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from keylock.bulk.ending import undisturbed
from keylock.bulk.watching import reach, watched
from keylock.errors import ServiceError
from keylock.files.atomic import PRIVATE, write_file

__all__ = ["connected", "started"]

_QUIET: Final = {
    # Read when Ray is imported.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
_STORE_BYTES: Final = 128 * 2**20
_LONGEST_FOLDER: Final = 40
_STARTS: Final = 4
# In the text of the exception alone, after 30 seconds that cannot be changed.
_TOO_LATE: Final = "timed out during startup"
# Loopback too; Ray takes 127.0.0.1 for a mistake, and takes the machine's address in its place.
_LOOPBACK: Final = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"


@contextmanager
def started(*, cores: int, gpus: int) -> Iterator[Path]:
    """Starts Ray on this machine, and ends it with the block.

    Args:
        cores: For how many cores it has room.
        gpus: For how many GPUs.

    Yields:
        A folder of this user alone, which goes with it.

    Raises:
        ServiceError: If it does not start.
    """
    folder = _private_folder()
    token = folder / "token"
    write_file(token, secrets.token_hex(32), mode=PRIVATE)
    own = {**_QUIET, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    try:
        with (
            _variables(own, without=("RAY_ADDRESS", "RAY_AUTH_TOKEN")),
            _running(
                address="local",
                num_cpus=cores,
                num_gpus=gpus,
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                _node_ip_address=_LOOPBACK,
                _temp_dir=str(folder),
            ),
        ):
            yield folder
    finally:
        with undisturbed():
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def connected(address: str) -> Iterator[tuple[int, int]]:
    """Uses a cluster inside the block.

    Args:
        address: `HOST:PORT` of its head, from one of its machines; `ray://HOST:PORT` from elsewhere; or `auto`.

    Yields:
        How many cores and how many GPUs it has.

    Raises:
        ServiceError: If no cluster answers there, or it refuses the token.
    """
    if address != "auto":
        _knock(address)
    with _variables(_QUIET), _running(address=address):
        import ray

        resources = ray.cluster_resources()
        yield int(resources.get("CPU", 0)), int(resources.get("GPU", 0))


@contextmanager
def _running(**options: Any) -> Iterator[None]:  # noqa: ANN401 - those of Ray
    import ray

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with _own_signals():
            _begin(options)
    except Exception as error:  # Ray raises exceptions of no class of its own here.
        why = str(error).strip().partition("\n")[0].rstrip(".")[:300] or type(error).__name__
        there = options["address"]
        if there == "local":
            raise ServiceError(f"Ray does not start on this machine: {why}") from error
        raise ServiceError(
            f"the Ray cluster at {there} cannot be used: {why}. Is it running, has it the same versions of Ray and "
            "Python, and is its token in RAY_AUTH_TOKEN_PATH?"
        ) from error
    _hush()
    try:
        with _watched():
            yield
    finally:
        with undisturbed():
            # Its processes would write again to a folder that is removed meanwhile.
            ray.shutdown(wait_for_processes=True)
            _forget_token()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Leaves to this process what SIGTERM does, which Ray takes when it starts.

    Ray's Python ends the process without a word, and its C++ core writes its stack to standard error before that.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _watched() -> AbstractContextManager[None]:
    """Watches what the job stands on, unless a proxy of Ray's does that, which is asked by `ray://`."""
    import ray
    from ray.util.client import ray as proxy

    if proxy.is_connected():
        return nullcontext()
    context = ray.get_runtime_context()
    own = next((node for node in ray.nodes() if node["NodeID"] == context.get_node_id()), None)
    if own is None:
        return nullcontext()
    return watched(head=context.gcs_address, node=f"{own['NodeManagerAddress']}:{own['NodeManagerPort']}")


def _hush() -> None:
    """Keeps Ray from printing, to standard output and whatever it was told, that a worker has died.

    Documents for programs are written there; what becomes of the worker's block is told by the job.
    """
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_said, **_how: None


def _begin(options: Mapping[str, Any]) -> None:
    """Starts Ray, or joins it; a start that comes to nothing in time, as on a machine with much to do, is repeated."""
    import ray

    for left in reversed(range(_STARTS if options["address"] == "local" else 1)):
        try:
            with _mute():
                ray.init(log_to_driver=False, configure_logging=False, **options)
        except BaseException as error:
            with _mute(), undisturbed():
                ray.shutdown(wait_for_processes=True)
            if isinstance(error, SystemExit):
                # What Ray makes of SIGTERM while it starts.
                raise KeyboardInterrupt from None
            if not left or _TOO_LATE not in str(error):
                raise
        else:
            return


@contextmanager
def _mute() -> Iterator[None]:
    """Lets nothing that is written to standard error be seen: Ray's C++ core writes there whatever it is told."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _forget_token() -> None:
    """Lets a later job of this process read its own token."""
    with suppress(ImportError, AttributeError):
        import_module("ray._raylet").AuthenticationTokenLoader.instance().reset_cache()


def _knock(address: str) -> None:
    """Returns when something listens at an address: Ray itself would try for minutes."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
        if not host or port is None:
            raise ValueError
    except ValueError:
        raise ServiceError(
            f"{address!r} is no address of a Ray cluster: give HOST:PORT, ray://HOST:PORT or auto"
        ) from None
    try:
        reach(host, port)
    except OSError as error:
        why = error.strerror or "no answer"
        raise ServiceError(
            f"no Ray cluster answers at {address} ({why}): start one with `ray start`, or leave out address= to "
            "use this machine"
        ) from None


def _private_folder() -> Path:
    """Makes a folder of this user alone. Ray's sockets are below it, whose paths have a hundred characters at most."""
    usual = Path(tempfile.gettempdir())
    short = Path("/tmp")  # noqa: S108 - the folder that is made there is private
    return Path(tempfile.mkdtemp(prefix="keylock-ray-", dir=usual if len(str(usual)) < _LONGEST_FOLDER else short))


@contextmanager
def _variables(changes: Mapping[str, str], *, without: tuple[str, ...] = ()) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (*changes, *without)}
    for name in without:
        os.environ.pop(name, None)
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
