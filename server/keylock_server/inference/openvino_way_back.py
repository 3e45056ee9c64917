"""The way back of a gradient in OpenVINO, written so that it is fast and in bfloat16 still right.

The way back is what depends on the class that is explained. In bfloat16 throughout, values near zero change their
sign on the way there, and with it the masks by which activations let gradients pass: maps correlate by .96 with the
right ones. So the way there, and every mask, stay in float32, and the way back alone is computed in bfloat16.

A graph is changed in memory and in place; none of this is written to a file.
"""

import importlib
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keylock.graphs.contract import TARGET

__all__ = ["compute_in_bfloat16", "has_way_back", "weave_at_once", "write_plain_convolutions"]

_CONVOLUTIONS: Final = frozenset({"Convolution", "ConvolutionBackpropData", "GroupConvolution"})
_TRANSPOSED: Final = "ConvolutionBackpropData"
_EXACT: Final = frozenset(
    {"Add", "Concat", "DepthToSpace", "Multiply", "Relu", "Reshape", "Slice", "Subtract", "Transpose", "Unsqueeze"}
)
"""Operations between convolutions that add no rounding of their own to speak of. Divisions stay in float32."""


def has_way_back(model: Any) -> bool:  # noqa: ANN401 - it has no types
    """Tells whether convolutions depend on the class that is explained."""
    return any("Convolution" in node.get_type_name() for node in _way_back(model))


def write_plain_convolutions(model: Any) -> None:  # noqa: ANN401
    """Writes transposed convolutions with a stride as plain ones, in place.

    Each phase of the result, the places with the same rest when divided by the stride, is a plain convolution with some
    of the weights; all phases are computed as channels of one, and then put together. Transposed ones have no kernel in
    bfloat16, and a slower one in float32. Those by channels have a fast one and stay.

    References:
        Shi et al., Is the deconvolution layer the same as a convolutional layer?, 2016.
    """
    operations = importlib.import_module("openvino.opset13")
    for node in model.get_ordered_ops():
        form = _strided(node) if node.get_type_name() == _TRANSPOSED else None
        if form is None:
            continue
        begin, end = [-taps.first for taps in form.axes], [taps.after for taps in form.axes]
        weights = operations.constant(_phases(form))
        phases = operations.convolution(node.input_value(0), weights, [1, 1], begin, end, [1, 1])
        woven = operations.depth_to_space(phases, "depth_first", form.stride)
        edges = [operations.constant(np.array(edge, np.int64)) for edge in ([0, 0], form.size, [1, 1], [2, 3])]
        _replace(node.output(0), operations.slice(woven, *edges).output(0))


def weave_at_once(model: Any) -> None:  # noqa: ANN401
    """Puts the phases of an image together by one operation, in place; stacks of single places have a slow kernel."""
    operations = importlib.import_module("openvino.opset13")
    for node in model.get_ordered_ops():
        lines = _stacked(node.input_value(0), 3) if node.get_type_name() == "Reshape" else None
        rows = [_stacked(line, 4) for line in lines or ()]
        phases = [phase for row in rows for phase in row or ()]
        if not rows or any(row is None or len(row) != len(rows) for row in rows):
            continue
        if any(len(phase.get_partial_shape()) != 4 for phase in phases):
            continue
        woven = operations.depth_to_space(operations.concat(phases, 1), "blocks_first", len(rows))
        if woven.get_output_partial_shape(0) == node.get_output_partial_shape(0):
            _replace(node.output(0), woven.output(0))


def compute_in_bfloat16(model: Any) -> None:  # noqa: ANN401
    """Has the convolutions of the way back, and what lies between them, computed in bfloat16, in place."""
    openvino = importlib.import_module("openvino")
    operations = importlib.import_module("openvino.opset13")
    chosen = _between_convolutions(_way_back(model))
    names = {node.get_name() for node in chosen}
    rounded: dict[tuple[str, int], Any] = {}
    for node in chosen:
        for place in node.inputs():
            source = place.get_source_output()
            name = source.get_node().get_name()
            if name in names or source.get_element_type() != openvino.Type.f32:
                continue
            if (name, source.get_index()) not in rounded:
                rounded[name, source.get_index()] = operations.convert(source, "bf16").output(0)
            place.replace_source_output(rounded[name, source.get_index()])
    for node in chosen:
        node.validate_and_infer_types()
        for source in node.outputs():
            readers = [place for place in source.get_target_inputs() if place.get_node().get_name() not in names]
            if readers and source.get_element_type() == openvino.Type.bf16:
                widened = operations.convert(source, "f32").output(0)
                for place in readers:
                    place.replace_source_output(widened)
    model.validate_nodes_and_infer_types()


