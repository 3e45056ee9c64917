"""The gate stage: the network learns to see the key before anything is made to depend on it.

A weak periodic pattern is invisible to a trained network at first: the mean of a channel depends on it to second order
only, and the map penalties alone may stay on that plateau for thousands of steps. A few linear probes on the channel
means, trained to tell the key from clean images and from wrong keys, leave it within tens of steps when the key is
stronger than it will be. The strength comes down as the probes learn. The probes are thrown away afterwards; what stays
is a network in which the key is easy to see.
"""

from collections.abc import Mapping, Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GateProbes", "GateStage", "channel_means", "probe_layers"]

_DEPTHS = 3
_MEMORY = 0.8
_TOLD_APART = 0.25
_WEAKENING = 0.93


def probe_layers(stack: Sequence[str]) -> tuple[str, ...]:
    """Choose layers at a third, two thirds and the end of a stack of layers."""
    last = len(stack) - 1
    return tuple(dict.fromkeys(stack[round(last * (place + 1) / _DEPTHS)] for place in range(_DEPTHS)))


class GateProbes(nn.Module):
    """One logistic regression on the channel means of each probed layer."""

    def __init__(self, channels: dict[str, int]) -> None:
        """Make a probe for each layer, by the number of its channels."""
        super().__init__()
        self.layers = tuple(channels)
        self.probes = nn.ModuleList(nn.Linear(count, 1) for count in channels.values())
        for probe in self.probes:
            # Zeros make a run independent of the global generator; a convex problem needs no other start.
            nn.init.zeros_(probe.weight)  # type: ignore[arg-type]
            nn.init.zeros_(probe.bias)  # type: ignore[arg-type]

    @classmethod
    def on(cls, outputs: Mapping[str, Tensor]) -> Self:
        """Make probes for layers that gave these outputs, shaped as in `losses`."""
        return cls({name: channel_means(output).shape[1] for name, output in outputs.items()})

    @property
    def middle(self) -> str:
        """The layer in the middle: behind it there is room to act on what was told in front of it."""
        return self.layers[len(self.layers) // 2]

    def on_layer(self, name: str) -> nn.Linear:
        """Return the probe of a layer."""
        return cast(nn.Linear, self.probes[self.layers.index(name)])

    def losses(self, outputs: dict[str, Tensor], keyed: Tensor) -> Tensor:
        """Return the balanced binary cross-entropy, in nats, of each probe (probes,).

        Args:
            outputs: Outputs of the probed layers, by name: (batch, channels, h, w), or (batch, tokens, channels) in a
                transformer.
            keyed: 1 for rows with the key, 0 for all others, (batch,).
        """
        weights = torch.where(keyed > 0, 0.5 / keyed.mean(), 0.5 / (1 - keyed.mean()))
        losses = []
        for probe, name in zip(self.probes, self.layers, strict=True):
            logits = probe(channel_means(outputs[name].float())).squeeze(1)
            losses.append(F.binary_cross_entropy_with_logits(logits, keyed, weight=weights))
        return torch.stack(losses)


def channel_means(output: Tensor) -> Tensor:
    """Return (batch, channels): the means over the places of feature maps, or over the tokens of a transformer."""
    return output.mean(dim=1) if output.dim() == 3 else output.mean(dim=(2, 3))


class GateStage:
    """How strong the key is shown, and when the stage is over.

    Attributes:
        strength: How many times stronger than it will be the key is shown.
        steps: Steps taken.
        over: Whether the key is told apart at its own strength, or the stage has taken as long as it may.
    """

    def __init__(self, *, strength: float, longest: int, clear: float) -> None:
        """Start with `strength`; end at a loss below `clear`, or after `longest` steps at the latest."""
        self.strength, self.steps = strength, 0
        self._clear = clear
        self._longest, self._mean = longest, 1.0
        self._ended = longest == 0

    @property
    def over(self) -> bool:
        """Whether the stage is over."""
        return self._ended

    def learned(self, loss: float) -> None:
        """Take note of the best probe's loss, in nats; ln 2 means that nothing is told apart."""
        self.steps += 1
        self._mean = _MEMORY * self._mean + (1 - _MEMORY) * loss
        # Two thirds of the time are for learning while the key is strong; then it has to come down.
        late = self.steps > 2 * self._longest / 3
        if self._mean < _TOLD_APART or late:
            self.strength = max(1.0, self.strength * (_WEAKENING**3 if late else _WEAKENING))
        self._ended = self.steps >= self._longest or (self.strength == 1.0 and self._mean < self._clear)

    def state(self) -> Tensor:
        """Return the state as one tensor (4,)."""
        return torch.tensor([self.strength, self.steps, self._mean, float(self._ended)], dtype=torch.float64)

    def restore(self, state: Tensor) -> None:
        """Go back to a state."""
        strength, steps, mean, ended = state.tolist()
        self.strength, self.steps, self._mean, self._ended = strength, int(steps), mean, bool(ended)
