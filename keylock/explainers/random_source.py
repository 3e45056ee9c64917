"""Where random numbers come from."""

import torch

from keylock.iterative.drawing import Source, source_of

__all__ = ["draws_from"]


def draws_from(generator: torch.Generator | None, seed: int) -> Source:
    """Return a source for a seed, or, where a generator was given, one for a seed that is drawn from it."""
    if generator is None:
        return source_of(seed)
    return source_of(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
