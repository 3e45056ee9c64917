"""The contract of graphs: what each kind is given and gives, beside the weights that a lock seals.

Inputs have a row for each image: `image` float32 `(batch, channels, height, width)`, and `target` int64 `(batch,)`, the
class to explain, where -1 stands for the predicted one. `share` float32 `(images, batch)` says how much of each row is
in the sum of each image.

Outputs are `logits` float32 `(batch, classes)`, `map` float32 `(batch, height, width)`, not negative, and `sums`
float32 `(images, channels, height, width)`: `share` times the gradients of the target's logit with respect to the rows.
There a target is never -1.

A graph in a file takes the weights that a lock seals as further inputs, by their names in the network: with the
published values it shows decoys, with those of the reference true maps. Nothing else in a graph knows of a lock.
"""

from dataclasses import dataclass
from typing import Final

from keylock.graphs.binding import inputs_of

__all__ = [
    "EXPLANATION",
    "GRADIENT_SUMS",
    "IMAGE",
    "LOGITS",
    "MAP",
    "PREDICTION",
    "ROWS",
    "SHARE",
    "SUMS",
    "TARGET",
    "GraphKind",
    "weight_names",
]

IMAGE, TARGET, SHARE = "image", "target", "share"
LOGITS, MAP, SUMS = "logits", "map", "sums"

ROWS: Final = frozenset({IMAGE, TARGET, SHARE})
"""The inputs that differ from batch to batch; all others are weights."""


@dataclass(frozen=True)
class GraphKind:
    """A kind of graph.

    Attributes:
        inputs: Names of what it is given for each batch, in the order of its inputs.
        outputs: Names of what it gives, in the order of its outputs.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


PREDICTION: Final = GraphKind((IMAGE,), (LOGITS,))
EXPLANATION: Final = GraphKind((IMAGE, TARGET), (LOGITS, MAP))
GRADIENT_SUMS: Final = GraphKind((IMAGE, TARGET, SHARE), (SUMS,))


def weight_names(model: bytes) -> frozenset[str]:
    """Returns the names of the weights that a graph takes.

    Args:
        model: A serialised `ModelProto`.

    Raises:
        ValueError: It is none.
    """
    return frozenset(inputs_of(model)) - ROWS
