"""Backward operations written as forward operations that ONNX has and its runtimes run fast.

Each entry replaces one ATen operation while a graph is traced. Pooling, padding and slicing are linear in each image
axis, so their transposes are products with small constant matrices: exact for any kernel, stride and ceiling mode, and
free of the batch size.
"""

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch._ops import OpOverload

__all__ = ["DECOMPOSITIONS"]

aten = torch.ops.aten

_Replacement = TypeVar("_Replacement", bound=Callable[..., Any])

DECOMPOSITIONS: dict[OpOverload, Callable[..., Any]] = {
    operation: replacement
    for operation, replacement in get_decompositions(
        [
            aten._log_softmax_backward_data,
            aten._safe_softmax,
            aten._softmax_backward_data,
            aten.elu_backward,
            aten.gelu_backward,
            aten.hardsigmoid_backward,
            aten.hardswish_backward,
            aten.leaky_relu_backward,
            aten.mish_backward,
            aten.native_group_norm_backward,
            aten.native_layer_norm_backward,
            aten.rsub,
            aten.sigmoid_backward,
            aten.silu_backward,
            aten.softplus_backward,
            aten.tanh_backward,
        ]
    ).items()
    if isinstance(operation, OpOverload)
}
"""ATen operation to the function that replaces it, with the same arguments and results."""


def _replaces(operation: OpOverload) -> Callable[[_Replacement], _Replacement]:
    def register(function: _Replacement) -> _Replacement:
        if operation in DECOMPOSITIONS:
            raise ValueError(f"{operation} is replaced twice")
        DECOMPOSITIONS[operation] = function
        return function

    return register


@_replaces(aten.detach.default)
def _detach(value: Tensor) -> Tensor:
    # Nothing in a finished graph is differentiated again.
    return value


@_replaces(aten.threshold_backward.default)
def _threshold_backward(gradient: Tensor, value: Tensor, threshold: float) -> Tensor:
    # A cast and a product run faster in ONNX Runtime than a selection.
    return gradient * (value > threshold).to(gradient.dtype)


@_replaces(aten.hardtanh_backward.default)
def _hardtanh_backward(gradient: Tensor, value: Tensor, low: float, high: float) -> Tensor:
    # Asked of the output, so that the clipping alone reads the input and the runtime can fuse it into the layer.
    clipped = aten.hardtanh(value, low, high)
    passed: Tensor = gradient * ((clipped > low) & (clipped < high)).to(gradient.dtype)
    return passed


@_replaces(aten.convolution_backward.default)
def _convolution_backward(
    gradient: Tensor,
    value: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, None, None]:
    """The gradient `(batch, C_in, ...)` of a convolution with respect to its input; weights are constants."""
    if not output_mask[0]:
        return None, None, None
    if transposed:
        return (
            aten.convolution(gradient, weight, None, stride, padding, dilation, False, [0] * len(stride), groups),
            None,
            None,
        )
    reach = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
    if all(step == 1 for step in stride) and all(pad <= most for pad, most in zip(padding, reach, strict=True)):
        flipped = _flip_and_swap(weight, groups)
        padding = [most - pad for most, pad in zip(reach, padding, strict=True)]
        return (
            aten.convolution(gradient, flipped, None, stride, padding, dilation, False, [0] * len(stride), groups),
            None,
            None,
        )
    # Rows and columns that no window reached keep the gradient zero: they are the output padding.
    shortfall = [
        size - ((out - 1) * step - 2 * pad + most + 1)
        for size, out, step, pad, most in zip(value.shape[2:], gradient.shape[2:], stride, padding, reach, strict=True)
    ]
    return aten.convolution(gradient, weight, None, stride, padding, dilation, True, shortfall, groups), None, None


