"""Where training runs, and in which precision."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import median
from time import monotonic

import torch
from torch import Tensor, nn

from keylock.errors import InputError, UnknownNameError

__all__ = [
    "PRECISIONS",
    "compiled_where_possible",
    "denormals_flushed",
    "fused_step",
    "in_quickest_threads",
    "mixed_precision",
    "resolve_device",
    "resolve_precision",
]

PRECISIONS = ("auto", "float32", "bfloat16")
"""What a training may be told to compute in."""


_log = logging.getLogger(__name__)


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
        raise InputError(f"this machine has no device {name!r}: give device=auto, cpu or cuda") from None
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """Return `float32` or `bfloat16`; `auto` takes bfloat16 where the device computes in it in hardware.

    Raises:
        UnknownNameError: The name is not one of `PRECISIONS`.
    """
    if name not in PRECISIONS:
        raise UnknownNameError("precision", name, PRECISIONS)
    if name != "auto":
        return name
    if device.type == "cuda":
        quick = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        quick = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if quick else "float32"


def mixed_precision(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return a context in which networks compute in a precision.

    In bfloat16 it is torch's autocast: convolutions and products of matrices have 8 bits of mantissa, weights stay in
    float32. Where the device has no such instructions the numbers are the same kind and the training slower.

    Args:
        device: Where it computes.
        precision: One of `PRECISIONS`.
    """
    if resolve_precision(precision, device) == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def fused_step(device: torch.device) -> bool:
    """Return whether torch has an Adam for a device that reads and writes every tensor once, several times as fast."""
    return device.type in ("cpu", "cuda")


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


@contextmanager
def in_quickest_threads(
    step: Callable[[], object], *, rounds: int = 5, clock: Callable[[], float] = monotonic
) -> Iterator[int]:
    """Compute in one thread inside the block where that is quicker than in all there are.

    On cores that other programs keep busy, threads wait for each other after every layer, and a small network is done
    several times as soon by one.

    Args:
        step: What is timed, with all threads and with one by turns.
        rounds: How often each; the median counts.
        clock: Seconds.

    Yields:
        The number of threads.
    """
    there = torch.get_num_threads()
    times: dict[int, list[float]] = {there: [], 1: []}
    try:
        for _ in range(rounds if there > 1 else 0):
            for count, took in times.items():
                torch.set_num_threads(count)
                begun = clock()
                step()
                took.append(clock() - begun)
        chosen = min(times, key=lambda count: median(times[count])) if there > 1 else 1
        torch.set_num_threads(chosen)
        yield chosen
    finally:
        torch.set_num_threads(there)


def compiled_where_possible(module: nn.Module, *, backend: str = "inductor") -> Callable[[Tensor], Tensor]:
    """Return a compiled form of a module's forward pass, which is replaced by the module itself where compiling fails.

    Gradients of gradients do not lead through it. Compiling happens at the first call.

    Args:
        module: From images to logits; its weights are not copied.
        backend: Of `torch.compile`.
    """
    # Compiled as a function, because hooks on a compiled module would be compiled too.
    compiled: Callable[[Tensor], Tensor] | None = None
    failed = False

    def run(images: Tensor) -> Tensor:
        nonlocal compiled, failed
        if not failed:
            try:
                if compiled is None:
                    made = torch.compile(module.forward, backend=backend)
                    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
                    # The way back is compiled when it is gone for the first time, and may fail there.
                    torch.autograd.grad(made(images).sum(), trained, allow_unused=True)
                    compiled = made
                return compiled(images)
            except Exception as error:
                failed = True
                _log.warning("not compiled (%s): going on without", type(error).__name__)
        result: Tensor = module(images)
        return result

    return run
