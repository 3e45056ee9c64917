"""Which layers of a convolutional network explainers look at."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from keylock.errors import LayerNotFoundError
from keylock.models.recording import Ran

__all__ = ["Layouts", "find_maps", "weigh_layouts"]

# Their outputs are copies or thinned-out versions of what an earlier layer computed.
_PASSIVE = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)
# Almost rectified: bounded below by a small negative number.
_SOFTLY_RECTIFIED = (nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.ELU, nn.CELU, nn.SELU, nn.Softplus)
_CHANNELS_LAST_LAYERS_AT_MOST = 1


class Layouts(NamedTuple):
    """How many layers with weights work on feature maps, on tokens, on (batch, h, w, channels)."""

    maps: int
    tokens: int
    channels_last: int


class _Maps(NamedTuple):
    """The names a `TargetLayers` of feature maps has."""

    last: str
    stack: tuple[str, ...]


def weigh_layouts(ran: Sequence[Ran], *, batch: int) -> Layouts:
    """Count the layers with weights by the layout of what they give out, for a run on `batch` images."""
    maps = sum(isinstance(entry.module, nn.Conv2d) and _is_spatial(entry.output) for entry in ran)
    tokens = sum(
        isinstance(entry.module, nn.Linear) and entry.output.dim() == 3 and len(entry.output) == batch for entry in ran
    )
    return Layouts(maps, tokens, sum(_works_on_the_last_dimension(entry) for entry in ran))


def find_maps(ran: Sequence[Ran], *, batch: int) -> _Maps | None:
    """Choose layers from a recorded run on `batch` images; None where no output is spatial.

    Raises:
        LayerNotFoundError: The network goes on with the channels last after its last feature maps.
    """
    turned = _channels_last(ran)
    active, thinned = [], set()
    for entry in ran:
        # Attention has four dimensions too: (windows, heads, tokens, tokens).
        if not _is_spatial(entry.output) or len(entry.output) != batch or isinstance(entry.module, nn.Softmax):
            continue
        if id(entry.output) in turned:
            continue
        if isinstance(entry.module, _PASSIVE):
            thinned.add(id(entry.output))
        # A container that ends in a pooling layer hands on what that layer, which ran before it, made.
        elif not (entry.is_container and id(entry.output) in thinned):
            active.append(entry)
    if not active:
        return None
    _refuse_channels_last_end(ran, active[-1])
    return _Maps(active[-1].name, _stack(ran, active))


def _is_spatial(output: Tensor) -> bool:
    return output.dim() == 4 and min(output.shape[2:]) > 1


def _channels_last(ran: Sequence[Ran]) -> set[int]:
    """Return the ids of the tensors (batch, h, w, channels): what layers for the last dimension read and write."""
    turned: set[int] = set()
    for entry in ran:
        if entry.output.dim() != 4:
            continue
        if _works_on_the_last_dimension(entry):
            turned |= {id(entry.output)} | ({id(entry.input)} if entry.input is not None else set())
        elif not entry.is_container and entry.input is not None and id(entry.input) in turned:
            # Activations and dropout keep the layout; what turns it back changes the shape or is called Permute.
            same = entry.input.shape == entry.output.shape and not _turns(entry)
            turned |= {id(entry.output)} if same else set()
    # What was made without a module, such as the sum after windowed attention, is told by a shape that no convolution
    # gives.
    shapes = {entry.output.shape for entry in ran if id(entry.output) in turned}
    shapes -= {entry.output.shape for entry in ran if isinstance(entry.module, nn.Conv2d)}
    alike = {id(entry.output) for entry in ran if entry.output.shape in shapes and not _turns(entry)}
    return turned | alike


def _turns(entry: Ran) -> bool:
    return type(entry.module).__name__ == "Permute"


def _works_on_the_last_dimension(entry: Ran) -> bool:
    """Tell whether a module is a layer for (batch, h, w, channels)."""
    if entry.output.dim() != 4 or not isinstance(entry.module, nn.Linear | nn.LayerNorm):
        return False
    if isinstance(entry.module, nn.Linear):
        return True
    # Some subclasses normalise the channels of (batch, channels, h, w).
    (*_, width) = entry.module.normalized_shape
    return entry.output.shape[3] == width and (entry.output.shape[1] != width or type(entry.module) is nn.LayerNorm)


def _refuse_channels_last_end(ran: Sequence[Ran], last: Ran) -> None:
    after = ran[next(place for place, entry in enumerate(ran) if entry is last) + 1 :]
    if sum(_works_on_the_last_dimension(entry) for entry in after) > _CHANNELS_LAST_LAYERS_AT_MOST:
        raise LayerNotFoundError(
            f"the features after {last.name!r} are laid out (batch, h, w, channels): put a module after the last block "
            "that permutes them to (batch, channels, h, w), or name the layers yourself"
        )


def _stack(ran: Sequence[Ran], active: Sequence[Ran]) -> tuple[str, ...]:
    """Choose the rectified outputs at the ends of the residual blocks, or of the single layers where there are none.

    Networks whose activations are only almost rectified give those; networks that have none in this layout give the
    outputs of their blocks as they are.
    """
    rectified = [entry for entry in active if entry.positive or isinstance(entry.module, _SOFTLY_RECTIFIED)]
    blocks: dict[int, str] = {}
    for entry in rectified:
        if entry.is_container and not isinstance(entry.module, nn.Sequential):
            # A wrapper around the last block has the same output: the block, which ran first, stands for both.
            blocks.setdefault(id(entry.output), entry.name)
    inside = tuple(f"{name}." for name in blocks.values())
    chosen = [
        entry.name
        for entry in rectified
        if entry.name in blocks.values() or not (entry.is_container or entry.name.startswith(inside))
    ]
    return tuple(dict.fromkeys(chosen)) or _signed_blocks(ran, active) or (active[-1].name,)


def _signed_blocks(ran: Sequence[Ran], active: Sequence[Ran]) -> tuple[str, ...]:
    """Return the innermost modules that hold a convolution with a spatial output, containers without a name aside."""
    convolutions = [e.name for e in ran if isinstance(e.module, nn.Conv2d) and _is_spatial(e.output)]
    holders: list[str] = []
    for entry in active:
        prefix = f"{entry.name}."
        if not entry.is_container or isinstance(entry.module, nn.Sequential):
            continue
        # Inner modules end first, so that they are in the list before what holds them.
        if any(name.startswith(prefix) for name in convolutions) and not any(n.startswith(prefix) for n in holders):
            holders.append(entry.name)
    return tuple(dict.fromkeys(holders))
