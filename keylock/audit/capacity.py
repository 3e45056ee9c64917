"""How many attacks can be carried out at the same time."""

import sys
from typing import Final

import torch
from torch import Tensor, nn

from keylock.audit.budgets import Budget
from keylock.audit.case import Case
from keylock.files.limits import available_bytes, available_cores
from keylock.models import split_rows

__all__ = ["bytes_of_outputs", "can_share", "worker_count"]

_SHARE: Final = 0.5
"""What part of the memory that is free may be taken."""
_LEAST_BYTES: Final = 200 * 2**20
_COPIES: Final = 4
"""How often the outputs of all layers are held at once: forwards and backwards, for a gradient of a gradient."""


def can_share(case: Case) -> bool:
    """Return whether several processes can carry out attacks on a lock.

    They are copies of this one, which Linux alone makes safely; and attackers must not ask a server or graphs, whose
    connections and threads would not be in a copy.
    """
    return sys.platform == "linux" and case.asked is None


def worker_count(case: Case, budget: Budget) -> int:
    """Return how many processes may share the attacks: one for each core, or fewer where memory is short.

    Args:
        case: The lock, and data.
        budget: How large batches are.
    """
    if not can_share(case):
        return 1
    free = available_bytes()
    if free is None:
        return available_cores()
    rows = max(budget.batch, budget.search_batch, len(split_rows(case.images)[0][0]))
    needed = _LEAST_BYTES + _COPIES * rows * bytes_of_outputs(case.module, case.images[:1])
    return max(1, min(available_cores(), int(_SHARE * free) // needed))


@torch.no_grad()
def bytes_of_outputs(module: nn.Module, image: Tensor) -> int:
    """Return how many bytes all layers of a classifier give out for one image (1, channels, height, width)."""
    sizes: list[int] = []

    def count(_layer: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    handles = [layer.register_forward_hook(count) for layer in module.modules() if not [*layer.children()]]
    try:
        module(image)
    finally:
        for handle in handles:
            handle.remove()
    return sum(sizes)
