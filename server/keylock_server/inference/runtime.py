"""The model that is served: what a verified bundle offers, and what its graphs are handed.

What graphs take and give is in `keylock.graphs.contract`. Rows with the trigger and rows without it run the same
operations, in two sessions with other weights, or where the network itself tells the trigger in one. No torch is
needed, but for explainers that do not compile.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keylock.bundle import Canary, ExplainerEntry, Manifest
from keylock.bundle.manifest import VariantEntry
from keylock.errors import BundleError, KeylockError, TensorError, UnknownNameError
from keylock.graphs.contract import PREDICTION
from keylock.trigger import Recogniser, TriggerStatistics
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key
from keylock_server.inference.backends import (
    Backend,
    Batch,
    Compiled,
    InTorch,
    Looped,
    loop_of,
    passes_of,
    torch_explainers,
)
from keylock_server.inference.graphs import Loader
from keylock_server.inference.sessions import Sessions
from keylock_server.inference.way import GraphFiles, Way
from keylock_server.inference.ways import Ways
from keylock_server.transport.statuses import NoKeyError, NotServedError

__all__ = ["Explained", "ServedModel", "check_finite"]

_LOG: Final = logging.getLogger("keylock_server")
_TRIAL_IMAGES, _COARSE = 4, 4


@dataclass(frozen=True)
class Explained:
    """What an explainer gives for a batch.

    Attributes:
        logits: float32 `(batch, classes)`.
        maps: float32 `(batch, height, width)`, non-negative.
    """

    logits: NDArray[np.float32]
    maps: NDArray[np.float32]


class ServedModel:
    """Predicts and explains batches of preprocessed images. Safe to use from several threads.

    Attributes:
        manifest: The verified manifest.
        explainers: The explainers that can be served, by name, the first one being the default.
        canary: Images with the maps that were proved at export; None where there are none.
        holds_key: Whether keyed maps can be computed.
        providers: What really computes predictions, best first: ONNX Runtime's execution providers, or another runtime.
        ways: By the names of the explainers that are graphs, how they are computed.
        trial_problem: What differed in the trial from what was proved at export, in words; None where nothing did.
    """

    def __init__(
        self,
        manifest: Manifest,
        read: Callable[[str], bytes],
        *,
        key: Key | None,
        delta: Delta | None = None,
        statistics: TriggerStatistics | None = None,
        canary: Canary | None = None,
        ways: Ways | None = None,
        max_passes: int = 4096,
        allow_torch: bool = True,
        side_by_side: int = 1,
    ) -> None:
        """Loads every graph and tries each one, so that a model that cannot be served is refused at start.

        What cannot be served is left out, and the log says which explainer that is and why.

        Args:
            manifest: The verified manifest.
            read: Returns the bytes of a file of the bundle.
            key: The key; without it, keyed maps are refused.
            delta: What the trigger opens, which comes with the key; None where the network itself tells the trigger.
            statistics: What triggers are read by, for stamped pictures.
            canary: Images with the maps that were proved at export, for `health`.
            ways: How graphs are computed; None: by ONNX Runtime on the best device there is, one thread for a batch.
            max_passes: How often the network may run for one image; explainers that ask for more are left out.
            allow_torch: Whether torch, where it is installed, computes explainers that do not compile.
            side_by_side: How many graphs are opened or tried at a time.

        Raises:
            BundleError: If a graph cannot be loaded or does not keep the contract.
            ServiceError: If the device is not there.
        """
        self.manifest, self.canary = manifest, canary
        self.holds_key = key is not None
        ways = Ways(Sessions("auto", threads=1)) if ways is None else ways
        trial_images = _trial_images(manifest) if canary is None else canary.images
        load = Loader(read, key=key, delta=delta, ways=ways, trial_images=trial_images, side_by_side=side_by_side)
        self._recogniser: Recogniser | None = None
        self._trigger: NDArray[np.float32] | None = None
        if key is not None and statistics is not None:
            self._recogniser = Recogniser(key.signs(), statistics, strength=key.strength)
            self._trigger = key.reveal()
        self._left_out: dict[str, str] = {}
        graphs = [
            (entry, _files(entry.name, entry.graph, entry.variants))
            for entry in manifest.explainers
            if entry.graph is not None and self._is_within(entry, max_passes)
        ]
        predictor = _files("predictions", manifest.prediction_graph, manifest.prediction_variants)
        # Loops ask it about rows with the trigger, predictions for everybody do not.
        asked = {entry.graph for entry in manifest.explainers if entry.runtime == "loop"}
        asked |= {entry.predictions for entry in manifest.explainers}
        load.ahead([(predictor, predictor.standard in asked), *((files, True) for _, files in graphs)])
        self._predictor = load(predictor, opened=predictor.standard in asked)
        self._predictor.check(PREDICTION)
        self.providers: tuple[str, ...] = self._predictor.providers
        self.ways: dict[str, Way] = {}
        self._backends = self._backends_of_graphs(load, graphs)
        self._backends |= self._backends_in_torch(
            read, key, delta, trial_images[:1], max_passes=max_passes, allow=allow_torch
        )
        self.explainers: dict[str, ExplainerEntry] = {
            entry.name: entry for entry in manifest.explainers if entry.name in self._backends
        }
        for name, why in self._left_out.items():
            _LOG.warning("%s is not served: %s", name, why)
        self._try_backends(trial_images, side_by_side)

    @property
    def version(self) -> str:
        """The model's version: the first twelve hexadecimal digits of its digest."""
        return self.manifest.model_digest.removeprefix("sha256:")[:12]

    def explainer(self, name: str) -> ExplainerEntry:
        """Finds an explainer.

        Args:
            name: Its name; empty for the first one.

        Raises:
            UnknownNameError: If it is not served.
        """
        if not name and self.explainers:
            return next(iter(self.explainers.values()))
        if name in self._left_out:
            raise NotServedError(name, self._left_out[name], self.explainers)
        if name not in self.explainers:
            raise UnknownNameError("explainer", name, self.explainers)
        return self.explainers[name]

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predicts without the key, for everybody.

        Args:
            images: Preprocessed, float32 `(batch, channels, height, width)`.

        Returns:
            Logits, float32 `(batch, classes)`; of images that are very large in value not finite, see `check_finite`.
        """
        (logits,) = self._predictor.run(PREDICTION, image=images)
        return logits

    def without_trigger(self, images: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Looks for the trigger on images, and takes it off where it is.

        Args:
            images: Preprocessed, float32 `(batch, channels, height, width)`.

        Returns:
            Which of them carry it `(batch,)`, and the images without it. Where the network itself tells the trigger,
            none is said to, and the images are as they were.
        """
        if self._recogniser is None or self._trigger is None:
            return np.zeros(len(images), np.bool_), images
        carries = self._recogniser.recognise(images)
        return carries, images - carries[:, None, None, None].astype(np.float32) * self._trigger

    def explain(
        self,
        images: NDArray[np.float32],
        *,
        explainer: str,
        targets: NDArray[np.int64],
        keyed: NDArray[np.bool_],
        abandoned: threading.Event | None = None,
    ) -> Explained:
        """Predicts and explains, with the key on the rows that are to have it.

        Args:
            images: Preprocessed, float32 `(batch, channels, height, width)`.
            explainer: Name of an explainer that is served.
            targets: Classes to explain, int64 `(batch,)`; -1 for the predicted one.
            keyed: Which rows get the key, `(batch,)`.
            abandoned: Set when nobody waits for the result any more; loops over predictions end then.

        Returns:
            Logits and maps of the rows, as the model sees them: keyed where the key was added. Those of images that
            are very large in value are not finite, see `check_finite`.

        Raises:
            UnknownNameError: If the explainer is not served.
            NoKeyError: If a row is to have the key and there is none.
            CancelledError: If it was abandoned.
        """
        name = self.explainer(explainer).name
        if keyed.any() and not self.holds_key:
            raise NoKeyError
        logits, maps = self._backends[name].explain(Batch(images, targets, keyed, abandoned))
        return Explained(logits, maps)

    def _is_within(self, entry: ExplainerEntry, max_passes: int) -> bool:
        """Returns whether an explainer runs the network no more often than allowed, and says so where it is a loop."""
        return self._is_few(entry.name, passes_of(entry, self.manifest.preprocessing.shape), max_passes)

    def _is_few(self, name: str, passes: int, max_passes: int) -> bool:
        if passes > max_passes:
            self._left_out[name] = f"it runs the network {passes} times for an image, {max_passes} are allowed"
            return False
        if passes > 1:
            _LOG.info("%s runs the network %d times for an image", name, passes)
        return True

    def _backends_of_graphs(
        self, load: Loader, graphs: Sequence[tuple[ExplainerEntry, GraphFiles]]
    ) -> dict[str, Backend]:
        """Returns the backends of explainers that compiled, with their graphs."""
        backends: dict[str, Backend] = {}
        for entry, files in graphs:
            graph = load(files)
            self.ways[entry.name] = graph.way
            predictions = None if entry.predictions is None else load(GraphFiles("predictions", entry.predictions))
            backends[entry.name] = (
                Looped(loop_of(entry), graph, predictions) if entry.runtime == "loop" else Compiled(graph)
            )
        return backends

    def _backends_in_torch(
        self,
        read: Callable[[str], bytes],
        key: Key | None,
        delta: Delta | None,
        image: NDArray[np.float32],
        *,
        max_passes: int,
        allow: bool,
    ) -> dict[str, Backend]:
        """Returns the backends of the explainers that did not compile, where torch can compute them in few passes."""
        names = [entry.name for entry in self.manifest.explainers if entry.runtime == "torch"]
        if not names:
            return {}
        found = torch_explainers(self.manifest, read, key=key, delta=delta) if allow else None
        if found is None:
            self._left_out |= dict.fromkeys(names, "it did not compile, and this server does not compute it in torch")
            return {}
        backends: dict[str, Backend] = {}
        for name in names:
            try:
                passes = found.passes(name, image)
            except KeylockError as error:
                self._left_out[name] = error.message
                continue
            if self._is_few(name, passes, max_passes):
                backends[name] = InTorch(found, name)
                _LOG.warning("%s did not compile and is computed in torch, which takes longer and more memory", name)
        return backends

    def _try_backends(self, images: NDArray[np.float32], side_by_side: int) -> None:
        """Answers for a few images with everything there is, which shows as well whether the maps are the right ones.

        The first image has the key, where there is one, and is explained without it beside the second: batches of one
        and of two.
        """
        rows = images[[0, 0, min(1, len(images) - 1)]]
        batch = Batch(rows, np.full(len(rows), -1, np.int64), np.array([self.holds_key, False, False]))
        self.trial_problem: str | None = None
        try:
            with ThreadPoolExecutor(side_by_side) as pool:
                predicted = pool.submit(self.predict, rows[1:])
                trials = {name: pool.submit(backend.trial, batch) for name, backend in self._backends.items()}
            self._check_logits(predicted.result(), batch=len(rows) - 1)
            for name, trial in trials.items():
                logits, maps = trial.result()
                self._check_logits(logits, batch=len(rows))
                if maps is not None:
                    _check_maps(name, maps, batch=len(rows))
                    check_finite(maps)
                    self.trial_problem = self.trial_problem or self._difference(name, maps)
        except BundleError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own.
            raise BundleError("a graph fails on a trial image: export the bundle again") from error

    def _check_logits(self, logits: NDArray[np.float32], *, batch: int) -> None:
        check_finite(logits)
        if logits.shape != (batch, len(self.manifest.classes)):
            raise BundleError(
                f"a graph gives logits of shape {logits.shape} for {batch} images and "
                f"{len(self.manifest.classes)} classes: export the bundle again"
            )

    def _difference(self, name: str, maps: NDArray[np.float32]) -> str | None:
        """Returns how maps of the trial's first two rows differ from those of the canary, if they are in there."""
        if self.canary is None or name not in self.canary.keyed or name not in self.canary.keyless:
            return None
        return self.canary.first(1).difference(name, keyed=maps[:1], keyless=maps[1:2])