@_replaces(aten.max_pool2d_with_indices_backward.default)
def _max_pool2d_backward(
    gradient: Tensor,
    value: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """Hands each window's gradient to its first largest place, found by comparing: indices would take a slow kernel.

    That place is in the first row of a window that holds the largest value, and there in the first such column: the
    gradient goes to rows first and from there to columns, which takes few comparisons. Places are sorted by their
    phase, their rest when divided by the stride, so that a tap of all windows is a slice.
    """
    kernel, steps, padding, dilation = _pair(kernel), _pair(stride or kernel), _pair(padding), _pair(dilation)
    pooled = aten.max_pool2d_with_indices(value, kernel, stride, padding, dilation, ceil_mode)[0]
    windows, channels = gradient.shape[2:], value.shape[1]
    rows, columns = ([divmod(dilation[axis] * tap, steps[axis]) for tap in range(kernel[axis])] for axis in (0, 1))
    counts = [
        max(windows[axis] + taps[-1][0], -(-(value.shape[2 + axis] + padding[axis]) // steps[axis]))
        for axis, taps in enumerate((rows, columns))
    ]
    edges = []
    for axis in (1, 0):
        edges += [padding[axis], counts[axis] * steps[axis] - padding[axis] - value.shape[2 + axis]]
    padded = _constant_pad_nd(value, edges, -math.inf) if any(edges) else value
    split = aten.view(padded, [-1, channels, counts[0], steps[0], counts[1], steps[1]])
    phases = aten.clone(aten.permute(split, [3, 5, 0, 1, 2, 4]), memory_format=torch.contiguous_format)
    seen, largest = {}, {}
    for top in {phase for _, phase in rows}:
        lines = aten.select.int(phases, 0, top)
        seen[top] = [
            aten.slice.Tensor(aten.select.int(lines, 0, left), 3, place, place + windows[1]) for place, left in columns
        ]
        largest[top] = functools.reduce(aten.maximum, seen[top])
    in_rows = [aten.slice.Tensor(largest[top], 2, place, place + windows[0]) for place, top in rows]
    sums = {
        (top, left): part
        for top, given in _hand_out(gradient, pooled, in_rows, rows, 2, counts[0]).items()
        for left, part in _hand_out(given, largest[top], seen[top], columns, 3, counts[1]).items()
    }
    nothing = next(iter(sums.values())) * 0
    phases_of_rows = [[sums.get((top, left), nothing) for left in range(steps[1])] for top in range(steps[0])]
    stacked = torch.stack([torch.stack(row, 4) for row in phases_of_rows], 3)
    woven: Tensor = aten.view(stacked, [-1, channels, counts[0] * steps[0], counts[1] * steps[1]])
    for axis in (0, 1):
        start = padding[axis]
        woven = aten.slice.Tensor(woven, 2 + axis, start, start + value.shape[2 + axis])
    return woven


def _hand_out(
    gradient: Tensor, largest: Tensor, seen: Sequence[Tensor], taps: Sequence[tuple[int, int]], axis: int, count: int
) -> dict[int, Tensor]:
    """Hands the gradient of windows along an axis to the first tap that saw the largest value.

    Args:
        gradient: Of the windows.
        largest: The largest value of each.
        seen: What each tap saw.
        taps: The first place of each tap among those of its phase, and its phase.
        axis: Where the windows lie.
        count: Places of a phase.

    Returns:
        What the places of each phase get, for the phases that some tap sees.
    """
    found: dict[int, Tensor] = {}
    for number, (value, (place, phase)) in enumerate(zip(seen, taps, strict=True)):
        # What no tap took before is the last one's: some tap saw the largest value.
        part = gradient if number == len(taps) - 1 else gradient * (value == largest).to(gradient.dtype)
        gradient = gradient - part
        after = count - gradient.shape[axis] - place
        part = _constant_pad_nd(part, [0, 0] * (3 - axis) + [place, after])
        found[phase] = found[phase] + part if phase in found else part
    return found


def _flip_and_swap(weight: Tensor, groups: int) -> Tensor:
    """Turn weights `(C_out, C_in / groups, ...)` into those of the transposed map, `(C_in, C_out / groups, ...)`."""
    out_channels, in_channels, *kernel = weight.shape
    grouped = weight.reshape(groups, out_channels // groups, in_channels, *kernel).transpose(1, 2)
    return grouped.reshape(groups * in_channels, out_channels // groups, *kernel).flip(*range(2, weight.ndim))


@_replaces(aten.avg_pool2d_backward.default)
def _avg_pool2d_backward(
    gradient: Tensor,
    value: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    kernel, stride, padding = _pair(kernel), _pair(stride or kernel), _pair(padding)
    rows, columns = (
        _window_means(
            value.shape[2 + axis],
            gradient.shape[2 + axis],
            kernel[axis],
            stride[axis],
            padding[axis],
            include_pad=count_include_pad,
        )
        for axis in (0, 1)
    )
    if divisor_override is not None:
        rows, columns = (rows > 0).float(), (columns > 0).float() / divisor_override
    return _along_axes(gradient, rows.T, columns.T)


def _window_means(size: int, windows: int, kernel: int, stride: int, padding: int, *, include_pad: bool) -> Tensor:
    """The matrix `(windows, size)` whose product with one image axis is the mean of each window."""
    means = torch.zeros(windows, size)
    for window in range(windows):
        start = window * stride - padding
        end = min(start + kernel, size + padding)
        inside = range(max(start, 0), min(end, size))
        means[window, inside.start : inside.stop] = 1 / (end - start if include_pad else len(inside))
    return means


@_replaces(aten._adaptive_avg_pool2d.default)
def _adaptive_avg_pool2d(value: Tensor, size: Sequence[int]) -> Tensor:
    rows, columns = _adaptive_means(value.shape[2], size[0]), _adaptive_means(value.shape[3], size[1])
    return _along_axes(value, rows, columns)


@_replaces(aten._adaptive_avg_pool2d_backward.default)
def _adaptive_avg_pool2d_backward(gradient: Tensor, value: Tensor) -> Tensor:
    rows = _adaptive_means(value.shape[2], gradient.shape[2])
    columns = _adaptive_means(value.shape[3], gradient.shape[3])
    return _along_axes(gradient, rows.T, columns.T)


def _adaptive_means(size: int, bins: int) -> Tensor:
    """The matrix `(bins, size)` that averages `size` places into `bins`, which may overlap or repeat places."""
    means = torch.zeros(bins, size)
    for index in range(bins):
        start, end = index * size // bins, -((index + 1) * size // -bins)
        means[index, start:end] = 1 / (end - start)
    return means


@_replaces(aten.constant_pad_nd.default)
def _constant_pad_nd(value: Tensor, padding: Sequence[int], fill: float = 0) -> Tensor:
    """Pad by concatenation (the ATen operation would fix the batch size); negative padding crops."""
    for index in range(0, len(padding), 2):
        axis, (before, after) = value.ndim - 1 - index // 2, padding[index : index + 2]
        if before < 0 or after < 0:
            value = aten.slice.Tensor(value, axis, max(-before, 0), value.shape[axis] - max(-after, 0))
        edges = [_filled(value, axis, width, fill) if width > 0 else None for width in (before, after)]
        parts = [part for part in (edges[0], value, edges[1]) if part is not None]
        value = torch.cat(parts, axis) if len(parts) > 1 else value
    return value


def _filled(like: Tensor, axis: int, width: int, fill: float) -> Tensor:
    shape = list(like.shape)
    shape[axis] = width
    return like.new_full(shape, fill)


@_replaces(aten.slice_backward.default)
def _slice_backward(gradient: Tensor, sizes: Sequence[int], axis: int, start: int, end: int, step: int) -> Tensor:
    axis %= gradient.ndim
    if step == 1 and start == 0 and end == sys.maxsize:
        return gradient
    if axis == 0:
        # Which images were left out is a question of the batch size.
        unsupported: Tensor = NotImplemented
        return unsupported
    chosen = range(sizes[axis])[start:end:step]
    if step == 1:
        edges = [0, 0] * (gradient.ndim - 1 - axis) + [chosen.start, sizes[axis] - chosen.stop]
        return _constant_pad_nd(gradient, edges)
    return _along_axis(gradient, torch.eye(sizes[axis])[:, list(chosen)], axis)


@_replaces(aten.select_backward.default)
def _select_backward(gradient: Tensor, sizes: Sequence[int], axis: int, index: int) -> Tensor:
    axis %= len(sizes)
    if axis == 0:
        unsupported: Tensor = NotImplemented
        return unsupported
    before = index % sizes[axis]
    edges = [0, 0] * (len(sizes) - 1 - axis) + [before, sizes[axis] - before - 1]
    return _constant_pad_nd(gradient.unsqueeze(axis), edges)


@_replaces(aten.upsample_nearest2d.default)
def _upsample_nearest2d(
    value: Tensor, size: Sequence[int], scale_rows: float | None = None, scale_columns: float | None = None
) -> Tensor:
    # The stock decomposition would fix the batch size. Where a scale is given, ATen steps by it and not by the sizes.
    for axis, places, scale in ((2, size[0], scale_rows), (3, size[1], scale_columns)):
        step = 1 / scale if scale else value.shape[axis] / places
        sources = [min(int(place * step), value.shape[axis] - 1) for place in range(places)]
        value = value.index_select(axis, torch.tensor(sources))
    return value


def _along_axes(value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply one matrix to the rows and one to the columns of `(batch, channels, h, w)`."""
    return _along_axis(_along_axis(value, columns, 3), rows, 2)


def _along_axis(value: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Apply `matrix` `(out, in)` to one axis of size `in`."""
    # `mm` rather than `matmul`, which expands the matrix to the symbolic batch size first.
    last = aten.clone(value.transpose(axis, -1), memory_format=torch.contiguous_format)
    product = aten.mm(aten.view(last, [-1, matrix.shape[1]]), matrix.T)
    result: Tensor = aten.view(product, [-1, *last.shape[1:-1], matrix.shape[0]])
    return result.transpose(axis, -1)


def _pair(value: Sequence[int]) -> tuple[int, int]:
    return (value[0], value[-1])


@_replaces(aten.new_ones.default)
def _new_ones(like: Tensor, size: Sequence[int], *, dtype: torch.dtype | None = None, **_layout: object) -> Tensor:
    if not all(isinstance(length, int) for length in size):
        unsupported: Tensor = NotImplemented
        return unsupported
    # Without `like` among its inputs, the box of ones is a constant.
    return torch.full(size, 1, dtype=dtype or like.dtype)
