"""From a function of tensors to the bytes of an ONNX graph: traced, made smaller, exported and checked."""

import copy
import warnings
from collections.abc import Callable, Sequence

import onnx
import torch
from torch import Tensor, fx, nn

from keylock.errors import ExportError, KeylockError
from keylock.export.gradient_sum_pushdown import push_down_sums
from keylock.export.graphs import Part, name_batch, require_dynamic_batch, strip_metadata, take_part
from keylock.export.inputs import GraphInput
from keylock.export.masks import steepen_masks
from keylock.export.program import program_of
from keylock.export.simplify import simplify
from keylock.export.tracing import trace
from keylock.models import fold_batchnorm_, out_of_place_

__all__ = ["export", "prepare"]

OPSET = 20
"""ONNX operator set of the graphs; ONNX Runtime reads it since 1.17."""


def prepare(module: nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """Return a copy of `module` on the CPU, in eval mode, with constant weights and without BatchNorm."""
    network = copy.deepcopy(module).cpu().float().eval()
    example = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0))
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules()):
        fold_batchnorm_(network, example)
    return out_of_place_(network, example).requires_grad_(False)


def export(
    function: Callable[..., tuple[Tensor, ...]],
    what: str,
    *,
    inputs: Sequence[GraphInput],
    outputs: Sequence[str],
    parts: Sequence[Part],
) -> list[bytes]:
    """Compile a function.

    Args:
        function: Of the inputs, in their order; it may differentiate.
        what: What it is, for the error.
        inputs: What the graph takes.
        outputs: Names of what it answers with.
        parts: What is wanted of that.

    Returns:
        A graph for each of the parts.

    Raises:
        ExportError: The function has an operation that cannot be compiled, or fixes the batch size.
    """
    try:
        graph = push_down_sums(simplify(trace(function, inputs)), inputs)
        model = _to_onnx(graph, inputs=inputs, outputs=outputs)
        steepen_masks(model)
        strip_metadata(model)
        name_batch(model)
        require_dynamic_batch(model)
        return [take_part(model, part).SerializeToString(deterministic=True) for part in parts]
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
    with warnings.catch_warnings():
        # The exporter warns about its own use of what other parts of torch are phasing out; nobody can act on it here.
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(torch|onnxscript|onnx_ir|copyreg)(\.|$)")
        program = torch.onnx.export(
            program_of(graph),
            dynamo=True,
            opset_version=OPSET,
            input_names=[given.name for given in inputs],
            output_names=outputs,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch's exporter returned nothing; update torch")
    return program.model_proto
