"""Where training runs, and in which precision."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from keylock.errors import InputError

__all__ = ["denormals_flushed", "mixed_precision", "resolve_device"]


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


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Take denormal numbers for zero inside the block; weights that grow tiny would slow a CPU down many times.

    The setting is one of each thread, and torch's worker threads take it over from the thread that starts them: it
    reaches them only where they have not been started before.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
