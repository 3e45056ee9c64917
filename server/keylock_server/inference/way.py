"""One way to compute a graph, and where the graph is."""

from dataclasses import dataclass

__all__ = ["GraphFiles", "Way"]


@dataclass(frozen=True)
class GraphFiles:
    """A graph of a bundle, in all the numbers that there are.

    Attributes:
        what: What it computes, for the log.
        standard: Its file in float32.
        smaller: Names of other numbers and the files of the graph in these.
    """

    what: str
    standard: str
    smaller: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Way:
    """How a graph is computed.

    Attributes:
        runtime: `onnxruntime` or `openvino`.
        numbers: What in.
        path: The file in the bundle.
    """

    runtime: str
    numbers: str
    path: str

    def __str__(self) -> str:
        return f"{self.numbers} by {self.runtime}"