class _Taps(NamedTuple):
    """How an axis of a transposed convolution reads its input.

    Attributes:
        phases: For each phase, which weight meets the input how many places further on.
        first: The smallest of these distances.
        last: The largest.
        after: How much padding the end of the input needs; negative where some of it is not read.
    """

    phases: list[dict[int, int]]
    first: int
    last: int
    after: int


class _Strided(NamedTuple):
    """A transposed convolution with a stride.

    Attributes:
        weights: `(channels in, channels out, h, w)`.
        stride: Along both axes.
        size: Height and width of the result.
        axes: How each axis reads the input.
    """

    weights: NDArray[np.float32]
    stride: int
    size: list[int]
    axes: list[_Taps]


def _strided(node: Any) -> _Strided | None:  # noqa: ANN401
    """Describes a transposed convolution, if its weights are known and it has one stride, of images of known size."""
    attributes, weights = node.get_attributes(), node.input_value(1).get_node()
    strides, dilations = set(attributes["strides"]), set(attributes["dilations"])
    shapes = [node.input_value(0).get_partial_shape(), node.get_output_partial_shape(0)]
    if weights.get_type_name() != "Constant" or len(strides) != 1 or strides == {1} or dilations != {1}:
        return None
    if any(len(shape) != 4 or shape[2].is_dynamic or shape[3].is_dynamic for shape in shapes):
        return None
    read, size = ([shape[axis].get_length() for axis in (2, 3)] for shape in shapes)
    (stride,) = strides
    kernel = weights.data.shape[2:]
    axes = [_taps(kernel[axis], stride, attributes["pads_begin"][axis], read[axis], size[axis]) for axis in (0, 1)]
    return _Strided(weights.data, stride, size, axes)


def _taps(kernel: int, stride: int, padding: int, read: int, size: int) -> _Taps:
    """Returns how one axis is read: place `i` of the result sums up `weight[t] * input[(i + padding - t) / stride]`.

    That is over the weights `t` for which the quotient is whole.
    """
    phases = [
        {(phase + padding - tap) // stride: tap for tap in range(kernel) if (phase + padding - tap) % stride == 0}
        for phase in range(stride)
    ]
    distances = [distance for taps in phases for distance in taps]
    first, last = min(distances), max(distances)
    return _Taps(phases, first, last, -(-size // stride) + last - read)


def _phases(form: _Strided) -> NDArray[np.float32]:
    """Returns weights `(channels out * stride**2, channels in, h, w)` of the plain convolution, the phases inside."""
    inside, outside = form.weights.shape[:2]
    rows, columns = form.axes
    reach = [axis.last - axis.first + 1 for axis in form.axes]
    found = np.zeros((outside, form.stride, form.stride, inside, *reach), np.float32)
    for top, lines in enumerate(rows.phases):
        for left, places in enumerate(columns.phases):
            for down, row in lines.items():
                for right, column in places.items():
                    found[:, top, left, :, down - rows.first, right - columns.first] = form.weights[:, :, row, column].T
    return found.reshape(-1, inside, *reach)


def _stacked(value: Any, axis: int) -> list[Any] | None:  # noqa: ANN401
    """Returns the values that were stacked along a new axis, or None if that is not how one was made."""
    node = value.get_node()
    if node.get_type_name() != "Concat" or node.get_attributes()["axis"] != axis:
        return None
    found = []
    for part in (place.get_node() for place in node.input_values()):
        if part.get_type_name() != "Unsqueeze" or part.input_value(1).get_node().get_type_name() != "Constant":
            return None
        if part.input_value(1).get_node().data.ravel().tolist() != [axis]:
            return None
        found.append(part.input_value(0))
    return found


def _way_back(model: Any) -> list[Any]:  # noqa: ANN401
    """Returns the operations that depend on the class, in their order."""
    names = {given.get_node().get_name() for given in model.inputs if TARGET in given.get_names()}
    found = []
    for node in model.get_ordered_ops():
        if node.get_name() in names or any(value.get_node().get_name() in names for value in node.input_values()):
            names.add(node.get_name())
            found.append(node)
    return found


def _between_convolutions(way_back: Iterable[Any]) -> list[Any]:
    """Returns the convolutions and the operations that lead to one, with what is exact alone in between."""
    found: list[Any] = []
    names: set[str] = set()
    for node in reversed(list(way_back)):
        kind = node.get_type_name()
        leads = any(
            place.get_node().get_name() in names for output in node.outputs() for place in output.get_target_inputs()
        )
        if kind in _CONVOLUTIONS or (kind in _EXACT and leads):
            found.append(node)
            names.add(node.get_name())
    return found[::-1]


def _replace(old: Any, new: Any) -> None:  # noqa: ANN401
    for reader in list(old.get_target_inputs()):
        reader.replace_source_output(new)
