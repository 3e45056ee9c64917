"""Graphs in OpenVINO: a second runtime for processors, which computes in bfloat16 where they have it.

Nothing is written to a file: weights that the trigger opens are bound in memory alone, and no cache is named.
"""

import importlib
import importlib.util
import logging
import queue
import sys
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keylock.errors import ServiceError
from keylock.graphs.binding import bind, inputs_of, outputs_of
from keylock.graphs.contract import SHARE
from keylock_server.inference.openvino_way_back import (
    compute_in_bfloat16,
    has_way_back,
    weave_at_once,
    write_plain_convolutions,
)
from keylock_server.inference.running import Opened, Run, in_parts

__all__ = ["OpenVINO", "is_installed"]

_LOG: Final = logging.getLogger("keylock_server")
_PACKAGE: Final = "openvino"
_TELEMETRY: Final = "openvino_telemetry"
_DEVICE: Final = "CPU"
_PRECISIONS: Final = {"float32": "f32", "int8": "f32", "bfloat16": "bf16"}
# The ramps that stand for masks in graphs of gradients are as steep as this; see `keylock.export.masks`.
_STEEP: Final = 2.0**100
_UNREAD_OFFSET: Final = 0.5


def is_installed() -> bool:
    """Tells whether the package is there, without importing it."""
    return importlib.util.find_spec(_PACKAGE) is not None


class OpenVINO:
    """Opens graphs on the processor, all with the same settings.

    Attributes:
        version: That of the package.
        has_bfloat16: Whether the processor computes in bfloat16.
    """

    def __init__(self, *, threads: int, runs: int) -> None:
        """Starts the runtime.

        Args:
            threads: Threads one run may use.
            runs: How many runs there may be at once.

        Raises:
            ServiceError: If it is not installed, or cannot be used.
        """
        self._openvino = _package()
        self._core = self._openvino.Core()
        self._runs = runs
        # Processes that share a machine would all be pinned to the same cores.
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads * runs,
            "NUM_STREAMS": runs,
            "ENABLE_CPU_PINNING": False,
        }
        self.version = str(self._openvino.__version__).partition("-")[0]
        self.has_bfloat16 = "BF16" in self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")

    def open(self, model: bytes, given: Mapping[str, NDArray[np.float32]], *, numbers: str) -> Opened:
        """Opens a graph.

        Args:
            model: The graph.
            given: The weights that are bound to it in the place of inputs, by name. They stay in memory.
            numbers: What to compute in: `float32`, `bfloat16`, or `int8` where the graph is one of that kind. Of a
                gradient, the way back alone is computed in `bfloat16`.

        Raises:
            Exception: Whatever OpenVINO raises, if it cannot compute the graph.
        """
        whole = bind(model, given)
        read = self._core.read_model(whole)
        _mend_masks(read)
        _part_square_weights(read)
        precision, inputs = _PRECISIONS[numbers], frozenset(inputs_of(whole))
        one_by_one = False
        if has_way_back(read):
            # Many steps over whole feature maps, which are fused where all sizes are known, the batch's among them.
            one_by_one = SHARE not in inputs
            if one_by_one:
                read.reshape({given: [1, *given.get_partial_shape()[1:]] for given in read.inputs})
            write_plain_convolutions(read)
            weave_at_once(read)
            if numbers == "bfloat16":
                compute_in_bfloat16(read)
                precision = _PRECISIONS["float32"]
        compiled = self._core.compile_model(read, _DEVICE, {**self._settings, "INFERENCE_PRECISION_HINT": precision})
        run = _shared_out(compiled, self._runs)
        return Opened(
            run=in_parts(run, 1) if one_by_one else run,
            # One that no output depends on is not there any more.
            inputs=inputs,
            outputs=outputs_of(whole),
            providers=(f"OpenVINO {self.version}",),
        )


def _package() -> Any:  # noqa: ANN401 - it has no types
    if not is_installed():
        raise ServiceError(
            "the runtime openvino was asked for and is not installed: pip install 'keylock[openvino]', or use "
            "runtime=onnxruntime"
        ).for_missing_extra()
    # Without this package, which it can do without, its import makes an identifier of this machine and sends events.
    sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]  # as Python has it for what is not to be found
    try:
        return importlib.import_module(_PACKAGE)
    except (ImportError, OSError) as error:
        raise ServiceError(f"OpenVINO is installed and cannot be used ({error}): use runtime=onnxruntime") from error


def _shared_out(compiled: Any, count: int) -> Run:  # noqa: ANN401 - it has no types
    """Returns a way to run a graph from several threads: a request can run once at a time."""
    # Operations that change nothing leave their names behind, so that an input can have several.
    taken = {name for port in compiled.inputs for name in port.get_names()}
    free: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(count):
        free.put(compiled.create_infer_request())

    @contextmanager
    def borrowed() -> Any:  # noqa: ANN401
        request = free.get()
        try:
            yield request
        finally:
            free.put(request)

    def run(outputs: Sequence[str], rows: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        held = {name: np.ascontiguousarray(array) for name, array in rows.items() if name in taken}
        with borrowed() as request:
            # Inputs are read where they are; outputs are copied, because the next run writes over them.
            request.infer(held, share_inputs=True)
            return [request.get_tensor(name).data.copy() for name in outputs]

    return run


def _part_square_weights(model: Any) -> None:  # noqa: ANN401 - it has no types
    """Gives every operation that reads a square weight a copy of its own, in place.

    In float32 one product with a weight and one with its transpose, as the way back has, would both use what was laid
    out for the first of them, where the shape does not tell them apart.
    """
    operations = importlib.import_module(f"{_PACKAGE}.opset13")
    for weight in [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]:
        shape = list(weight.get_output_shape(0))
        if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] == 1:
            continue
        for reader in list(weight.output(0).get_target_inputs())[1:]:
            reader.replace_source_output(operations.constant(weight.data.copy()).output(0))


def _mend_masks(model: Any) -> None:  # noqa: ANN401 - it has no types
    """Writes steep ramps of a graph as products that are cut off, in place: an offset of 0 is read as the default, .5.

    These fuse with what comes next; a comparison's truth would be turned into a number by a slow kernel.
    """
    operations = importlib.import_module(f"{_PACKAGE}.opset13")
    for ramp in [node for node in model.get_ordered_ops() if node.get_type_name() == "HardSigmoid"]:
        slope, offset = (_number(ramp.input_value(place).get_node()) for place in (1, 2))
        if slope is None or offset is None or abs(slope) != _STEEP:
            continue
        edge = 0 if offset == _UNREAD_OFFSET else -offset / slope
        value = ramp.input_value(0)
        above = operations.subtract(value, operations.constant(np.float32(edge))) if edge else value
        mask = operations.clamp(operations.multiply(above, operations.constant(np.float32(slope))), 0.0, 1.0)
        for reader in list(ramp.output(0).get_target_inputs()):
            reader.replace_source_output(mask.output(0))


def _number(node: Any) -> float | None:  # noqa: ANN401 - it has no types
    return float(node.data) if node.get_type_name() == "Constant" else None
