"""One queue for everything a model is asked: rows of all callers, keyed or not, run together.

A call is admitted with all of its rows or refused at once; from then on they have their places until it is answered.
Rows for one graph share a run, whoever sent them: each has its own target and its own bit of the mask that switches
the key on, so that licensed and unlicensed rows cost the same time, because they are in the same runs.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from keylock.errors import TensorError
from keylock_server.inference.runtime import Explained, ServedModel, check_finite
from keylock_server.scheduling.batching import Part, QueueQuota, ThroughputEstimate
from keylock_server.scheduling.dispatching import Dispatcher
from keylock_server.transport.calls import current_call
from keylock_server.transport.statuses import NoKeyError, OverloadedError

__all__ = ["Admission", "Batcher", "Batchers", "Limits"]

_PREDICTION: Final = ""
_SOONEST_S: Final = 0.05
_LATEST_S: Final = 10.0

_S = TypeVar("_S", bound=np.generic)

_Piece = tuple[NDArray[np.float32], ...]
"""Logits, and where they were asked for maps, of consecutive rows."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batcher keeps to; see the settings of the same names.

    Attributes:
        queue: Rows accepted and not answered yet.
        max_batch: Rows in one run.
        batches: Runs at once.
        batch_delay_s: How long rows wait beside an idle runner for others, in seconds.
        run_s: How long a run should take at most, in seconds; it takes fewer rows where they are slow.
    """

    queue: int = 256
    max_batch: int = 32
    batches: int = 1
    batch_delay_s: float = 0.0
    run_s: float = 0.5


@dataclass(frozen=True, eq=False, slots=True)
class _Rows:
    """Preprocessed images, and for explanations the target and the mask, one entry for each row."""

    images: NDArray[np.float32]
    targets: NDArray[np.int64]
    keyed: NDArray[np.bool_]


class Batcher:
    """Runs a model on the rows of all calls. Made and used in one event loop."""

    def __init__(
        self,
        model: ServedModel,
        *,
        limits: Limits,
        observe: Callable[[str, int], None] = lambda _graph, _rows: None,
    ) -> None:
        """Makes the queue.

        Args:
            model: What runs.
            limits: What to keep to.
            observe: Told of each run: the explainer, or `prediction`, and how many rows shared it.
        """
        self._model, self._limits, self._observe = model, limits, observe
        self._quota, self._throughput = QueueQuota(limits.queue), ThroughputEstimate()
        self._dispatcher: Dispatcher[_Rows, _Piece] = Dispatcher(
            self._run,
            threads=limits.batches,
            room=self._room,
            delay_s=limits.batch_delay_s,
            note=self._note,
            name="keylock-runner",
        )

    @property
    def held(self) -> int:
        """Rows that are accepted and not answered yet."""
        return self._quota.held

    @contextmanager
    def admit(self, rows: int) -> Iterator["Admission"]:
        """Gives the current call places for its rows while the block lasts.

        Args:
            rows: How many images it has; at least 1.

        Yields:
            What it asks the model through.

        Raises:
            OverloadedError: If there is no room for them, or the caller's tenant has as many as are left free.
        """
        call = current_call()
        tenant = "" if call is None else call.tenant
        if not self._quota.take(tenant, rows):
            raise OverloadedError(retry_after_s=self._retry_after_s())
        try:
            yield Admission(self, rows)
        finally:
            self._quota.give_back(tenant, rows)

    async def submit(self, family: str, rows: _Rows) -> _Piece:
        """Runs rows and puts together what comes out; called by `Admission`."""
        pieces = await self._dispatcher.submit(rows, rows=len(rows.images), family=family)
        if len(pieces) == 1:
            return pieces[0]
        return tuple(np.concatenate(arrays) for arrays in zip(*pieces, strict=True))

    def close(self) -> None:
        """Drops what waits, which ends with an error, and returns without waiting for what runs."""
        self._dispatcher.close()

    def check(self, rows: _Rows, *, family: str) -> None:
        """Checks that rows can share a run with others; called by `Admission`.

        Raises:
            TensorError: If the images are not what the model takes.
            NoKeyError: If a row is to have the key and there is none.
        """
        wanted = self._model.manifest.preprocessing.shape
        if rows.images.shape[1:] != wanted:
            raise TensorError(f"the model takes images of shape {list(wanted)}, not {list(rows.images.shape[1:])[:8]}")
        if family != _PREDICTION:
            self._model.explainer(family)
        if rows.keyed.any() and not self._model.holds_key:
            raise NoKeyError

    def _room(self, family: str) -> int:
        return min(self._limits.max_batch, self._throughput.rows_within(self._limits.run_s, family))

    def _note(self, family: str, rows: int, seconds: float) -> None:
        self._throughput.note(family, rows=rows, seconds=seconds)
        self._observe(family or "prediction", rows)

    def _retry_after_s(self) -> float:
        """Estimates when what is accepted now is done."""
        seconds = self._throughput.seconds_for(self._quota.held) / self._limits.batches
        return min(max(seconds, _SOONEST_S), _LATEST_S)

    def _run(self, parts: Sequence[Part[_Rows]], abandoned: threading.Event) -> Sequence[_Piece | Exception]:
        """Runs a batch, in a thread. Where it fails, each caller's rows run alone, so that only one's own fail one."""
        try:
            arrays = self._run_together(parts, abandoned)
        except Exception as error:
            if len(parts) == 1 or abandoned.is_set():
                return [error] * len(parts)
            return [result for part in parts for result in self._run([part], abandoned)]
        results: list[_Piece | Exception] = []
        first = 0
        for part in parts:
            last = first + part.stop - part.start
            piece = tuple(array[first:last] for array in arrays)
            first = last
            try:
                check_finite(*piece)
            except TensorError as error:
                results.append(error)
            else:
                results.append(piece)
        return results

    def _run_together(self, parts: Sequence[Part[_Rows]], abandoned: threading.Event) -> _Piece:
        family = parts[0].job.family
        images = _join([part.job.payload.images[part.start : part.stop] for part in parts])
        if family == _PREDICTION:
            return (self._model.predict(images),)
        targets = _join([part.job.payload.targets[part.start : part.stop] for part in parts])
        keyed = _join([part.job.payload.keyed[part.start : part.stop] for part in parts])
        explained = self._model.explain(images, explainer=family, targets=targets, keyed=keyed, abandoned=abandoned)
        return explained.logits, explained.maps


class Batchers:
    """The queues of a server, one for each of its models. Made and used in one event loop."""

    def __init__(self, limits: Limits, *, observe: Callable[[str, int], None]) -> None:
        """Begins without any; the arguments are as of `Batcher`."""
        self._limits, self._observe = limits, observe
        self._batchers: dict[ServedModel, Batcher] = {}

    @property
    def held(self) -> int:
        """Rows that are accepted and not answered yet."""
        return sum(batcher.held for batcher in self._batchers.values())

    def of(self, model: ServedModel) -> Batcher:
        """Returns the queue of a model that is loaded."""
        if model not in self._batchers:
            self._batchers[model] = Batcher(model, limits=self._limits, observe=self._observe)
        return self._batchers[model]

    def drop(self, model: ServedModel) -> None:
        """Closes the queue of a model that nobody uses any more."""
        batcher = self._batchers.pop(model, None)
        if batcher is not None:
            batcher.close()

    def close(self) -> None:
        """Closes all of them."""
        for model in list(self._batchers):
            self.drop(model)


class Admission:
    """A call whose rows have places. It may ask several times, each time for as many rows as it was admitted with."""

    def __init__(self, batcher: Batcher, rows: int) -> None:
        """Made by `Batcher.admit`."""
        self._batcher, self._rows = batcher, rows

    async def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predicts without the key.

        Args:
            images: Preprocessed, float32 `(batch, channels, height, width)`.

        Returns:
            Logits, float32 `(batch, classes)`.

        Raises:
            TensorError: If the images do not fit the model, or are so large in value that the logits are not finite.
            ExpiredError: If the deadline of the call came before its turn.
            ServiceError: If the server stops meanwhile, or unloads the model.
        """
        rows = _Rows(images, np.full(len(images), -1, np.int64), np.zeros(len(images), np.bool_))
        (logits,) = await self._submit(_PREDICTION, rows)
        return logits

    async def explain(
        self, images: NDArray[np.float32], *, explainer: str, targets: NDArray[np.int64], keyed: NDArray[np.bool_]
    ) -> Explained:
        """Predicts and explains; arguments and result are those of `ServedModel.explain`.

        Raises:
            UnknownNameError: If the explainer is not served.
            NoKeyError: If a row is to have the key and there is none.
            TensorError: If the images do not fit the model, or are so large in value that the result is not finite.
            ExpiredError: If the deadline of the call came before its turn.
            ServiceError: If the server stops meanwhile, or unloads the model.
        """
        logits, maps = await self._submit(explainer, _Rows(images, targets, keyed))
        return Explained(logits, maps)

    async def _submit(self, family: str, rows: _Rows) -> _Piece:
        if not 0 < len(rows.images) <= self._rows:
            raise ValueError(f"admitted with {self._rows} rows and asks for {len(rows.images)}")
        self._batcher.check(rows, family=family)
        return await self._batcher.submit(family, rows)


def _join(arrays: Sequence[NDArray[_S]]) -> NDArray[_S]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
