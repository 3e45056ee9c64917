"""The graphs of a bundle in this process, without a server and without torch: predictions and every explainer.

One `LocalGraphs` runs one set of weights, the published ones or those that a trigger opens.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keylock.bundle import WEIGHTS_FILE, Bundle, ExplainerEntry
from keylock.bundle.weights import WeightArrays, read_weights
from keylock.errors import BundleError, InputError
from keylock.graphs.binding import bind
from keylock.graphs.contract import EXPLANATION, GRADIENT_SUMS, PREDICTION, GraphKind, weight_names
from keylock.iterative import make_loop, run_loop, share_of
from keylock.trigger.delta import Delta

__all__ = ["LocalGraphs"]

_ERRORS_ONLY: Final = 3

Images = NDArray[np.float32]


class LocalGraphs:
    """Runs the graphs of a bundle on the processor. A graph is loaded when it is first asked."""

    def __init__(self, bundle: Bundle, delta: Delta | None = None) -> None:
        """Takes the bundle.

        Args:
            bundle: Verified; its graphs are read when they are asked.
            delta: What the trigger opens; None runs the published weights.

        Raises:
            BundleError: The delta does not fit the weights.
            InputError: ONNX Runtime or safetensors is not installed.
        """
        self._make_session = _runtime()
        self._bundle = bundle
        self._weights = _weights(bundle, delta)
        self._sessions: dict[str, Any] = {}

    def predict(self, images: Images) -> NDArray[np.float32]:
        """Returns the logits (batch, classes) of preprocessed images, float32 (batch, channels, height, width)."""
        return self._run(self._bundle.manifest.prediction_graph, PREDICTION, image=images)[0]

    def explain(
        self, entry: ExplainerEntry, images: Images, targets: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Explains preprocessed images.

        Args:
            entry: One of the bundle's explainers.
            images: float32 (batch, channels, height, width).
            targets: Classes, int64 (batch,); -1 for the predicted one.

        Returns:
            Logits (batch, classes) and maps (batch, height, width), none negative.

        Raises:
            BundleError: A graph cannot be loaded.
            InputError: The explainer did not compile for this network.
        """
        if entry.graph is None:
            raise InputError(
                f"{entry.name} did not compile for this network and needs torch: keylock.load_bundle explains with it"
            )
        if entry.runtime == "onnx":
            logits, maps = self._run(entry.graph, EXPLANATION, image=images, target=targets)
            return logits, maps
        return self._loop(entry, entry.graph, images, targets)

    def _loop(
        self, entry: ExplainerEntry, graph: str, images: Images, targets: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        try:
            loop = make_loop(entry.name, **entry.parameters)
        except InputError as error:
            raise BundleError(f"the bundle asks for a loop that this version does not have: {error.message}") from error

        def logits(rows: Images, _of: NDArray[np.intp]) -> NDArray[np.float32]:
            return self._run(entry.predictions or graph, PREDICTION, image=rows)[0]

        def sums(rows: Images, of: NDArray[np.intp], classes: NDArray[np.int64]) -> NDArray[np.float32]:
            return self._run(graph, GRADIENT_SUMS, image=rows, target=classes, share=share_of(of))[0]

        return run_loop(loop, images, targets, logits=logits, gradient_sums=sums)

    def _run(self, path: str, kind: GraphKind, **rows: NDArray[Any]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = self._session(path).run(
            kind.outputs, {name: np.ascontiguousarray(array) for name, array in rows.items()}
        )
        return found

    def _session(self, path: str) -> Any:  # noqa: ANN401 - ONNX Runtime has no type stubs
        if path not in self._sessions:
            model = self._bundle.read(path)
            try:
                given = {name: self._weights[name] for name in weight_names(model)}
                self._sessions[path] = self._make_session(bind(model, given))
            except Exception as error:  # ONNX Runtime's exceptions share no base class of their own.
                raise BundleError(f"the graph {path} cannot be loaded: export the bundle again") from error
        return self._sessions[path]


def _runtime() -> Callable[[bytes], Any]:
    try:
        import onnxruntime
        import safetensors  # noqa: F401 - read later, said now
    except ModuleNotFoundError as error:
        raise InputError(
            f"explaining without a server needs {error.name}, which is not installed: pip install 'keylock[local]'"
        ).for_missing_extra() from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    return lambda model: onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _weights(bundle: Bundle, delta: Delta | None) -> WeightArrays:
    if bundle.manifest.delta is None:
        return {}
    published, opened = read_weights(bundle.read(WEIGHTS_FILE), delta)
    return published if opened is None else opened
