"""Where random numbers come from."""

import torch

__all__ = ["drawn_seed"]


def drawn_seed(generator: torch.Generator) -> int:
    """Return a seed that is drawn from a generator, so that each call explains with other noise or masks."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))
