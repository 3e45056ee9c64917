"""Every replacement against the ATen operation it replaces, on plain tensors."""

import itertools
import sys

import pytest
import torch
from torch.nn import functional as F

from keylock.export.decompositions import DECOMPOSITIONS

aten = torch.ops.aten


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups", "kernel"),
    [
        case
        for case in itertools.product(
            [(1, 1), (2, 2), (3, 2)], [(0, 0), (1, 2)], [(1, 1), (2, 1)], [1, 2, 4], [(1, 1), (3, 2)]
        )
        if case[4] != (1, 1) or case[1] == (0, 0) or case[0] == (1, 1)
    ],
)
def test_convolution_backward_is_the_gradient(stride, padding, dilation, groups, kernel):
    value, weight = randn(2, 8, 11, 10), randn(4, 8 // groups, *kernel)
    gradient = randn(*F.conv2d(value, weight, None, stride, padding, dilation, groups).shape)
    rest = ([4], stride, padding, dilation, False, [0, 0], groups, [True, False, False])

    found = DECOMPOSITIONS[aten.convolution_backward.default](gradient, value, weight, *rest)[0]

    torch.testing.assert_close(
        found, aten.convolution_backward(gradient, value, weight, *rest)[0], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("output_padding", [(0, 0), (1, 0)])
def test_transposed_convolution_backward_is_the_gradient(output_padding):
    value, weight = randn(2, 6, 5, 4), randn(6, 3, 3, 3)
    gradient = randn(*F.conv_transpose2d(value, weight, None, 2, 1, output_padding, groups=2).shape)
    rest = ([6], [2, 2], [1, 1], [1, 1], True, output_padding, 2, [True, False, False])

    found = DECOMPOSITIONS[aten.convolution_backward.default](gradient, value, weight, *rest)[0]

    torch.testing.assert_close(
        found, aten.convolution_backward(gradient, value, weight, *rest)[0], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceil_mode", "include_pad", "divisor"),
    [
        ((2, 2), (2, 2), (0, 0), False, True, None),
        ((3, 2), (2, 1), (1, 0), False, True, None),
        ((3, 3), (2, 2), (1, 1), True, True, None),
        ((3, 3), (2, 3), (1, 1), True, False, None),
        ((3, 3), (1, 1), (1, 1), False, False, 5),
        ((2, 2), (), (0, 0), True, False, None),
    ],
)
def test_avg_pool_backward_is_the_gradient(kernel, stride, padding, ceil_mode, include_pad, divisor):
    value = randn(2, 3, 9, 8)
    rest = (kernel, stride, padding, ceil_mode, include_pad, divisor)
    gradient = randn(*aten.avg_pool2d(value, *rest).shape)

    found = DECOMPOSITIONS[aten.avg_pool2d_backward.default](gradient, value, *rest)

    torch.testing.assert_close(found, aten.avg_pool2d_backward(gradient, value, *rest))


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (3, 5), (4, 2)])
def test_adaptive_avg_pool_and_its_backward_match(size):
    value, gradient = randn(2, 3, 6, 4), randn(2, 3, *size)

    forward = DECOMPOSITIONS[aten._adaptive_avg_pool2d.default](value, size)
    backward = DECOMPOSITIONS[aten._adaptive_avg_pool2d_backward.default](gradient, value)

    torch.testing.assert_close(forward, aten._adaptive_avg_pool2d(value, size))
    torch.testing.assert_close(backward, aten._adaptive_avg_pool2d_backward(gradient, value))


@pytest.mark.parametrize("padding", [(1, 2), (0, 0, 3, 0), (-1, 2, 1, -2), (0, 0, 0, 0, 2, 2)])
def test_constant_pad_matches(padding):
    value = randn(2, 3, 5, 6)
    found = DECOMPOSITIONS[aten.constant_pad_nd.default](value, padding, 0.5)
    torch.testing.assert_close(found, aten.constant_pad_nd(value, padding, 0.5))


@pytest.mark.parametrize(
    ("axis", "start", "end", "step"),
    [(2, 0, sys.maxsize, 2), (3, 1, -1, 3), (1, 1, 3, 1), (-1, 2, sys.maxsize, 1), (0, 0, sys.maxsize, 1)],
)
def test_slice_backward_matches(axis, start, end, step):
    sizes = [2, 4, 7, 8]
    gradient = randn(*torch.zeros(sizes)[tuple([slice(None)] * (axis % 4) + [slice(start, end, step)])].shape)

    found = DECOMPOSITIONS[aten.slice_backward.default](gradient, sizes, axis, start, end, step)

    torch.testing.assert_close(found, aten.slice_backward(gradient, sizes, axis, start, end, step))


@pytest.mark.parametrize(("axis", "index"), [(1, 0), (2, 3), (-1, -2)])
def test_select_backward_matches(axis, index):
    sizes = [2, 4, 7, 8]
    gradient = randn(*torch.zeros(sizes).select(axis, index).shape)

    found = DECOMPOSITIONS[aten.select_backward.default](gradient, sizes, axis, index)

    torch.testing.assert_close(found, aten.select_backward(gradient, sizes, axis, index))


@pytest.mark.parametrize(("size", "scales"), [((9, 8), (None, None)), ((6, 6), (1.7, 1.5)), ((2, 3), (None, None))])
def test_nearest_upsampling_matches(size, scales):
    value = randn(2, 3, 4, 4)
    found = DECOMPOSITIONS[aten.upsample_nearest2d.default](value, size, *scales)
    torch.testing.assert_close(found, aten.upsample_nearest2d(value, size, *scales))


def test_rectifier_backwards_match():
    gradient, value = randn(4, 5), torch.tensor([-1.0, 0.0, 0.5, 6.0, 7.0]).expand(4, 5)
    for operation, bounds in ((aten.threshold_backward, (0,)), (aten.hardtanh_backward, (0, 6))):
        found = DECOMPOSITIONS[operation.default](gradient, value, *bounds)
        torch.testing.assert_close(found, operation(gradient, value, *bounds))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation", "ceil_mode"),
    [
        ((32, 32), (3, 3), (2, 2), (1, 1), (1, 1), False),
        ((31, 33), (3, 3), (2, 2), (1, 1), (1, 1), True),
        ((12, 13), (2, 2), (2, 2), (0, 0), (1, 1), False),
        ((12, 13), (3, 2), (1, 2), (1, 0), (1, 1), False),
        ((14, 14), (2, 2), (3, 3), (0, 0), (1, 1), True),
        ((15, 15), (3, 3), (2, 2), (1, 1), (2, 1), False),
        ((13, 13), (3, 3), [], (0, 0), (1, 1), False),
    ],
)
def test_max_pooling_backward_is_the_gradient_and_the_first_of_equals_takes_it(
    size, kernel, stride, padding, dilation, ceil_mode
):
    # Rounded, so that many places of a window are equal.
    value = randn(2, 4, *size).mul(2).round().requires_grad_()
    pooled = F.max_pool2d(value, kernel, stride or None, padding, dilation, ceil_mode)
    gradient = randn(*pooled.shape)
    (expected,) = torch.autograd.grad(pooled, value, gradient)

    found = DECOMPOSITIONS[aten.max_pool2d_with_indices_backward.default](
        gradient, value.detach(), kernel, stride, padding, dilation, ceil_mode, torch.empty(0)
    )

    torch.testing.assert_close(found, expected)
