"""Which execution providers ONNX Runtime is asked for: only those the machine really has.

The GPU build lists TensorRT and CUDA as available on every machine, and logs errors when it is asked for them where
there is no GPU. So the driver is asked first, through its own library, and TensorRT's libraries are loaded by name.
"""

import contextlib
import ctypes
import io
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, Final, Literal

import onnxruntime

from keylock.errors import ServiceError
from keylock_server.inference.tensorrt import missing_library

__all__ = [
    "CPU",
    "CUDA",
    "TENSORRT",
    "Device",
    "check_providers",
    "choose_providers",
    "cuda_device_count",
    "warn_about_two_runtimes",
]

Device = Literal["auto", "cpu", "cuda", "tensorrt"]

TENSORRT: Final = "TensorrtExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
CPU: Final = "CPUExecutionProvider"

_LOG: Final = logging.getLogger("keylock_server")
_INSISTED: Final = {"cuda": CUDA, "tensorrt": TENSORRT}
_PLACES: Final = {CUDA: "CUDA", CPU: "the CPU"}
_UNUSABLE: Final = {
    CUDA: "there is a GPU and ONNX Runtime cannot use it: are the CUDA and cuDNN libraries of its version installed?",
    TENSORRT: "TensorRT is installed and ONNX Runtime cannot use it: are it, CUDA and cuDNN of the versions that ONNX "
    "Runtime was built for?",
}


def cuda_device_count(load: Callable[[str], Any] = ctypes.CDLL) -> int:
    """Counts the CUDA devices the driver knows; 0 where there is no driver. Initialises the driver, nothing else.

    Args:
        load: Loads a library by its name and raises `OSError` where there is none.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = load(name)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def choose_providers(
    device: Device, *, available: Sequence[str] | None = None, load: Callable[[str], Any] = ctypes.CDLL
) -> list[str]:
    """Chooses the providers to ask ONNX Runtime for.

    Args:
        device: `auto` takes the best there is of TensorRT, CUDA and the CPU, and logs what kept it from a better one;
            `tensorrt` and `cuda` insist; `cpu` never asks.
        available: The providers ONNX Runtime was built with; those of the one that is installed when None.
        load: Loads a library by its name and raises `OSError` where there is none.

    Returns:
        Names of providers, best first; the last is always the CPU.

    Raises:
        ServiceError: If TensorRT or CUDA is insisted on and the machine or the runtime has none.
    """
    if device == "cpu":
        return [CPU]
    built_with = onnxruntime.get_available_providers() if available is None else available
    lacking = _lacking_for_cuda(built_with, load)
    if lacking is not None:
        if device == "auto":
            _LOG.info("computing on the CPU: this machine has %s", lacking)
            return [CPU]
        raise ServiceError(f"the device {device} was asked for and this machine has {lacking}: use device=cpu")
    _load_cuda_libraries()
    if device == "cuda":
        return [CUDA, CPU]
    lacking = _lacking_for_tensorrt(built_with, load)
    if lacking is None:
        return [TENSORRT, CUDA, CPU]
    if device == "auto":
        _LOG.info("computing on CUDA without TensorRT: this machine has %s", lacking)
        return [CUDA, CPU]
    raise ServiceError(f"the device tensorrt was asked for and this machine has {lacking}: use device=cuda")


def check_providers(device: Device, *, asked: Sequence[str], used: Sequence[str]) -> None:
    """Checks what a session made of the providers it was asked for, since it falls back without an error.

    Raises:
        ServiceError: If TensorRT or CUDA was insisted on and is not used.
    """
    if asked[0] == used[0]:
        return
    text = _UNUSABLE[asked[0]]
    if _INSISTED.get(device) == asked[0]:
        raise ServiceError(text)
    _LOG.warning("%s Serving on %s.", text, _PLACES.get(used[0], used[0]))


def _lacking_for_cuda(available: Sequence[str], load: Callable[[str], Any]) -> str | None:
    if CUDA not in available:
        return "an ONNX Runtime without CUDA, where onnxruntime-gpu is needed"
    return None if cuda_device_count(load) else "no CUDA device"


def _lacking_for_tensorrt(available: Sequence[str], load: Callable[[str], Any]) -> str | None:
    if TENSORRT not in available:
        return "an ONNX Runtime without TensorRT"
    library = missing_library(load)
    return None if library is None else f"no {library}, the library of TensorRT that ONNX Runtime was built for"


def _load_cuda_libraries() -> None:
    """Loads the CUDA libraries that came as Python packages, which the dynamic loader does not find by itself."""
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # It prints the name of each library that is not there.
            onnxruntime.preload_dlls()


def warn_about_two_runtimes() -> None:
    """Warns when onnxruntime and onnxruntime-gpu are both installed: they overwrite each other and CUDA vanishes."""
    installed = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        installed.append(name)
    if len(installed) == 2:
        _LOG.warning("onnxruntime and onnxruntime-gpu are both installed and break each other: uninstall one of them")
