"""The models of a server: which are loaded, which calls use them, and how one goes without cutting a call off.

A model is found by its name and version, which are those of its bundle. A bundle that was named at the start can be
unloaded and loaded again while the server runs, and what is then in its place may be a newer version. Whoever uses a
model says so with `use`, and a model that is to go waits for them.

Everything here but the opening of a bundle happens in the event loop.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from keylock.errors import InputError, KeylockError, ServiceError, UnknownNameError
from keylock_server.inference.runtime import ServedModel
from keylock_server.settings import Source
from keylock_server.transport.fields import at_field
from keylock_server.transport.statuses import LoadError, NotLoadedError

__all__ = ["Listed", "Models", "State"]

_LOG: Final = logging.getLogger("keylock_server")


class State(StrEnum):
    """What a bundle of a server is at the moment, in the words of the Open Inference Protocol."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of the list of models.

    Attributes:
        name: Name of the model.
        version: Its version; that which was loaded last where none is.
        state: What it is at the moment.
        reason: Why it is not ready, in words for the operator; empty where it is, or nobody knows.
    """

    name: str
    version: str
    state: State
    reason: str


@dataclass(eq=False)
class _Loaded:
    """A model in memory, and the calls that use it."""

    model: ServedModel
    calls: int = 0
    leaving: bool = False
    left: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class _Place:
    """Where the model of one bundle is, or was."""

    source: Source
    name: str
    version: str
    loaded: _Loaded | None
    state: State = State.READY
    reason: str = ""


class Models:
    """The models of a server."""

    def __init__(
        self, opened: Sequence[tuple[Source, ServedModel]], *, reopen: Callable[[Source], ServedModel]
    ) -> None:
        """Takes the models that are loaded at the start.

        Args:
            opened: Each bundle and the model in it, at least one. Of two versions made at once the later one counts as
                the newer.
            reopen: Opens a bundle again; may block.

        Raises:
            ServiceError: If two bundles hold the same model.
        """
        self._reopen = reopen
        self._places = [_Place(source, m.manifest.name, m.version, _Loaded(m)) for source, m in opened]
        self._changing = asyncio.Lock()
        self._departures: set[asyncio.Task[None]] = set()
        self._on_unload: list[Callable[[ServedModel], None]] = []
        for number, place in enumerate(self._places):
            self._check_unique(place, place.name, place.version, self._places[:number])

    @property
    def served(self) -> tuple[ServedModel, ...]:
        """The models that are loaded, in the order of their bundles."""
        return tuple(place.loaded.model for place in self._places if place.loaded is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all models, loaded or not, each once."""
        return tuple(dict.fromkeys(place.name for place in self._places))

    def on_unload(self, callback: Callable[[ServedModel], None]) -> None:
        """Lets a function know of each model that goes, once the last call that used it has ended."""
        self._on_unload.append(callback)

    def listed(self) -> list[Listed]:
        """Lists every model there is, loaded or not."""
        return [Listed(place.name, place.version, place.state, place.reason) for place in self._places]

    @contextmanager
    def use(
        self, name: str, version: str = "", *, name_field: str = "model_name", version_field: str = "model_version"
    ) -> Iterator[ServedModel]:
        """Finds a model, which stays while the block runs.

        Args:
            name: Its name; empty where there is only one.
            version: Its version; empty for the newest one, by the date of its bundle.
            name_field: The field of the request that the name came from, for errors.
            version_field: That of the version.

        Yields:
            The model.

        Raises:
            InputError: If there are several models and the name is empty.
            UnknownNameError: If there is no such model or version.
            NotLoadedError: If it is not loaded.
        """
        loaded = self._find(name, version, name_field, version_field)
        loaded.calls += 1
        try:
            yield loaded.model
        finally:
            loaded.calls -= 1
            if loaded.leaving and not loaded.calls:
                loaded.left.set()

    async def load(self, name: str) -> None:
        """Loads the bundles of a name again: what is in their place now takes over from what was loaded before.

        Calls that run go on with the model they began with. Where loading fails, what was loaded before stays.

        Raises:
            UnknownNameError: If no bundle has the name.
            LoadError: If a bundle cannot be used, or holds another model by now.
        """
        async with self._changing:
            for place in self._named(name):
                await self._load(place)

    async def unload(self, name: str, *, patience_s: float) -> None:
        """Unloads the models of a name. New calls are refused at once, those that run may finish.

        Args:
            name: Of the models, all versions of it.
            patience_s: How long to wait for calls that run, in seconds. They are not cut off afterwards: the model goes
                when the last has ended.

        Raises:
            UnknownNameError: If no bundle has the name.
        """
        async with self._changing:
            departures = [self._take_out(place) for place in self._named(name)]
        waiting = [departure for departure in departures if departure is not None]
        if waiting:
            await asyncio.wait(waiting, timeout=patience_s)

    async def close(self) -> None:
        """Stops waiting for models that are on their way out; called when no call runs any more."""
        for departure in self._departures:
            departure.cancel()
        await asyncio.gather(*self._departures, return_exceptions=True)

    async def _load(self, place: _Place) -> None:
        before = place.state
        place.state = State.LOADING
        try:
            model = await asyncio.to_thread(self._reopen, place.source)
            if model.manifest.name != place.name:
                raise ServiceError(f"the bundle holds the model {model.manifest.name!r} by now")
            self._check_unique(place, place.name, model.version, [other for other in self._places if other.loaded])
        except KeylockError as error:
            place.state, place.reason = before, error.message
            _LOG.error("the model %s cannot be loaded: %s", place.name, error)
            raise LoadError(place.name, error.message) from None
        except BaseException:
            place.state = before
            raise
        if place.loaded is None or place.loaded.model.manifest.model_digest != model.manifest.model_digest:
            replaced, place.loaded = place.loaded, _Loaded(model)
            if replaced is not None:
                self._let_go(replaced)
        place.state, place.version, place.reason = State.READY, model.version, ""
        _LOG.warning("loaded the model %s (%s)", place.name, model.manifest.model_digest)

    def _take_out(self, place: _Place) -> asyncio.Task[None] | None:
        loaded, place.loaded = place.loaded, None
        if loaded is None:
            return None
        place.state, place.reason = State.UNLOADING, "unloaded by an operator"
        departure = self._let_go(loaded)

        def settle(_: asyncio.Task[None]) -> None:
            if place.state is State.UNLOADING:
                place.state = State.UNAVAILABLE

        departure.add_done_callback(settle)
        return departure

    def _let_go(self, loaded: _Loaded) -> asyncio.Task[None]:
        loaded.leaving = True
        if not loaded.calls:
            loaded.left.set()
        departure = asyncio.create_task(self._depart(loaded))
        self._departures.add(departure)
        departure.add_done_callback(self._departures.discard)
        return departure

    async def _depart(self, loaded: _Loaded) -> None:
        await loaded.left.wait()
        for callback in self._on_unload:
            callback(loaded.model)
        _LOG.warning("unloaded the model %s (%s)", loaded.model.manifest.name, loaded.model.manifest.model_digest)

    def _find(self, name: str, version: str, name_field: str, version_field: str) -> _Loaded:
        with at_field(name_field):
            if not name and len(self.names) > 1:
                raise InputError(f"the server has several models: name one of {', '.join(sorted(self.names))}")
            places = self._named(name or self.names[0])
        loaded = [(place.version, place.loaded) for place in places if place.loaded is not None]
        if not version and loaded:
            newest = max(range(len(loaded)), key=lambda i: (loaded[i][1].model.manifest.created, i))
            return loaded[newest][1]
        with at_field(version_field):
            if version and version not in {place.version for place in places}:
                raise UnknownNameError("model version", version, (place.version for place in places))
        for found, one in loaded:
            if found == version:
                return one
        raise NotLoadedError(places[0].name)

    def _named(self, name: str) -> list[_Place]:
        places = [place for place in self._places if place.name == name]
        if not places:
            raise UnknownNameError("model", name, self.names)
        return places

    @staticmethod
    def _check_unique(place: _Place, name: str, version: str, others: Sequence[_Place]) -> None:
        for other in others:
            if other is not place and (other.name, other.version) == (name, version):
                raise ServiceError(
                    f"{place.source.bundle} and {other.source.bundle} hold the same model {name} ({version}): "
                    "name one of them"
                )
