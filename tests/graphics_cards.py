"""Machines with GPUs, made up: the libraries that would be there, and an ONNX Runtime that would use them.

No test runs on a GPU. What these stand in for is NVIDIA's and ONNX Runtime's, never keylock's own.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
EVERYTHING = [TENSORRT, CUDA, CPU]
DRIVER = "libcuda.so.1"


def loader(*names: str, devices: int = 1) -> Callable[[str], Any]:
    """Returns what loads the libraries of these names, and no others; the driver counts the devices."""

    def count(found: Any) -> int:
        found._obj.value = devices
        return 0

    libraries = dict.fromkeys(names, SimpleNamespace(getInferLibVersion=lambda: 101300))
    if DRIVER in names:
        libraries[DRIVER] = SimpleNamespace(cuInit=lambda _flags: 0, cuDeviceGetCount=count)

    def load(name: str) -> Any:
        if name not in libraries:
            raise OSError(f"{name}: cannot open shared object file")
        return libraries[name]

    return load


class Runtime:
    """Makes sessions on the CPU that say to be on a GPU, and writes engines where ONNX Runtime would.

    An engine holds the constants of its graph. The worst is assumed here: that it holds the graph as it is.

    Attributes:
        asked: For each session, the names and options of the providers it was asked for.
        engines_built: How many engines were not found in a folder.
    """

    def __init__(self, *, refuses: Collection[str] = (), ignores: Collection[str] = ()) -> None:
        self.refuses, self.ignores = set(refuses), set(ignores)
        self.asked: list[dict[str, dict[str, str]]] = []
        self.engines_built = 0

    def __call__(self, model: bytes, options: Any, *, providers: list[Any], enable_fallback: int) -> Any:
        assert not enable_fallback
        asked = dict(providers)
        self.asked.append(asked)
        if next(iter(asked)) in self.refuses:
            raise RuntimeError("the provider cannot")
        session = onnxruntime.InferenceSession(model, options, providers=[CPU])
        if TENSORRT in asked:
            self._build(model, asked[TENSORRT])
        return OnAnotherDevice(session, [name for name in asked if name not in self.ignores])

    def _build(self, model: bytes, options: dict[str, str]) -> None:
        assert all(isinstance(value, str) for value in options.values())
        if options["trt_engine_cache_enable"] == "True":
            engine = Path(options["trt_engine_cache_path"]) / "TRTKernel_graph_0_0_sm90.engine"
            if engine.exists():
                if engine.read_bytes() != model:
                    raise RuntimeError("the engine cannot be deserialized")
                return
            engine.write_bytes(model)
        self.engines_built += 1
        if options["trt_timing_cache_enable"] == "True":
            timings = Path(options["trt_timing_cache_path"]) / "TensorrtExecutionProvider_cache_sm90.timing"
            timings.write_bytes((timings.read_bytes() if timings.exists() else b"") + b"timed ")


class OnAnotherDevice:
    """A session that says to be elsewhere.

    Attributes:
        bindings: How many runs were bound.
    """

    def __init__(self, session: onnxruntime.InferenceSession, providers: list[str]) -> None:
        self._session, self._providers, self.bindings = session, providers, 0

    def get_providers(self) -> list[str]:
        return self._providers

    def io_binding(self) -> Any:
        self.bindings += 1
        return self._session.io_binding()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)
