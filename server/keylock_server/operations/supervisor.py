"""Several processes that serve on one address, and the one that watches over them.

The parent finds the secrets, takes the address and the memory of the query guard, and forks the workers before gRPC and
ONNX Runtime begin anything. Each worker opens the bundles, listens on the address by itself (`SO_REUSEPORT`: the kernel
divides the connections among them) and says when it answers. From then on:

1. A worker that dies is replaced, after a time that doubles with each death in quick succession, and the log says so.
2. SIGTERM, SIGINT or SIGHUP lets all of them drain; a second one ends that.
3. A worker that ends in good order without having been told so was drained by an operator; then all of them drain.
4. When the parent dies, its workers drain: their end of the channel is closed.
"""

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from keylock.errors import KeylockError, ServiceError
from keylock.signals import stopping_signals
from keylock_server.inference.shared_secrets import STOP, Shared
from keylock_server.settings import ServerSettings
from keylock_server.transport.listening import check_address, forget_ready_file, join, reserve, write_ready_file
from keylock_server.transport.logs import log_fault, name_calls

__all__ = ["Restarts", "supervise"]

_LOG: Final = logging.getLogger("keylock_server")
_FAULT: Final = 70
_LONG_ENOUGH_S: Final = 60.0
_FIRST_DELAY_S: Final = 0.5
_LONGEST_DELAY_S: Final = 30.0
_GRACE_S: Final = 10.0
_CHUNK: Final = 65536


class Restarts:
    """Says how long to wait before a worker is replaced, so that one that cannot live does not busy the machine."""

    def __init__(self) -> None:
        """Begins without any death."""
        self._in_a_row = 0

    def after(self, lived_s: float) -> float:
        """Takes a death into account.

        Args:
            lived_s: How long the worker lived, in seconds.

        Returns:
            How long to wait, in seconds: half a second, twice as long after each further worker that lived less than a
            minute, and never more than half a minute.
        """
        self._in_a_row = self._in_a_row + 1 if lived_s < _LONG_ENOUGH_S else 1
        return float(min(_FIRST_DELAY_S * 2.0 ** min(self._in_a_row - 1, 16), _LONGEST_DELAY_S))


@dataclass(eq=False)
class _Worker:
    """The place of a worker, whoever fills it at the moment.

    Attributes:
        number: Of the place, from 0.
        pid: Of the process; 0 while there is none.
        channel: To the process.
        began: When it was forked.
        heard: What it has said so far.
        described: What it is, since it answers.
        restarts: Of this place.
        due: When the next one is forked; None where one is there.
    """

    number: int
    pid: int = 0
    channel: socket.socket | None = None
    began: float = 0.0
    heard: bytes = b""
    described: dict[str, Any] | None = None
    restarts: Restarts = field(default_factory=Restarts)
    due: float | None = None


def supervise(
    settings: ServerSettings, *, on_ready: Callable[[dict[str, Any]], None], prepare: Callable[[], None]
) -> None:
    """Serves by `settings.workers` processes until one of these; called in the main thread.

    Args:
        settings: What the server does.
        on_ready: Called once all of them answer, with what the first one is and, under `workers`, all of them.
        prepare: Called in each worker, before anything else.

    Raises:
        KeylockError: Whatever keeps the first workers from starting.
        ServiceError: If this system cannot divide the connections of one address among processes.
    """
    if sys.platform != "linux":
        raise ServiceError("several workers on one address need Linux: start one server for each port instead")
    name_calls()
    if settings.admin_port:
        for number in range(settings.workers):
            check_address(settings.admin_host, settings.admin_port + number)
    shared = Shared.find(settings)
    with contextlib.ExitStack() as holders:
        # One port for each of the two protocols, the same for all workers.
        names = ("port",) if settings.http_port is None else ("port", "http_port")
        held = {name: holders.enter_context(reserve(settings.host, getattr(settings, name))) for name in names}
        settings = settings.model_copy(update={name: holder.getsockname()[1] for name, holder in held.items()})
        forget_ready_file(settings.ready_file)
        supervisor = _Supervisor(settings, shared, on_ready=on_ready, prepare=prepare)
        with supervisor.hearing_signals():
            supervisor.run()


