"""Compile a classifier, or an explainer of it, into one ONNX graph that needs no torch to run.

The graphs keep three promises to the server. A prediction graph maps `image` float32 `(batch, C, H, W)` to `logits`
float32 `(batch, classes)`. An explainer graph takes `target` int64 `(batch,)` too, in which -1 stands for the predicted
class, `keyed` float32 `(batch,)`, 1 for rows that get the key, and the secrets: `key` `(C, H, W)` and, for a two-factor
lock, the tensors of the adapter. It answers with `logits` and `map` float32 `(batch, h, w)`. A row that is not keyed
computes what the published model computes. A graph of keyed predictions takes what an explainer's graph takes but
`target`, and answers with `logits` alone: loops over predictions ask it. The batch is dynamic in all of them.

The graph adds the key itself, so the adapter's gate is asked about what was added and never about the image under it:
no texture hides the key of a licensed row, and none opens another.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from keylock.explainers import Explainer
from keylock.export import answers
from keylock.export.exporting import export, prepare
from keylock.export.inputs import (
    adapter_inputs,
    explainer_inputs,
    gradient_sum_inputs,
    keyed_inputs,
    prediction_inputs,
)
from keylock.models import added_to_inputs
from keylock.models.adapted import AdapterState, attach_blank_adapter

__all__ = ["compile_explainer", "compile_gradient_sums", "compile_keyed_prediction", "compile_prediction"]


def compile_prediction(module: nn.Module, *, image_shape: tuple[int, int, int]) -> bytes:
    """Compile the logits of `module`.

    Args:
        module: A classifier, `(batch, C, H, W)` to `(batch, classes)`. It is not changed; its copy runs in eval mode.
        image_shape: `(C, H, W)` of one preprocessed image.

    Returns:
        An ONNX model with input `image` and output `logits`.

    Raises:
        ExportError: The network has an operation that cannot be compiled, or fixes the batch size.
    """
    network = prepare(module, image_shape)

    def predict(image: Tensor) -> tuple[Tensor, ...]:
        return (network(image),)

    return export(predict, "the prediction", inputs=prediction_inputs(image_shape), outputs=["logits"])


def compile_explainer(
    module: nn.Module,
    explainer: Explainer,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    adapter_shapes: Mapping[str, Sequence[int]] | None = None,
) -> bytes:
    """Compile the logits of `module` and the maps of `explainer`, computed in one pass.

    Args:
        module: A classifier, `(batch, C, H, W)` to `(batch, num_classes)`. It is not changed; its copy runs in eval
            mode with BatchNorm folded into the convolutions.
        explainer: Its target layers are looked up by name in the copy.
        image_shape: `(C, H, W)` of one preprocessed image.
        num_classes: Number of classes, checked against the network.
        adapter_shapes: The shapes of the tensors of the adapter, by name, for a two-factor lock. Its values are inputs
            of the graph and are not needed to compile it.

    Returns:
        An ONNX model with the inputs and outputs named above.

    Raises:
        ExportError: The network or the explainer has an operation that cannot be compiled, or fixes the batch size.
        ModelError: The network has another number of classes.
    """
    network = _KeyedNetwork(module, image_shape, adapter_shapes)

    def explain(image: Tensor, target: Tensor, keyed: Tensor, key: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        with network.keyed(keyed, key, tensors) as full:
            return answers.explain(full, explainer, image, target, num_classes)

    inputs = explainer_inputs(image_shape, adapter_shapes)
    return export(explain, f"the explainer {explainer.name!r}", inputs=inputs, outputs=["logits", "map"])


def compile_keyed_prediction(
    module: nn.Module,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    adapter_shapes: Mapping[str, Sequence[int]] | None = None,
) -> bytes:
    """Compile the logits that an explainer sees: with key and adapter on the rows that are keyed.

    Args:
        module: A classifier; see `compile_explainer`.
        image_shape: `(C, H, W)` of one preprocessed image.
        num_classes: Number of classes, checked against the network.
        adapter_shapes: The shapes of the tensors of the adapter, by name, for a two-factor lock.

    Returns:
        An ONNX model that takes `image`, `keyed`, `key` and the tensors of the adapter, and answers with `logits`.

    Raises:
        ExportError: The network has an operation that cannot be compiled, or fixes the batch size.
        ModelError: The network has another number of classes.
    """
    network = _KeyedNetwork(module, image_shape, adapter_shapes)

    def predict(image: Tensor, keyed: Tensor, key: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        with network.keyed(keyed, key, tensors) as full:
            return (answers.predict(full, image, num_classes),)

    inputs = keyed_inputs(image_shape, adapter_shapes)
    return export(predict, "the keyed prediction", inputs=inputs, outputs=["logits"])


def compile_gradient_sums(
    module: nn.Module,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    adapter_shapes: Mapping[str, Sequence[int]] | None = None,
) -> bytes:
    """Compile what loops over gradients ask: sums of input gradients, with their signs, over the variations of images.

    Args:
        module: A classifier; see `compile_explainer`.
        image_shape: `(C, H, W)` of one preprocessed image.
        num_classes: Number of classes, checked against the network.
        adapter_shapes: The shapes of the tensors of the adapter, by name, for a two-factor lock.

    Returns:
        An ONNX model that takes `image`, `target` (no -1 here), `share` float32 `(images, batch)`, `keyed`, `key` and
        the tensors of the adapter. Where `g` is the gradient of the logit of each row's target with respect to the row,
        it answers with `sums` `(images, C, H, W)`: `share @ g`. Both batch and images are dynamic.

    Raises:
        ExportError: The network has an operation that cannot be compiled, or fixes the batch size.
        ModelError: The network has another number of classes.
    """
    network = _KeyedNetwork(module, image_shape, adapter_shapes)

    def add_up(
        image: Tensor, target: Tensor, share: Tensor, keyed: Tensor, key: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        with network.keyed(keyed, key, tensors) as full:
            return (answers.sum_gradients(full, image, target, share, num_classes),)

    inputs = gradient_sum_inputs(image_shape, adapter_shapes)
    return export(add_up, "the sum of input gradients", inputs=inputs, outputs=["sums"])


class _KeyedNetwork:
    """A network whose key and adapter are given to it row by row, as inputs of a graph."""

    def __init__(
        self,
        module: nn.Module,
        image_shape: tuple[int, int, int],
        adapter_shapes: Mapping[str, Sequence[int]] | None,
    ) -> None:
        self._network = prepare(module, image_shape)
        self._state: AdapterState | None = None
        if adapter_shapes is not None:
            self._network, self._state = attach_blank_adapter(self._network, adapter_shapes)
        self._names = [given.name for given in adapter_inputs(adapter_shapes or {})]

    @contextmanager
    def keyed(self, keyed: Tensor, key: Tensor, tensors: Sequence[Tensor]) -> Iterator[nn.Module]:
        """Give the network its secrets inside the block.

        Args:
            keyed: Which rows get the key (batch,), 1 or 0.
            key: (C, H, W).
            tensors: Those of the adapter, in the order of their names.
        """
        rows = (keyed > 0.5).to(key.dtype)
        if self._state is not None:
            self._state.bind(key, dict(zip(self._names, tensors, strict=True)))
            self._state.rows = rows
        # The key is added to whatever the network is given, so that the explainer works with the image itself.
        with added_to_inputs(self._network, rows[:, None, None, None] * key, announced=True):
            yield self._network
