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

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, fx, nn

from keylock.errors import ExportError, KeylockError, ModelError
from keylock.explainers import Explainer
from keylock.export.early_sums import sum_early, sum_rows
from keylock.export.graphs import require_dynamic_batch, strip_metadata
from keylock.export.inputs import (
    GraphInput,
    adapter_inputs,
    explainer_inputs,
    gradient_sum_inputs,
    keyed_inputs,
    prediction_inputs,
)
from keylock.export.masks import steepen_masks
from keylock.export.simplify import simplify
from keylock.export.tracing import trace
from keylock.models import added_to_inputs, fold_batchnorm_
from keylock.models.activations import out_of_place_
from keylock.models.adapted import AdapterState, attach_blank_adapter

__all__ = ["compile_explainer", "compile_gradient_sums", "compile_keyed_prediction", "compile_prediction"]

OPSET = 20
"""ONNX operator set of the graphs; ONNX Runtime reads it since 1.17."""


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
    network = _prepare(module, image_shape)

    def predict(image: Tensor) -> tuple[Tensor, ...]:
        return (network(image),)

    return _compile(predict, "the prediction", inputs=prediction_inputs(image_shape), outputs=["logits"])


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
            return explain_rows(full, image, target)

    def explain_rows(full: nn.Module, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        # This forward pass and the explainer's own become one when equal nodes are merged.
        logits = full(image)
        _require_classes(logits, num_classes)
        resolved = torch.where(target < 0, logits.argmax(1), target)
        explained = explainer.explain(full, image, resolved)
        return explained.logits, explained.maps.float()

    inputs = explainer_inputs(image_shape, adapter_shapes)
    return _compile(explain, f"the explainer {explainer.name!r}", inputs=inputs, outputs=["logits", "map"])


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
            logits = full(image)
        _require_classes(logits, num_classes)
        return (logits,)

    inputs = keyed_inputs(image_shape, adapter_shapes)
    return _compile(predict, "the keyed prediction", inputs=inputs, outputs=["logits"])


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
        with network.keyed(keyed, key, tensors) as full, torch.enable_grad():
            rows = image.detach().requires_grad_()
            logits = full(rows)
            _require_classes(logits, num_classes)
            (gradient,) = torch.autograd.grad(logits.gather(1, target.unsqueeze(1)).sum(), rows)
        return (sum_rows(share, gradient),)

    inputs = gradient_sum_inputs(image_shape, adapter_shapes)
    return _compile(add_up, "the sum of input gradients", inputs=inputs, outputs=["sums"])


class _KeyedNetwork:
    """A network whose key and adapter are given to it row by row, as inputs of a graph."""

    def __init__(
        self,
        module: nn.Module,
        image_shape: tuple[int, int, int],
        adapter_shapes: Mapping[str, Sequence[int]] | None,
    ) -> None:
        self._network = _prepare(module, image_shape)
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


def _require_classes(logits: Tensor, num_classes: int) -> None:
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise ModelError(
            f"the network answers with logits of shape (batch, {', '.join(map(str, logits.shape[1:]))}), "
            f"but {num_classes} classes were named; name as many classes as it has logits"
        )


def _prepare(module: nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """Return a copy of `module` on the CPU, in eval mode, with constant weights and without BatchNorm."""
    network = copy.deepcopy(module).cpu().float().eval()
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules()):
        example = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0))
        fold_batchnorm_(network, example)
    return out_of_place_(network).requires_grad_(False)


def _compile(
    function: Callable[..., tuple[Tensor, ...]],
    what: str,
    *,
    inputs: Sequence[GraphInput],
    outputs: Sequence[str],
) -> bytes:
    try:
        graph = sum_early(simplify(trace(function, inputs)), inputs)
        model = _to_onnx(graph, inputs=inputs, outputs=outputs)
        steepen_masks(model)
        strip_metadata(model)
        require_dynamic_batch(model)
        return model.SerializeToString(deterministic=True)
    except KeylockError:
        raise
    except Exception as error:
        raise ExportError(
            f"{what} of this network cannot be compiled to ONNX ({_root_cause(error)}); "
            "use another architecture or explainer, or run it with torch"
        ) from error


def _root_cause(error: BaseException) -> str:
    """Name the first error of a chain in one line; the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line[:200]}"


def _to_onnx(graph: fx.GraphModule, *, inputs: Sequence[GraphInput], outputs: Sequence[str]) -> onnx.ModelProto:
    """Hand a traced graph to torch's ONNX exporter, quietly."""
    # Only the first input names the dimension; the exporter finds that the others share it.
    batch = torch.export.Dim("batch", min=1, max=2**20)
    shapes = [
        {0: batch if given is inputs[0] else torch.export.Dim.DYNAMIC} if given.batched else {} for given in inputs
    ]
    for shape, given in zip(shapes, inputs, strict=True):
        if given.by_row:
            shape[1] = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings():
        # The exporter warns about its own use of what other parts of torch are phasing out; nobody can act on it here.
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(torch|onnxscript|onnx_ir|copyreg)(\.|$)")
        program = torch.onnx.export(
            graph,
            tuple(given.example for given in inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=[given.name for given in inputs],
            output_names=outputs,
            dynamic_shapes=tuple(shapes),
            verbose=False,
        )
    if program is None:
        raise ExportError("torch's exporter returned nothing; update torch")
    return program.model_proto
