"""Whether torch takes gradients in a copy of this process: not where several of its threads took some before."""

import multiprocessing
import warnings

import torch

__all__ = ["copies_take_gradients"]


def copies_take_gradients() -> bool:
    """Try it. Linux alone."""
    process = multiprocessing.get_context("fork").Process(target=_take)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    process.join(60)
    return process.exitcode == 0


def _take() -> None:
    one = torch.ones(1, requires_grad=True)
    torch.autograd.grad(one.sum(), one)
