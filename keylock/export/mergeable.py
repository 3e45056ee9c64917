"""Compile graphs that an adapter can be merged into: the weights of the adapted layers are inputs.

Run with the published weights, such a graph does what one of `keylock.export.compile` does with rows that are not
keyed; with those of `Adapter.merged_into`, what that does with rows that are. It does so without the adapter's
arithmetic.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from keylock.explainers import Explainer
from keylock.export import answers
from keylock.export.exporting import export, prepare
from keylock.export.inputs import GraphInput, prediction_inputs, share_input, target_input, weight_inputs

__all__ = ["compile_mergeable", "compile_mergeable_prediction", "compile_mergeable_sums"]


def compile_mergeable(
    module: nn.Module,
    explainer: Explainer,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    layers: Sequence[str],
) -> bytes:
    """Compile an explainer.

    Args:
        module: A classifier; see `compile_explainer`.
        explainer: Whose maps to compute.
        image_shape: `(C, H, W)` of one preprocessed image.
        num_classes: Number of classes, checked against the network.
        layers: Names of the adapted layers.

    Returns:
        An ONNX model that takes `image`, `target`, and the weights of the layers by their names in the network, and
        answers with `logits` and `map`.

    Raises:
        ExportError: The network or the explainer has an operation that cannot be compiled, or fixes the batch size.
        ModelError: The network has another number of classes.
    """
    network = _Network(module, image_shape, layers)

    def explain(image: Tensor, target: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        with network.with_weights(weights) as given:
            return answers.explain(given, explainer, image, target, num_classes)

    inputs = [*prediction_inputs(image_shape), target_input(), *network.inputs]
    return export(explain, f"the mergeable explainer {explainer.name!r}", inputs=inputs, outputs=["logits", "map"])


def compile_mergeable_prediction(
    module: nn.Module, *, image_shape: tuple[int, int, int], num_classes: int, layers: Sequence[str]
) -> bytes:
    """Compile logits, for loops to ask.

    The arguments and errors are those of `compile_mergeable`.

    Returns:
        An ONNX model that takes `image` and the weights, and answers with `logits`.
    """
    network = _Network(module, image_shape, layers)

    def predict(image: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        with network.with_weights(weights) as given:
            return (answers.predict(given, image, num_classes),)

    inputs = [*prediction_inputs(image_shape), *network.inputs]
    return export(predict, "the mergeable prediction", inputs=inputs, outputs=["logits"])


def compile_mergeable_sums(
    module: nn.Module, *, image_shape: tuple[int, int, int], num_classes: int, layers: Sequence[str]
) -> bytes:
    """Compile sums of input gradients, for loops to ask; see `compile_gradient_sums`.

    The arguments and errors are those of `compile_mergeable`.

    Returns:
        An ONNX model that takes `image`, `target`, `share` and the weights, and answers with `sums`.
    """
    network = _Network(module, image_shape, layers)

    def add_up(image: Tensor, target: Tensor, share: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        with network.with_weights(weights) as given:
            return (answers.sum_gradients(given, image, target, share, num_classes),)

    inputs = [*prediction_inputs(image_shape), target_input(), share_input(), *network.inputs]
    return export(add_up, "the mergeable sum of input gradients", inputs=inputs, outputs=["sums"])


class _Network:
    """A network whose adapted layers are given their weights as inputs of a graph."""

    inputs: list[GraphInput]

    def __init__(self, module: nn.Module, image_shape: tuple[int, int, int], layers: Sequence[str]) -> None:
        self._network = prepare(module, image_shape)
        self.inputs = weight_inputs(self._network, layers)

    @contextmanager
    def with_weights(self, weights: Sequence[Tensor]) -> Iterator[nn.Module]:
        """Have the network compute with weights in the order of the inputs, in place of its own, inside the block."""
        places = []
        for given, weight in zip(self.inputs, weights, strict=True):
            layer, _, part = given.name.rpartition(".")
            module = self._network.get_submodule(layer)
            places.append((module, part, module._parameters.pop(part)))
            setattr(module, part, weight)
        try:
            yield self._network
        finally:
            for module, part, parameter in places:
                delattr(module, part)
                module.register_parameter(part, parameter)
