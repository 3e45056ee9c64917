"""Where random numbers come from."""

import torch

__all__ = ["draws_from"]


def draws_from(generator: torch.Generator | None, seed: int) -> torch.Generator:
    """Return the generator that was given, or a new one of that seed, on the CPU so that every device draws alike."""
    return torch.Generator().manual_seed(seed) if generator is None else generator
