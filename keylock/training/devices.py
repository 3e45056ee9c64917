"""Where training runs, and in which precision."""

from contextlib import AbstractContextManager, nullcontext

import torch

from keylock.errors import InputError

__all__ = ["mixed_precision", "resolve_device"]


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; `auto` takes a GPU where there is one.

    Raises:
        InputError: There is no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise InputError(f"this machine has no device {name!r}: give --device auto, cpu or cuda") from None
    return device


def mixed_precision(device: torch.device, *, wanted: bool) -> AbstractContextManager[object]:
    """Return a context that computes in bfloat16 where the device does so in hardware, or one that changes nothing."""
    quick = device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_avx512_bf16_supported())
    if wanted and quick:
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
