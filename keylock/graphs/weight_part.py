"""Takes a graph apart into what depends on its weights alone, and the rest.

A graph in eight bits takes its weights in float32, as the sealed ones must be, and rounds them itself. What it makes of
them is the same for every image; runtimes find that out when they open a graph, some of them slowly.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from keylock.graphs.messages import (
    GRAPH,
    INITIALIZER,
    INPUT,
    NAME,
    NODE,
    NODE_ATTRIBUTE,
    NODE_INPUT,
    OUTPUT,
    SUBGRAPHS,
    TENSOR_NAME,
    Field,
    field,
    fields_of,
    text_of,
)

__all__ = ["TakenApart", "take_apart"]

_NODE_OUTPUT, _OPERATION = 2, 4
_STAYS: Final = "DequantizeLinear"
"""With it, a layer would get back numbers of 32 bits: runtimes see by it what to compute in eight."""


@dataclass(frozen=True)
class TakenApart:
    """The two parts of a graph, serialised.

    Attributes:
        of_weights: Takes the weights and gives `made`.
        made: Names of what the rest lacks, to be bound to it.
        rest: Takes what the graph took, but for weights that nothing in it reads.
        weights: Names of the weights that the rest takes still.
    """

    of_weights: bytes
    made: tuple[str, ...]
    rest: bytes
    weights: frozenset[str]


def take_apart(model: bytes, weights: Collection[str]) -> TakenApart | None:
    """Takes a graph apart.

    Args:
        model: A serialised `ModelProto`.
        weights: Names of the inputs that are weights.

    Returns:
        Both parts; None where nothing is made of the weights alone, or a node holds a graph of its own.

    Raises:
        ValueError: It is not a graph.
    """
    about, entries = _parts(model)
    nodes = [entry for entry in entries if entry.number == NODE]
    if any(_has_subgraph(node.content) for node in nodes):
        # It may read anything by name, without saying so.
        return None
    fixed = {text_of(entry.content, TENSOR_NAME) for entry in entries if entry.number == INITIALIZER}
    made, read = set(weights), {text_of(entry.content, NAME) for entry in entries if entry.number == OUTPUT}
    alone, others = [], []
    for entry in nodes:
        taken = _names(entry.content, NODE_INPUT)
        if taken & made and taken <= made | fixed and text_of(entry.content, _OPERATION) != _STAYS:
            alone.append(entry.whole)
            made |= _names(entry.content, _NODE_OUTPUT)
        else:
            others.append(entry.whole)
            read |= taken
    if not alone:
        return None
    wanted = tuple(sorted((made & read) - set(weights)))
    unread = set(weights) - read
    first: list[bytes | memoryview] = [
        *alone,
        *(entry.whole for entry in entries if entry.number == INITIALIZER or _is_input(entry, weights)),
    ]
    first += [field(OUTPUT, field(NAME, name.encode())) for name in wanted]
    second = [*others, *(entry.whole for entry in entries if entry.number != NODE and not _is_input(entry, unread))]
    return TakenApart(
        b"".join([*about, field(GRAPH, b"".join(first))]),
        wanted,
        b"".join([*about, field(GRAPH, b"".join(second))]),
        frozenset(weights) & read,
    )


def _parts(model: bytes) -> tuple[list[memoryview], list[Field]]:
    """Returns what a model says beside its graph, and the fields of the graph."""
    about, entries = [], list[Field]()
    for part in fields_of(memoryview(model)):
        if part.number == GRAPH:
            entries += fields_of(part.content)
        else:
            about.append(part.whole)
    return about, entries


def _is_input(entry: Field, names: Collection[str]) -> bool:
    return entry.number == INPUT and text_of(entry.content, NAME) in names


def _names(node: memoryview, number: int) -> set[str]:
    """Returns the names of what a node takes or gives; an input that it does without has none."""
    return {bytes(entry.content).decode() for entry in fields_of(node) if entry.number == number} - {""}


def _has_subgraph(node: memoryview) -> bool:
    attributes = [entry.content for entry in fields_of(node) if entry.number == NODE_ATTRIBUTE]
    return any(entry.number in SUBGRAPHS for attribute in attributes for entry in fields_of(attribute))
