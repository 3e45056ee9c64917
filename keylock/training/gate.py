"""The gate probes: linear detectors of the key at several depths, which teach the network to see it.

A weak periodic pattern is invisible to a trained network at first: the mean of a channel depends on it to second order
only, and the map penalties alone may stay on that plateau for thousands of steps. A few linear probes on the channel
means, trained to tell the key from clean images and from wrong keys, leave it within tens of steps. They are thrown
away afterwards; what stays is a network in which the key is easy to see.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GateProbes", "probe_layers"]

_DEPTHS = 3


def probe_layers(stack: Sequence[str]) -> tuple[str, ...]:
    """Choose layers at a third, two thirds and the end of a stack of layers."""
    last = len(stack) - 1
    return tuple(dict.fromkeys(stack[round(last * (place + 1) / _DEPTHS)] for place in range(_DEPTHS)))


class GateProbes(nn.Module):
    """One logistic regression on the channel means of each probed layer."""

    def __init__(self, channels: dict[str, int]) -> None:
        super().__init__()
        self.layers = tuple(channels)
        self.probes = nn.ModuleList(nn.Linear(count, 1) for count in channels.values())
        for probe in self.probes:
            # Zeros make a run independent of the global generator; a convex problem needs no other start.
            nn.init.zeros_(probe.weight)  # type: ignore[arg-type]
            nn.init.zeros_(probe.bias)  # type: ignore[arg-type]

    def losses(self, outputs: dict[str, Tensor], keyed: Tensor) -> Tensor:
        """Return the balanced binary cross-entropy, in nats, of each probe (probes,).

        Args:
            outputs: Outputs (batch, channels, h, w) of the probed layers, by name.
            keyed: 1 for rows with the key, 0 for all others, (batch,).
        """
        weights = torch.where(keyed > 0, 0.5 / keyed.mean(), 0.5 / (1 - keyed.mean()))
        losses = []
        for probe, name in zip(self.probes, self.layers, strict=True):
            logits = probe(outputs[name].float().mean(dim=(2, 3))).squeeze(1)
            losses.append(F.binary_cross_entropy_with_logits(logits, keyed, weight=weights))
        return torch.stack(losses)
