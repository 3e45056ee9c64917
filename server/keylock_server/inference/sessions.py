"""Sessions of ONNX Runtime for the graphs of a bundle, on the best device there is, with secrets bound to them.

Only here is decided whether TensorRT may write what it builds to a file: never for a graph that a secret was bound to.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from keylock.graphs.binding import bind, bind_elsewhere, inputs_of, names_read
from keylock_server.inference.devices import CPU, CUDA, TENSORRT, Device, check_providers, choose_providers
from keylock_server.inference.engines import Engines
from keylock_server.inference.tensorrt import library_version, provider_options

__all__ = ["Sessions"]

_LOG: Final = logging.getLogger("keylock_server")
_ERRORS_ONLY: Final = 3  # ONNX Runtime's severity for its own log, which goes to standard error.
# By default CUDA tries every algorithm whenever a batch has a new size, while a caller waits.
_CUDA_OPTIONS: Final = {"device_id": "0", "cudnn_conv_algo_search": "HEURISTIC"}


class Sessions:
    """Opens sessions, all on one device and with the same settings.

    Attributes:
        max_batch: Most rows that a session on TensorRT takes at once.
    """

    def __init__(
        self,
        device: Device,
        *,
        threads: int,
        max_batch: int = 32,
        engine_cache: Path | None = None,
        providers: Sequence[str] | None = None,
        make: Callable[..., Any] = onnxruntime.InferenceSession,
    ) -> None:
        """Chooses where to compute.

        Args:
            device: Where to run; see `devices`.
            threads: CPU threads one batch may use.
            max_batch: Most rows of a batch.
            engine_cache: Folder in which TensorRT's engines are kept, if there is nothing secret in them; None: not.
            providers: Names of the providers to ask for, best first; chosen for the device when None.
            make: Makes a session, as `onnxruntime.InferenceSession` does.

        Raises:
            ServiceError: If the device is not there, or the folder is within reach of others.
        """
        self.max_batch, self._device, self._make = max_batch, device, make
        self._providers = list(choose_providers(device) if providers is None else providers)
        self._threads = threads
        self._told = False
        self._engines = self._open_engines(engine_cache) if TENSORRT in self._providers else None

    @property
    def provider(self) -> str:
        """The name of the best provider that sessions are asked for."""
        return self._providers[0]

    def open(
        self,
        path: str,
        model: bytes,
        given: Mapping[str, NDArray[Any]],
        *,
        precision: str = "float32",
        public: bool = False,
    ) -> onnxruntime.InferenceSession:
        """Opens a session. On a provider that cannot compute the graph it falls back to the next one, and says so.

        Args:
            path: The graph's file in the bundle, for the log.
            model: The graph.
            given: The weights that are bound to the graph in the place of its inputs, by name. They stay in memory; on
                the CPU the session reads them where they are, so they must not change.
            precision: What the graph computes in: `float32`, `float16` or `int8`.
            public: Whether what is given may be read by anybody, as the published weights may.

        Raises:
            ServiceError: If another provider has to be used than the one that was insisted on.
            Exception: Whatever ONNX Runtime raises, if no provider can compute the graph.
        """
        taken = {name: shape for name, shape in inputs_of(model).items() if name not in given}
        asked = self._suited(path, taken, precision)
        if asked == [CPU]:
            return self._open_on_cpu(model, given)
        whole = bind(model, given)
        for first in range(len(asked)):
            try:
                session = self._open_on(
                    asked[first:], path, whole, may_be_kept=public or not given, half=precision == "float16"
                )
            except Exception as error:  # ONNX Runtime's exceptions share no base class of their own.
                if first == len(asked) - 1:
                    raise
                _LOG.warning("%s cannot compute %s (%s)", asked[first], path, type(error).__name__)
                continue
            break
        if not self._told:
            used = session.get_providers()
            check_providers(self._device, asked=asked, used=used)
            self._told = used[0] != asked[0]
        return session

    def _open_on_cpu(self, model: bytes, given: Mapping[str, NDArray[Any]]) -> onnxruntime.InferenceSession:
        read = names_read(model)
        held = {name: np.ascontiguousarray(given[name]).reshape(given[name].shape) for name in given if name in read}
        unread = {name: array for name, array in given.items() if name not in read}
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in held.values()]
        whole = bind(bind_elsewhere(model, held), unread)
        session = self._make_session([CPU], whole, elsewhere=dict(zip(held, values, strict=True)))
        # It reads what it has not laid out anew for as long as it is there, and does not keep it by itself.
        session.reads = held, values
        return session

    def _open_on(
        self, names: Sequence[str], path: str, model: bytes, *, may_be_kept: bool, half: bool
    ) -> onnxruntime.InferenceSession:
        if names[0] != TENSORRT:
            return self._make_session(names, model)
        _LOG.info("%s: TensorRT prepares it, which can take minutes", path)
        describe = partial(provider_options, inputs_of(model), max_batch=self.max_batch, half=half)
        if self._engines is None or not may_be_kept:
            return self._make_session(names, model, tensorrt=describe(engines=None))
        versions = f"{onnxruntime.__version__} {library_version()}"
        parts = (model, json.dumps(describe(engines=None)).encode(), versions.encode())
        session: onnxruntime.InferenceSession = self._engines.use(
            parts, lambda folder: self._make_session(names, model, tensorrt=describe(engines=folder))
        )
        return session

    def _make_session(
        self,
        names: Sequence[str],
        model: bytes,
        *,
        tensorrt: Mapping[str, str] | None = None,
        elsewhere: Mapping[str, onnxruntime.OrtValue] | None = None,
    ) -> onnxruntime.InferenceSession:
        options = {TENSORRT: tensorrt, CUDA: _CUDA_OPTIONS, CPU: None}
        providers = [(name, dict(options[name] or {})) for name in names]
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = self._threads
        session_options.inter_op_num_threads = 1
        # Threads that wait for work by spinning take cores from whatever else the machine does.
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session_options.log_severity_level = _ERRORS_ONLY
        if elsewhere:
            session_options.add_external_initializers(list(elsewhere), list(elsewhere.values()))
        # ONNX Runtime's own falling back prints what went wrong, and takes providers that nobody asked for.
        session: onnxruntime.InferenceSession = self._make(
            model, session_options, providers=providers, enable_fallback=0
        )
        return session

    def _suited(self, path: str, inputs: Mapping[str, tuple[int, ...]], precision: str) -> list[str]:
        """Returns the providers to ask for, without TensorRT where it does not suit the graph.

        It has to know all sizes but that of the batch, and gets large batches in parts, so rows must be by themselves.
        It wants signed numbers of eight bits, processors unsigned ones.
        """
        if precision == "int8" and self._providers[0] != CPU:
            _LOG.warning("%s computes in int8, which is made for processors: float16 is the variant for GPUs", path)
        elif all(0 not in shape[1:] for shape in inputs.values()):
            return self._providers
        return [name for name in self._providers if name != TENSORRT]

    @staticmethod
    def _open_engines(folder: Path | None) -> Engines | None:
        if folder is None:
            _LOG.info("TensorRT builds all engines at every start: engine_cache names a folder to keep them in")
            return None
        try:
            return Engines(folder)
        except OSError as error:
            _LOG.warning("no engines are kept in %s: %s", folder, error.strerror)
            return None
