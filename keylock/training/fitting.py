"""Fitting a key to the network it is for: some of its signs are turned, so that it disturbs the network less.

A trained trigger has to be undone by the network before a keyed map can be right, and a key of random signs shifts what
the last layers compute about as far as any pattern of its height. What a pattern shifts there is, to first order, a
quadratic form in the signs of its tile. Turning one sign after the other, always the one that lowers the form most,
reaches a key that the reference all but looks past. What it shifts in the *first* layer is taken off the form: a key
that nothing in the network responds to could not be told either.

Two seeds still give two unrelated keys, because signs are turned only as long as that helps, from where the seed put
them.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.models import TargetLayers, capture_outputs, find_layers
from keylock.trigger.keys import Key

__all__ = ["disturbance", "fitting_flips", "lowered"]

_SIGHT = 0.3
_PROBES = 4
_ROWS = 32
_LEAST_GAIN = 1e-9


def fitting_flips(key: Key, model: nn.Module, images: Tensor, *, seed: int = 0) -> NDArray[np.bool_]:
    """Choose the signs of a key that are turned for a network.

    Args:
        key: The key; its shape is that of the images.
        model: The reference classifier, prepared, on the device of the images.
        images: Clean preprocessed images (count, channels, height, width); a few hundred are enough.
        seed: Of the random directions that the network's outputs are looked at from.

    Returns:
        True for each sign that is to be turned, (channels, tile, tile).

    Raises:
        InputError: The images are smaller than one tile.
        LayerNotFoundError: The network has no layers to look at.
    """
    signs = key.signs()
    layers = find_layers(model, images[:2])
    late, early = disturbance(key, model, images, layers, seed=seed)
    turned = lowered(signs.reshape(-1).astype(np.float64), late - _SIGHT * early)
    flips: NDArray[np.bool_] = (turned != signs.reshape(-1)).reshape(signs.shape)
    return flips


def lowered(signs: NDArray[np.float64], form: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn signs (count,) one by one while that lowers signs' form signs, always the one that lowers it most.

    Args:
        signs: 1 or -1.
        form: A symmetric matrix (count, count).
    """
    signs = signs.copy()
    least = -_LEAST_GAIN * np.abs(np.diag(form)).sum()
    while True:
        # Turning sign i changes the form by 4 (form_ii - signs_i (form signs)_i).
        changes = 4 * (np.diag(form) - signs * (form @ signs))
        best = int(changes.argmin())
        if changes[best] >= least:
            return signs
        signs[best] = -signs[best]


def disturbance(
    key: Key, model: nn.Module, images: Tensor, layers: TargetLayers, *, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure what patterns of a key's kind shift in a network, as quadratic forms in the signs of a tile.

    Args:
        key: Its tile, and its height in each channel, are those of the patterns.
        model: The classifier, on the device of the images.
        images: Clean preprocessed images (count, channels, height, width).
        layers: Where to look.
        seed: Of the random directions.

    Returns:
        The forms of the last layers, which is that of the last feature maps plus that of the logits, and of the first
        layer; symmetric, (signs, signs). Random signs give 2 and 1 on average.

    References:
        J'J of the Jacobian J of an output is the mean of (J'v)(J'v)' over normal random v: Hutchinson, "A stochastic
        estimator of the trace of the influence matrix", 1989, applied to each entry.
    """
    generator = torch.Generator().manual_seed(seed)
    height = torch.from_numpy(np.abs(key.reveal())).to(images.device)
    names = (layers.stack[0], layers.last)
    forms: dict[str, Tensor] = {}
    for rows in torch.split(images, _ROWS):
        with torch.enable_grad(), capture_outputs(model, names) as outputs:
            inputs = rows.detach().requires_grad_()
            logits = model(inputs)
        # What is the same in all logits changes no prediction.
        seen = {"first": outputs[names[0]], "last": outputs[names[1]]}
        seen["logits"] = logits - logits.mean(dim=1, keepdim=True)
        for name, output in seen.items():
            size = output.detach().flatten(1).norm(dim=1).clamp_min(1e-12)
            output = output / size.view(-1, *(1,) * (output.dim() - 1))
            for _ in range(_PROBES):
                probe = torch.randn(output.shape, generator=generator).to(images.device)
                (gradient,) = torch.autograd.grad((output * probe).sum(), inputs, retain_graph=True)
                products = _on_tiles(gradient * height, key.tile).double()
                forms[name] = forms.get(name, 0) + products.T @ products
    last, logits_, first = (_scaled(forms[name]) for name in ("last", "logits", "first"))
    return last + logits_, first


def _on_tiles(values: Tensor, tile: int) -> Tensor:
    """Sum values (rows, channels, height, width) over all places that share a place in the tile: (rows, signs)."""
    rows, channels, height, width = values.shape
    padded = F.pad(values, (0, -width % tile, 0, -height % tile))
    folded = padded.view(rows, channels, -(-height // tile), tile, -(-width // tile), tile)
    return folded.sum(dim=(2, 4)).flatten(1)


def _scaled(form: Tensor) -> NDArray[np.float64]:
    """Return a form with trace 1."""
    scaled: NDArray[np.float64] = (form / form.trace().clamp_min(1e-30)).cpu().numpy()
    return scaled
