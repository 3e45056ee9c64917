"""Which execution providers ONNX Runtime is asked for: only those the machine really has.

The GPU build lists CUDA as available on every machine, and logs errors when it is asked for it where there is no
GPU. So the driver is asked first, through its own library.
"""

import contextlib
import ctypes
import io
import logging
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Final, Literal

import onnxruntime

from keylock.errors import ServiceError

__all__ = ["Device", "check_providers", "choose_providers", "cuda_device_count", "warn_about_two_runtimes"]

Device = Literal["auto", "cpu", "cuda"]

_LOG: Final = logging.getLogger("keylock_server")
_CUDA: Final = "CUDAExecutionProvider"
_CPU: Final = "CPUExecutionProvider"


def cuda_device_count() -> int:
    """Counts the CUDA devices the driver knows; 0 where there is no driver. Initialises the driver, nothing else."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def choose_providers(device: Device) -> list[str]:
    """Chooses the providers to ask ONNX Runtime for.

    Args:
        device: `auto` takes CUDA where there is a GPU and a runtime for it; `cuda` insists; `cpu` never asks.

    Returns:
        Names of providers, best first; the last is always the CPU.

    Raises:
        ServiceError: If CUDA is insisted on and the machine or the runtime has none.
    """
    if device == "cpu":
        return [_CPU]
    built_for_cuda = _CUDA in onnxruntime.get_available_providers()
    if built_for_cuda and cuda_device_count():
        _load_cuda_libraries()
        return [_CUDA, _CPU]
    if device == "cuda":
        missing = "no CUDA device" if built_for_cuda else "an ONNX Runtime without CUDA (install onnxruntime-gpu)"
        raise ServiceError(f"the device cuda was asked for and this machine has {missing}: use --device cpu")
    return [_CPU]


def check_providers(device: Device, *, asked: Sequence[str], used: Sequence[str]) -> None:
    """Checks what a session made of the providers it was asked for, since it falls back without an error.

    Raises:
        ServiceError: If CUDA was insisted on and is not used.
    """
    if asked[0] == used[0]:
        return
    text = "there is a GPU and ONNX Runtime cannot use it: are the CUDA and cuDNN libraries of its version installed?"
    if device == "cuda":
        raise ServiceError(text)
    _LOG.warning("%s Serving on the CPU.", text)


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
