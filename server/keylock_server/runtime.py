"""The model that is served: ONNX graphs of a verified bundle, and the secrets that are handed to them.

A graph that predicts takes `image` float32 `(batch, channels, height, width)` and gives `logits` `(batch, classes)`.
A graph that explains also takes `target` int64 `(batch,)`, -1 for the predicted class, `keyed` float32 `(batch,)`, and
the secrets: the key, and the tensors of the adapter of a two-factor lock. It also gives `map` float32 `(batch, height,
width)`, non-negative, and `opened` `(batch,)`. The graph adds the key row by row under the mask, so that licensed and
unlicensed rows share a batch, run the same instructions and cost the same time. No torch is needed.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from keylock.adapters import Adapter
from keylock.bundle import Canary, ExplainerEntry, Manifest
from keylock.errors import BundleError, TensorError, UnknownNameError
from keylock.keys import Key
from keylock_server.devices import Device, check_providers, choose_providers
from keylock_server.statuses import NoKeyError

__all__ = ["Explained", "ServedModel", "check_finite"]

_LOG: Final = logging.getLogger("keylock_server")
_ERRORS_ONLY: Final = 3  # ONNX Runtime's severity for its own log, which goes to standard error.
_TRIAL_BATCHES: Final = (1, 3)
_ROWS: Final = frozenset({"image", "target", "keyed"})
_ADAPTER: Final = ("gate.", "delta.")


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
        providers: The execution providers ONNX Runtime really uses, best first.
    """

    def __init__(
        self,
        manifest: Manifest,
        read: Callable[[str], bytes],
        *,
        key: Key | None,
        adapter: Adapter | None = None,
        canary: Canary | None = None,
        device: Device = "auto",
        threads: int = 1,
    ) -> None:
        """Loads every graph and tries each one, so that a model that cannot be served is refused at start.

        Args:
            manifest: The verified manifest.
            read: Returns the bytes of a file of the bundle.
            key: The key; without it, keyed maps are refused.
            adapter: The adapter, which comes with the key where the model is locked with two factors.
            canary: Images with the maps that were proved at export, for `condition`.
            device: Where to run; see `devices`.
            threads: Threads one batch may use.

        Raises:
            BundleError: If a graph cannot be loaded or does not keep the contract above.
            ServiceError: If the device is not there.
        """
        self.manifest, self.canary = manifest, canary
        self.explainers: dict[str, ExplainerEntry] = {
            entry.name: entry for entry in manifest.explainers if entry.graph is not None
        }
        self.holds_key = key is not None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        providers = choose_providers(device)

        def load(path: str) -> onnxruntime.InferenceSession:
            try:
                return onnxruntime.InferenceSession(read(path), options, providers=providers)
            except Exception as error:  # ONNX Runtime's exceptions share no base class of their own.
                if isinstance(error, BundleError):
                    raise
                raise BundleError(f"the graph {path} cannot be loaded: export the bundle again") from error

        self._predictor = load(manifest.prediction_graph)
        self._explainers = {name: load(entry.graph) for name, entry in self.explainers.items() if entry.graph}
        self.providers: tuple[str, ...] = tuple(self._predictor.get_providers())
        check_providers(device, asked=providers, used=self.providers)
        self._check_graphs()
        self._secrets = {name: self._hand_over(name, key, adapter) for name in self._explainers}
        self._try_graphs()

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
        (logits,) = self._predictor.run(["logits"], {"image": images})
        return logits  # type: ignore[no-any-return]

    def explain(
        self,
        images: NDArray[np.float32],
        *,
        explainer: str,
        targets: NDArray[np.int64],
        keyed: NDArray[np.bool_],
    ) -> Explained:
        """Predicts and explains, with the key on the rows that are to have it.

        Args:
            images: Preprocessed, float32 `(batch, channels, height, width)`.
            explainer: Name of an explainer that is served.
            targets: Classes to explain, int64 `(batch,)`; -1 for the predicted one.
            keyed: Which rows get the key, `(batch,)`.

        Returns:
            Logits and maps of the rows, as the model sees them: keyed where the key was added. Those of images that
            are very large in value are not finite, see `check_finite`.

        Raises:
            UnknownNameError: If the explainer is not served.
            NoKeyError: If a row is to have the key and there is none.
        """
        name = self.explainer(explainer).name
        if keyed.any() and not self.holds_key:
            raise NoKeyError
        rows = {"image": images, "target": targets, "keyed": keyed.astype(np.float32)}
        feed = {row: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(rows[row])) for row in rows}
        found = self._explainers[name].run_with_ort_values(["logits", "map"], feed | self._secrets[name])
        logits, maps = (value.numpy() for value in found)
        return Explained(logits, maps)

    def _hand_over(self, name: str, key: Key | None, adapter: Adapter | None) -> dict[str, onnxruntime.OrtValue]:
        """Puts the secret inputs of a graph where it runs, once; without the secrets they are zeros, which never open.

        Raises:
            BundleError: If the secrets are not those that the graph takes.
        """
        session = self._explainers[name]
        shapes = {entry.name: tuple(entry.shape) for entry in session.get_inputs() if entry.name not in _ROWS}
        if key is None:
            given = {secret: np.zeros(shape, np.float32) for secret, shape in shapes.items()}
        else:
            given = {"key": key.reveal(), **({} if adapter is None else adapter.tensors())}
        if {secret: array.shape for secret, array in given.items()} != shapes:
            raise BundleError(f"the graph of {name} takes other secrets than the bundle holds: export the bundle again")
        place = "cuda" if "CUDAExecutionProvider" in session.get_providers() else "cpu"
        return {
            secret: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), place, 0)
            for secret, array in given.items()
        }

    def _check_graphs(self) -> None:
        _check_names(self._predictor, inputs={"image"}, outputs={"logits"})
        for session in self._explainers.values():
            _check_names(session, inputs={*_ROWS, "key"}, outputs={"logits", "map"})

    def _try_graphs(self) -> None:
        for batch in _TRIAL_BATCHES:
            images = np.zeros((batch, *self.manifest.preprocessing.shape), np.float32)
            targets, keyed = np.full(batch, -1, np.int64), np.zeros(batch, np.bool_)
            try:
                all_logits = [self.predict(images)]
                for name in self._explainers:
                    explained = self.explain(images, explainer=name, targets=targets, keyed=keyed)
                    all_logits.append(explained.logits)
                    _check_maps(name, explained.maps, batch=batch)
                    check_finite(explained.maps)
                check_finite(*all_logits)
            except BundleError:
                raise
            except Exception as error:  # See `load`.
                raise BundleError("a graph fails on a trial image: export the bundle again") from error
            for logits in all_logits:
                if logits.shape != (batch, len(self.manifest.classes)):
                    raise BundleError(
                        f"a graph gives logits of shape {logits.shape} for {batch} images and "
                        f"{len(self.manifest.classes)} classes: export the bundle again"
                    )


def _check_names(session: onnxruntime.InferenceSession, *, inputs: set[str], outputs: set[str]) -> None:
    found_inputs = {entry.name for entry in session.get_inputs() if not entry.name.startswith(_ADAPTER)}
    found_outputs = {entry.name for entry in session.get_outputs()}
    if found_inputs != inputs or not outputs <= found_outputs:
        raise BundleError(
            f"a graph takes {sorted(found_inputs)} and gives {sorted(found_outputs)} instead of {sorted(inputs)} and "
            f"{sorted(outputs)}: export the bundle again"
        )


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