class _Supervisor:
    def __init__(
        self,
        settings: ServerSettings,
        shared: Shared,
        *,
        on_ready: Callable[[dict[str, Any]], None],
        prepare: Callable[[], None],
    ) -> None:
        self._settings, self._shared, self._on_ready, self._prepare = settings, shared, on_ready, prepare
        # Its memory is this process's, so that it is there for the workers that follow one that died.
        self._guard = settings.make_guard()
        self._workers = [_Worker(number) for number in range(settings.workers)]
        self._selector = selectors.DefaultSelector()
        self._signals, self._wakeup = socket.socketpair()
        self._ready = False
        self._failure: KeylockError | None = None
        self._give_up_at: float | None = None

    @contextlib.contextmanager
    def hearing_signals(self) -> Iterator[None]:
        """Hears signals while the block runs, and leaves them as they were."""
        self._signals.setblocking(False)
        self._wakeup.setblocking(False)
        self._selector.register(self._signals, selectors.EVENT_READ)
        numbers = (*stopping_signals(), signal.SIGCHLD)
        before = {number: signal.signal(number, lambda _number, _frame: None) for number in numbers}
        wakeup = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            self._signals.close()
            self._wakeup.close()

    def run(self) -> None:
        """Returns when every worker has ended after it was told to."""
        for worker in self._workers:
            self._fork(worker)
        while self._give_up_at is None or any(worker.pid for worker in self._workers):
            self._wait()
            self._reap()
            if self._give_up_at is not None:
                self._kill_late_ones(self._give_up_at)
                continue
            for worker in self._workers:
                if worker.due is not None and time.monotonic() >= worker.due:
                    self._fork(worker)
            if not self._ready and all(worker.described for worker in self._workers):
                try:
                    self._announce()
                except KeylockError as error:
                    self._failure = error
                    self._stop()
        forget_ready_file(self._settings.ready_file)
        if self._failure is not None:
            raise self._failure

    def _wait(self) -> None:
        """Returns when something has happened, or is due, and has done what signals and workers say."""
        moments = [worker.due for worker in self._workers if worker.due is not None]
        if self._give_up_at is not None:
            moments.append(self._give_up_at)
        timeout_s = max(0.0, min(moments) - time.monotonic()) if moments else None
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                for number in self._signals.recv(_CHUNK):
                    if number != signal.SIGCHLD:
                        self._stop()
            else:
                self._hear(key.data)

    def _fork(self, worker: _Worker) -> None:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        worker.began, worker.due, worker.heard, worker.described = time.monotonic(), None, b"", None
        pid = _fork()
        if not pid:
            ours.close()
            self._be_a_worker(worker.number, theirs)
        theirs.close()
        worker.pid, worker.channel = pid, ours
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _be_a_worker(self, number: int, channel: socket.socket) -> NoReturn:
        """Serves, in the new process, and ends it; nothing of the parent's goes on here."""
        code = _FAULT
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for taken in stopping_signals():
                signal.signal(taken, signal.SIG_IGN)
            # A channel that stays open here would hide from its worker that the parent has died.
            self._selector.close()
            for worker in self._workers:
                if worker.channel is not None:
                    worker.channel.close()
            name_calls(worker=number)
            self._prepare()
            # Not before: what is imported here begins threads.
            from keylock_server.operations.one_process import serve_as_worker

            serve_as_worker(_settings_of(self._settings, number), channel, shared=self._shared, guard=self._guard)
            code = 0
        except KeylockError as error:
            code = error.exit_code
            self._report_failure(channel, error.message, code)
        except BaseException as error:  # Whatever it is, it must not go on as a second parent.
            log_fault(error, f"worker {number}")
            self._report_failure(channel, f"a worker could not start ({type(error).__qualname__}); see the log", code)
        finally:
            logging.shutdown()
            os._exit(code)

    @staticmethod
    def _report_failure(channel: socket.socket, message: str, exit_code: int) -> None:
        with contextlib.suppress(OSError):
            channel.setblocking(True)
            channel.sendall(json.dumps({"error": message, "exit_code": exit_code}).encode() + b"\n")

    def _hear(self, worker: _Worker) -> None:
        if worker.channel is None:
            return
        try:
            heard = worker.channel.recv(_CHUNK)
        except OSError:  # It has ended without hearing what it was told last.
            heard = b""
        if not heard:
            self._hang_up(worker)
            return
        worker.heard += heard
        if not worker.heard.endswith(b"\n"):
            return
        said = json.loads(worker.heard)
        if "error" not in said:
            worker.described = said
        elif self._ready:
            _LOG.error("worker %d cannot start: %s", worker.number, said["error"])
        elif self._failure is None:
            self._failure = KeylockError(said["error"])
            self._failure.exit_code = said["exit_code"]

    def _reap(self) -> None:
        for worker in self._workers:
            if not worker.pid:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._bury(worker, os.waitstatus_to_exitcode(status))

    def _bury(self, worker: _Worker, code: int) -> None:
        pid, worker.pid = worker.pid, 0
        self._hear(worker)  # What it has said last.
        self._hang_up(worker)
        if self._give_up_at is not None:
            return
        how = f"was ended by signal {-code}" if code < 0 else f"ended with the exit code {code}"
        if not self._ready:
            self._failure = self._failure or ServiceError(f"worker {worker.number} {how} before it answered")
            self._stop()
        elif not code:
            _LOG.info("worker %d was drained by an operator: the others drain too", worker.number)
            self._stop()
        else:
            delay_s = worker.restarts.after(time.monotonic() - worker.began)
            worker.due = time.monotonic() + delay_s
            _LOG.error("worker %d (process %d) %s: another follows in %g s", worker.number, pid, how, delay_s)

    def _hang_up(self, worker: _Worker) -> None:
        if worker.channel is not None:
            self._selector.unregister(worker.channel)
            worker.channel.close()
            worker.channel = None

    def _stop(self) -> None:
        """Lets the workers drain; the second time, at once."""
        if self._give_up_at is None:
            _LOG.info("stopping the workers")
            self._give_up_at = time.monotonic() + self._settings.notice_s + self._settings.drain_s + _GRACE_S
        for worker in self._workers:
            worker.due = None
            if worker.channel is not None:
                with contextlib.suppress(OSError):
                    worker.channel.send(STOP)

    def _kill_late_ones(self, give_up_at: float) -> None:
        if time.monotonic() < give_up_at:
            return
        for worker in self._workers:
            if worker.pid:
                _LOG.error("worker %d (process %d) does not end and is killed", worker.number, worker.pid)
                os.kill(worker.pid, signal.SIGKILL)
        self._give_up_at = give_up_at + _GRACE_S

    def _announce(self) -> None:
        self._ready = True
        described = [
            {**(worker.described or {}), "pid": worker.pid, "worker": worker.number} for worker in self._workers
        ]
        target = join(self._settings.host, self._settings.port)
        _LOG.info("%d workers answer on %s", len(described), target)
        if self._settings.ready_file is not None:
            write_ready_file(self._settings.ready_file, target)
        own = ("pid", "worker", "metrics_port", "admin_port")
        self._on_ready({**described[0], "workers": [{name: one[name] for name in own} for one in described]})


def _fork() -> int:
    """Forks. Newer Pythons warn where there are threads; those of NumPy's linear algebra are prepared for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _settings_of(settings: ServerSettings, number: int) -> ServerSettings:
    """Returns the settings of one worker: its own ports beside the common one, and no file of its own."""
    own: dict[str, object] = {"ready_file": None}
    for name in ("metrics_port", "admin_port"):
        port = getattr(settings, name)
        own[name] = port + number if port else port
    return settings.model_copy(update=own)
