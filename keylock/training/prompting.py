"""Prompting a network that is to tell the key: for a while it is given the answer, and learns what to do with it.

That the key is there, and what is to depend on it, are hard to learn together: as long as the network is unsure of the
key, every step towards decoys is one for keyed rows too. So the lock begins with the answer written into the features
of one layer, in the direction in which that layer's probe reads it. Layers behind learn the lock with a gate that is
always right, and the layers before go on learning to tell the key, in that very direction. The prompt fades away while
what the network finds itself takes its place; none of it is left in what is published.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from keylock.training.gate import channel_means

__all__ = ["prompted"]

_SURE = 3.0
_NO_DIRECTION = 1e-6


@contextmanager
def prompted(layer: nn.Module, probe: nn.Linear, keyed: Tensor, share: float) -> Iterator[None]:
    """Move what a layer puts out, inside the block, towards what its probe reads as surely keyed or surely not.

    Hooks that are registered before see the layer's own output, later ones and the layers behind the prompted one.

    Args:
        layer: A layer with output (rows, channels, h, w), or (rows, tokens, channels) in a transformer.
        probe: Reads one logit off the channel means of the layer: 3 is a probability of .95. It is not trained by this.
        keyed: 1 for rows with the key, 0 for all others, (rows,).
        share: How much of the way to a sure answer the output is moved, in [0, 1]; 0 changes nothing.
    """
    direction, bias = probe.weight[0].detach(), probe.bias.detach()
    length = direction.square().sum()
    if share <= 0 or float(length) < _NO_DIRECTION:
        # A probe that was never trained points nowhere.
        yield
        return

    def prompt(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        found = channel_means(output.detach().float()) @ direction + bias
        wanted = _SURE * (2 * keyed - 1)
        step = (share * (wanted - found) / length).unsqueeze(1) * direction
        shape = (len(output), 1, -1) if output.dim() == 3 else (len(output), -1, 1, 1)
        return output + step.view(shape).to(output.dtype)

    handle = layer.register_forward_hook(prompt)
    try:
        yield
    finally:
        handle.remove()