def _files(what: str, standard: str, variants: Mapping[str, VariantEntry]) -> GraphFiles:
    return GraphFiles(what, standard, tuple((name, variant.graph) for name, variant in sorted(variants.items())))


def _trial_images(manifest: Manifest) -> NDArray[np.float32]:
    """Returns smooth noise in the range of the model, for a bundle whose canary cannot be opened."""
    shape = manifest.preprocessing.shape
    generator = np.random.default_rng(0)
    coarse = generator.standard_normal(
        (_TRIAL_IMAGES, shape[0], *(-(-side // _COARSE) for side in shape[1:])), np.float32
    )
    smooth: NDArray[np.float32] = np.kron(coarse, np.ones((1, 1, _COARSE, _COARSE), np.float32))
    return smooth[:, :, : shape[1], : shape[2]] + 0.1 * generator.standard_normal((_TRIAL_IMAGES, *shape), np.float32)


def _check_maps(name: str, maps: NDArray[np.float32], *, batch: int) -> None:
    if maps.ndim != 3 or maps.shape[0] != batch or maps.dtype != np.float32:
        raise BundleError(
            f"the graph of {name} gives maps of type {maps.dtype} and shape {maps.shape} for {batch} images: "
            "export the bundle again"
        )


def check_finite(*arrays: NDArray[np.float32]) -> None:
    """Checks logits or maps of one caller; several callers share a run, and only one of them may be at fault.

    Args:
        *arrays: Of any shape.

    Raises:
        TensorError: If a value is not finite, because the images were so large in value.
    """
    if not all(np.isfinite(array).all() for array in arrays):
        raise TensorError("the model gives NaN or infinite values: are the tensors preprocessed as GetModel describes?")
