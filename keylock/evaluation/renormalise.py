"""The attack on a lock through normalisation statistics: BatchNorm put back, with statistics from clean images.

A lock that was learned with live BatchNorm hangs on its statistics, and re-estimating them on clean images breaks it.
A folded lock has none. The attack puts a normalisation in again, where BatchNorm stood or after every convolution,
and asks whether clean statistics alone move the keyless maps back towards the true ones. It needs no label and no key.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from keylock.errors import LayerNotFoundError, TensorError
from keylock.models import capture_outputs, split_rows
from keylock.models.folding import ChannelAffine

__all__ = ["affine_statistics", "renormalised"]

_EPSILON = 1e-5


class _Renormalisation(nn.Module):
    """Brings each channel to the wanted mean and std: BatchNorm whose affine part is what it should put out."""

    mean: Tensor
    std: Tensor
    wanted_mean: Tensor
    wanted_std: Tensor

    def __init__(self, channels: int, *, batch_statistics: bool) -> None:
        super().__init__()
        self.batch_statistics = batch_statistics
        self.estimating = False
        self.measuring = False
        for name, value in (("mean", 0.0), ("std", 1.0), ("wanted_mean", 0.0), ("wanted_std", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))
        self._sums: list[Tensor] = []

    def forward(self, outputs: Tensor) -> Tensor:
        """Renormalise (batch, channels, h, w); while measuring, hand on what comes."""
        if self.measuring or self.estimating:
            flat = outputs.detach().double().transpose(0, 1).flatten(1)
            count = torch.full_like(flat[:, 0], flat.shape[1])
            self._sums.append(torch.stack([flat.sum(dim=1), flat.square().sum(dim=1), count]))
        if self.measuring:
            return outputs
        mean, std = self.mean, self.std
        if self.batch_statistics or self.estimating:
            std, mean = torch.std_mean(outputs, dim=(0, 2, 3), correction=0)
        scale = self.wanted_std / std.clamp_min(_EPSILON)
        shift = self.wanted_mean - mean * scale
        return outputs * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

    def collected(self) -> tuple[Tensor, Tensor]:
        """Return mean and std (channels,) of all outputs since the last call."""
        total, squares, count = torch.stack(self._sums).sum(dim=0)
        self._sums.clear()
        mean = total / count
        return mean.float(), (squares / count - mean.square()).clamp_min(0).sqrt().float()


def affine_statistics(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what each BatchNorm of a model is trained to put out, by name: mean and std of each channel (channels,).

    These are the shift and the size of the scale of its affine part. A vendor who starts from a public model lets every
    attacker know them, up to fine-tuning.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            found[name] = (module.bias.detach().clone(), module.weight.detach().abs().clone())
    return found


def renormalised(
    module: nn.Module,
    images: Tensor,
    *,
    batch_statistics: bool,
    target_statistics: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> nn.Module:
    """Return a copy of a locked model, attacked with normalisation statistics of clean images.

    Args:
        module: The locked model; it is left as it is.
        images: The attacker's clean, preprocessed images (count, channels, height, width).
        batch_statistics: Normalise every query with the statistics of the batch it comes in, which is then best large,
            in place of those of `images`.
        target_statistics: Where to normalise, and to which mean and std of each channel: for names of layers (those
            where BatchNorm stood in the reference; folding keeps them) two tensors (channels,). By default every
            convolution is normalised to the statistics that it has on `images` in the locked model, so that the affine
            part of the new BatchNorm is the identity on them, as an attacker would start from who knows no others.

    Returns:
        The attacked model, in evaluation mode, on the device of `module`. Layers keep their names: explainers that
        look at a normalised layer see it normalised.

    Raises:
        LayerNotFoundError: A name of `target_statistics` is not a layer, or no layer can be normalised.
        TensorError: Statistics do not fit their layer.

    References:
        Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation", ICLR workshop 2017: the
        re-estimation. Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1.
    """
    attacked = copy.deepcopy(module).eval()
    places = _places(attacked, target_statistics)
    modules = dict(attacked.named_modules())
    channels = _channels(attacked, places, images[:1])
    inserted = {}
    for name in places:
        normalisation = _Renormalisation(channels[name], batch_statistics=batch_statistics).to(images.device)
        modules[name].add_module("renormalisation", normalisation)
        modules[name].register_forward_hook(_normalise)
        inserted[name] = normalisation
    if target_statistics is None:
        wanted = _collect(attacked, inserted, images, "measuring")
    else:
        wanted = {name: target_statistics[name] for name in places}
    for name, normalisation in inserted.items():
        mean, std = wanted[name]
        if mean.shape != normalisation.mean.shape or std.shape != normalisation.std.shape:
            raise TensorError(f"the layer {name!r} has {channels[name]} channels: give a mean and a std for each")
        normalisation.wanted_mean, normalisation.wanted_std = mean.to(images.device), std.to(images.device)
    if not batch_statistics:
        for name, (mean, std) in _collect(attacked, inserted, images, "estimating").items():
            inserted[name].mean, inserted[name].std = mean, std
    return attacked


def _normalise(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    # The normalisation is found through the layer, so that copies of the attacked model use their own.
    result: Tensor = layer.renormalisation(output)  # type: ignore[operator]
    return result


def _places(model: nn.Module, targets: Mapping[str, tuple[Tensor, Tensor]] | None) -> tuple[str, ...]:
    modules = dict(model.named_modules())
    kinds = (nn.Conv2d, ChannelAffine)
    names = (
        tuple(name for name, layer in modules.items() if isinstance(layer, kinds))
        if targets is None
        else tuple(targets)
    )
    unknown = [name for name in names if name not in modules]
    if unknown or not names:
        raise LayerNotFoundError(f"there is no layer {unknown[0]!r}" if unknown else "the model has no convolution")
    return names


def _channels(model: nn.Module, places: Sequence[str], example: Tensor) -> dict[str, int]:
    with torch.no_grad(), capture_outputs(model, places) as outputs:
        model(example)
    missing = [name for name in places if name not in outputs]
    if missing:
        raise LayerNotFoundError(f"the layer {missing[0]!r} does not run: leave it out")
    return {name: output.shape[1] for name, output in outputs.items()}


def _collect(
    model: nn.Module, inserted: Mapping[str, _Renormalisation], images: Tensor, how: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the statistics of all images, passed in batches: plain, or each batch normalised as BatchNorm would."""
    for normalisation in inserted.values():
        setattr(normalisation, how, True)
    with torch.no_grad():
        for (rows,) in split_rows(images):
            model(rows)
    for normalisation in inserted.values():
        setattr(normalisation, how, False)
    return {name: normalisation.collected() for name, normalisation in inserted.items()}
