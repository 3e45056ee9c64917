"""Compile a classifier, or an explainer of it, into one ONNX graph that needs no torch to run.

What a graph of each kind takes and gives is in `keylock.graphs.contract`. The batch is dynamic in all of them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from keylock.explainers import Explainer
from keylock.export import answers
from keylock.export.exporting import export, prepare
from keylock.export.graphs import Part
from keylock.export.inputs import row_inputs, weight_inputs
from keylock.graphs.contract import EXPLANATION, GRADIENT_SUMS, LOGITS, MAP, PREDICTION, TARGET, GraphKind

__all__ = ["compile_explainer", "compile_gradient_sums", "compile_many", "compile_prediction"]


def compile_prediction(
    module: nn.Module, *, image_shape: tuple[int, int, int], num_classes: int, weights: Sequence[str] = ()
) -> bytes:
    """Compile the logits of a classifier.

    Args:
        module: Maps `(batch, C, H, W)` to `(batch, num_classes)`. It is not changed; its copy runs in eval mode.
        image_shape: `(C, H, W)` of one preprocessed image.
        num_classes: Number of classes, checked against the network.
        weights: Names of entries of its `state_dict()` that become inputs; the others are constants.

    Returns:
        An ONNX model that takes `image` and the weights, and answers with `logits`.

    Raises:
        ExportError: The network has an operation that cannot be compiled, or fixes the batch size.
        ModelError: The network has another number of classes.
    """
    network = _Network(module, image_shape, weights)

    def predict(given: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
        return (answers.predict(given, image, num_classes),)

    return network.compile(PREDICTION, predict, "the prediction")


def compile_explainer(
    module: nn.Module,
    explainer: Explainer,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    weights: Sequence[str] = (),
) -> bytes:
    """Compile the logits of a classifier and the maps of an explainer, computed in one pass.

    Args:
        module: A classifier; see `compile_prediction`.
        explainer: Its target layers are looked up by name.
        image_shape: `(C, H, W)` of one preprocessed image.
        num_classes: Number of classes, checked against the network.
        weights: Names of entries that become inputs.

    Returns:
        An ONNX model that takes `image`, `target` and the weights, and answers with `logits` and `map`.

    Raises:
        ExportError: The network or the explainer has an operation that cannot be compiled, or fixes the batch size.
        ModelError: The network has another number of classes.
    """
    network = _Network(module, image_shape, weights)

    def explain(given: nn.Module, image: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        return answers.explain(given, explainer, image, target, num_classes)

    return network.compile(EXPLANATION, explain, f"the explainer {explainer.name!r}")


def compile_many(
    module: nn.Module,
    explainers: Sequence[Explainer],
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    weights: Sequence[str] = (),
) -> tuple[bytes, dict[str, bytes]]:
    """Compile a classifier and several explainers of it, in little more time than the dearest of them takes alone.

    Everything is traced and exported once, and taken apart afterwards. Arguments and errors are those of
    `compile_explainer`; one explainer that cannot be compiled spoils all.

    Returns:
        The graphs of `compile_prediction` and, by the names of the explainers, of `compile_explainer`.
    """
    network = _Network(module, image_shape, weights)

    def explain(given: nn.Module, image: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        return answers.explain_all(given, explainers, image, target, num_classes)

    maps = {explainer.name: f"{MAP} of {explainer.name}" for explainer in explainers}
    all_of_them = GraphKind(EXPLANATION.inputs, (LOGITS, *maps.values()))
    parts = [Part({LOGITS: LOGITS}, without=(TARGET,)), *(Part({LOGITS: LOGITS, name: MAP}) for name in maps.values())]
    graphs = network.compile_parts(all_of_them, explain, "some explainer", parts)
    return graphs[0], dict(zip(maps, graphs[1:], strict=True))


def compile_gradient_sums(
    module: nn.Module, *, image_shape: tuple[int, int, int], num_classes: int, weights: Sequence[str] = ()
) -> bytes:
    """Compile what loops over gradients ask: sums of input gradients, with their signs, over the variations of images.

    The arguments and errors are those of `compile_prediction`.

    Returns:
        An ONNX model that takes `image`, `target` (no -1 here), `share` float32 `(images, batch)` and the weights.
        Where `g` is the gradient of the logit of each row's target with respect to the row, it answers with `sums`
        `(images, C, H, W)`: `share @ g`. Both batch and images are dynamic.
    """
    network = _Network(module, image_shape, weights)

    def add_up(given: nn.Module, image: Tensor, target: Tensor, share: Tensor) -> tuple[Tensor, ...]:
        return (answers.sum_gradients(given, image, target, share, num_classes),)

    return network.compile(GRADIENT_SUMS, add_up, "the sum of input gradients")


class _Network:
    """A network some of whose weights are given to it as inputs of a graph."""

    def __init__(self, module: nn.Module, image_shape: tuple[int, int, int], weights: Sequence[str]) -> None:
        self._network, self._image_shape = prepare(module, image_shape), image_shape
        self._weights = weight_inputs(self._network, weights)

    def compile(self, kind: GraphKind, run: Callable[..., tuple[Tensor, ...]], what: str) -> bytes:
        """Compile a function of the network and of what a graph of the kind is given."""
        return self.compile_parts(kind, run, what, [Part({name: name for name in kind.outputs})])[0]

    def compile_parts(
        self, kind: GraphKind, run: Callable[..., tuple[Tensor, ...]], what: str, parts: Sequence[Part]
    ) -> list[bytes]:
        """Compile a function, and return a graph for each part of what it answers with."""
        inputs = row_inputs(kind, self._image_shape)

        def with_weights(*tensors: Tensor) -> tuple[Tensor, ...]:
            with self._given(tensors[len(inputs) :]) as network:
                return run(network, *tensors[: len(inputs)])

        return export(with_weights, what, inputs=[*inputs, *self._weights], outputs=kind.outputs, parts=parts)

    @contextmanager
    def _given(self, weights: Sequence[Tensor]) -> Iterator[nn.Module]:
        """Have the network compute with weights in the order of the inputs, in place of its own, inside the block."""
        places = []
        for given, weight in zip(self._weights, weights, strict=True):
            layer, _, entry = given.name.rpartition(".")
            module = self._network.get_submodule(layer)
            own: dict[str, Any] = module._parameters if entry in module._parameters else module._buffers
            places.append((module, entry, own, own.pop(entry)))
            setattr(module, entry, weight)
        try:
            yield self._network
        finally:
            for module, entry, own, tensor in places:
                delattr(module, entry)
                own[entry] = tensor
