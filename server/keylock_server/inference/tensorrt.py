"""TensorRT: whether its libraries are there in the right version, and what ONNX Runtime has to be told about it.

TensorRT builds an engine for each graph when a session is made, which can take minutes, and may keep it in a file.
**An engine holds the constants of its graph.** Opened weights are constants of a graph when its session is made, so
engines of such graphs must never be kept; `sessions` sees to it.

References:
    https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html (the options).
"""

import ctypes
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import onnxruntime

__all__ = ["library_names", "library_version", "missing_library", "provider_options"]

# The version is a part of the name, and the provider names what it needs.
_NAMES: Final = re.compile(rb"libnv(?:infer|onnxparser)\.so\.\d+|nv(?:infer|onnxparser)_\d+\.dll")
_PACKAGE: Final = "tensorrt_libs"


def library_names(provider: Path | None = None) -> tuple[str, ...]:
    """Returns the names of TensorRT's libraries that ONNX Runtime was built for, the one the others need first.

    Args:
        provider: The file of ONNX Runtime's provider; that of the one that is installed when None.

    Returns:
        None at all where the provider is missing, or names no library of TensorRT.
    """
    name = "onnxruntime_providers_tensorrt.dll" if sys.platform == "win32" else "libonnxruntime_providers_tensorrt.so"
    path = provider or Path(onnxruntime.__file__).parent / "capi" / name
    try:
        found = {match.decode() for match in _NAMES.findall(path.read_bytes())}
    except OSError:
        return ()
    return tuple(sorted(found, key=lambda name: ("infer" not in name, name)))


def missing_library(load: Callable[[str], Any] = ctypes.CDLL) -> str | None:
    """Loads the libraries of TensorRT, from its Python package too, which the dynamic loader does not search.

    Once they are loaded, ONNX Runtime finds them by their names.

    Args:
        load: Loads a library by its name or path and raises `OSError` where there is none.

    Returns:
        The name of one that cannot be loaded, or None where all are.
    """
    names = library_names()
    for name in names:
        if _load(name, load) is None:
            return name
    return None if names else "library of TensorRT that is known by name"


def library_version(load: Callable[[str], Any] = ctypes.CDLL) -> int:
    """Returns the version of TensorRT that is loaded, as a number; 0 where there is none."""
    for name in library_names()[:1]:
        library = _load(name, load)
        if library is not None:
            return int(library.getInferLibVersion())
    return 0


def provider_options(
    inputs: Mapping[str, tuple[int, ...]], *, max_batch: int, half: bool, engines: Path | None
) -> dict[str, str]:
    """Returns the options of ONNX Runtime's provider for one graph.

    The sizes of batches are told beforehand, because an engine for others is built while callers wait. That nothing is
    to be written is said outright, because environment variables count where an option is left out.

    Args:
        inputs: Shapes of the inputs of the graph by name; a first size of 0 is the batch, no other is open.
        max_batch: Most rows of a batch; batches of that size are what the engine is made quickest for.
        half: Whether the graph computes in float16.
        engines: Folder that holds, or gets, the engine and what was timed to build it; None to write nothing.
    """
    options = {
        "device_id": "0",
        "trt_fp16_enable": str(half),
        "trt_dump_subgraphs": "False",
        "trt_dump_ep_context_model": "False",
        "trt_engine_cache_enable": str(engines is not None),
        "trt_timing_cache_enable": str(engines is not None),
        "trt_profile_min_shapes": _shapes(inputs, 1),
        "trt_profile_opt_shapes": _shapes(inputs, max_batch),
        "trt_profile_max_shapes": _shapes(inputs, max_batch),
    }
    if engines is not None:
        options |= {"trt_engine_cache_path": str(engines), "trt_timing_cache_path": str(engines)}
    return options


def _shapes(inputs: Mapping[str, tuple[int, ...]], batch: int) -> str:
    batched = {name: (batch, *shape[1:]) for name, shape in inputs.items() if shape and shape[0] == 0}
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in batched.items())


def _load(name: str, load: Callable[[str], Any]) -> Any:  # noqa: ANN401 - a library has no type
    package = importlib.util.find_spec(_PACKAGE)
    folders = [] if package is None else package.submodule_search_locations or []
    for place in (*(str(Path(folder) / name) for folder in folders), name):
        try:
            return load(place)
        except OSError:
            continue
    return None
