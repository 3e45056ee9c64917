"""Any mix of explainers on the same images: those that can share a forward pass do."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from keylock.errors import InputError, LayerNotFoundError
from keylock.explainers.base import Asked, Classifier, Explainer, FromPredictions, OwnPasses, Pass, SinglePass
from keylock.explainers.predictions import predicted_logits
from keylock.explainers.tokens import lay_out_tokens
from keylock.models import Opened, added_to_inputs, capture_outputs, twice_differentiable

__all__ = ["explain_together"]


def explain_together(
    model: Classifier,
    explainers: Sequence[Explainer],
    images: Tensor,
    targets: Tensor,
    *,
    create_graph: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run several explainers on the same images.

    Args:
        model: A classifier in evaluation mode; one that is `Opened` explains each image by the network that it is for.
            Explainers that need predictions alone take any function from images to logits, of torch or NumPy.
        explainers: What to compute; their names differ.
        images: Preprocessed images (batch, channels, height, width).
        targets: Class indices (batch,), int64; -1 stands for the class the model predicts.
        create_graph: Keep the graph, so that a loss on the maps trains the model.
        generator: What noise and masks are drawn from; None draws the same ones every time, by each explainer's seed.

    Returns:
        Logits (batch, classes), and for each explainer's name its maps (batch, h, w).

    Raises:
        InputError: An explainer needs the network and only a function was given, or cannot be trained through.
        LayerNotFoundError: A layer an explainer looks at is missing, did not run, or has no spatial output.
    """
    if isinstance(model, Opened):
        return _by_rows(model, explainers, images, targets, create_graph=create_graph, generator=generator)
    _check(model, explainers, create_graph=create_graph)
    # Fused kernels give gradients, but no gradients of gradients.
    with twice_differentiable() if create_graph else nullcontext():
        logits, maps = _run(model, explainers, images.detach(), targets, create_graph=create_graph, generator=generator)
    if create_graph:
        return logits, maps
    return logits.detach(), {name: map_.detach() for name, map_ in maps.items()}


def _by_rows(
    model: Opened,
    explainers: Sequence[Explainer],
    images: Tensor,
    targets: Tensor,
    *,
    create_graph: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Explain each row by the network that runs it, whatever explainers do to the image afterwards."""
    parts, found = list(model.parts(images.detach())), []
    for part in parts:
        with added_to_inputs(part.network, part.added):
            found.append(
                explain_together(
                    part.network,
                    explainers,
                    part.images,
                    targets[part.rows],
                    create_graph=create_graph,
                    generator=generator,
                )
            )
    order = torch.cat([part.rows for part in parts]).argsort()
    logits = torch.cat([logits for logits, _ in found])[order]
    return logits, {one.name: torch.cat([maps[one.name] for _, maps in found])[order] for one in explainers}


def _run(
    model: Classifier,
    explainers: Sequence[Explainer],
    images: Tensor,
    targets: Tensor,
    *,
    create_graph: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    maps: dict[str, Tensor] = {}
    by_predictions = not create_graph and all(isinstance(explainer, FromPredictions) for explainer in explainers)
    if isinstance(model, nn.Module) and not by_predictions:
        shared = [explainer for explainer in explainers if isinstance(explainer, SinglePass)]
        logits, chosen, maps = _share_a_pass(model, shared, images, targets, create_graph=create_graph)
    else:
        logits = predicted_logits(model, images)
        chosen = _chosen(logits, targets)
    for explainer in explainers:
        if isinstance(explainer, OwnPasses) and isinstance(model, nn.Module):
            with torch.enable_grad():
                maps[explainer.name] = explainer.maps_of(Asked(model, images, chosen, create_graph, generator))
        elif isinstance(explainer, FromPredictions):
            maps[explainer.name] = explainer.maps_from(model, images, chosen, generator=generator)
    return logits, {explainer.name: maps[explainer.name] for explainer in explainers}


def _check(model: Classifier, explainers: Sequence[Explainer], *, create_graph: bool) -> None:
    for explainer in explainers:
        if create_graph and not explainer.differentiable:
            raise InputError(f"no gradient leads through {explainer.name!r}: it cannot be trained")
        if not isinstance(model, nn.Module) and not isinstance(explainer, FromPredictions):
            raise InputError(f"the explainer {explainer.name!r} looks into the network: give it the torch module")


def _chosen(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.where(targets < 0, logits.argmax(dim=1), targets)


def _share_a_pass(
    model: nn.Module, explainers: Sequence[SinglePass], images: Tensor, targets: Tensor, *, create_graph: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the logits, the classes that are explained, and the maps of every explainer that reads one pass."""
    layers = tuple(dict.fromkeys(name for explainer in explainers for name in explainer.layers))
    with torch.enable_grad(), capture_outputs(model, layers) as outputs:
        inputs = images.detach().requires_grad_()
        logits = model(inputs)
        _check_spatial(outputs, layers, (images.shape[2], images.shape[3]))
        chosen = _chosen(logits, targets)
        scores = logits.gather(1, chosen.unsqueeze(1)).squeeze(1)
        recorded = Pass(inputs, outputs, logits, scores, create_graph)
        return logits, chosen, {explainer.name: explainer.maps(recorded) for explainer in explainers}


def _check_spatial(outputs: Mapping[str, object], layers: Sequence[str], size: tuple[int, int]) -> None:
    for name in layers:
        output = outputs.get(name)
        if isinstance(output, Tensor) and output.dim() == 4:
            continue
        if not isinstance(output, Tensor) or output.dim() != 3:
            raise LayerNotFoundError(
                f"the layer {name!r} gives no output (batch, channels, height, width) or (batch, tokens, channels): "
                "name a convolutional layer, or one of a transformer's blocks"
            )
        try:
            lay_out_tokens(output, size)
        except LayerNotFoundError as error:
            raise LayerNotFoundError(f"the layer {name!r}: {error.message}") from None
