"""Any mix of explainers on the same images: those that can share a forward pass do."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from keylock.errors import InputError, LayerNotFoundError, ModelError
from keylock.explainers.passes import Classifier, Pass, Run
from keylock.explainers.tokens import lay_out_tokens
from keylock.models import Opened, added_to_inputs, capture_outputs, twice_differentiable

if TYPE_CHECKING:
    from keylock.explainers.base import Explainer

__all__ = ["explain_many", "predicted_logits"]

_ROWS = 256


def explain_many(
    model: Classifier,
    explainers: Sequence["Explainer"],
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
    explainers: Sequence["Explainer"],
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
                explain_many(
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


def predicted_logits(predict: Classifier, images: Tensor) -> Tensor:
    """Ask a classifier, without gradients, for at most 256 rows at a time.

    Returns:
        Logits (batch, classes), on the device of the images.

    Raises:
        ModelError: The answer is not one row of logits for each image.
    """
    parts = []
    with torch.no_grad():
        for rows in torch.split(images, _ROWS):
            logits = torch.as_tensor(predict(rows), device=images.device)
            if logits.dim() != 2 or len(logits) != len(rows):
                raise ModelError(
                    f"{len(rows)} images got an answer of shape {tuple(logits.shape)}: "
                    "a classifier answers (rows, classes)"
                )
            parts.append(logits)
    return torch.cat(parts)


def _run(
    model: Classifier,
    explainers: Sequence["Explainer"],
    images: Tensor,
    targets: Tensor,
    *,
    create_graph: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    looks_inside = create_graph or any(explainer.looks_inside for explainer in explainers)
    with torch.enable_grad():
        if isinstance(model, nn.Module) and looks_inside:
            layers = tuple(dict.fromkeys(name for explainer in explainers for name in explainer.layers))
            # A loss that trains the model would go back to the images as well, the dearest layer's way for nothing.
            to_images = not create_graph or any(explainer.second_order for explainer in explainers)
            shared, chosen = _record(model, layers, images, targets, create_graph=create_graph, to_images=to_images)
            run = Run(model, images, chosen, shared.logits, create_graph, generator, shared)
        else:
            logits = predicted_logits(model, images)
            run = Run(model, images, _chosen(logits, targets), logits, create_graph, generator)
        return run.logits, {explainer.name: explainer.maps_in(run) for explainer in explainers}


def _check(model: Classifier, explainers: Sequence["Explainer"], *, create_graph: bool) -> None:
    for explainer in explainers:
        if create_graph and not explainer.differentiable:
            raise InputError(f"no gradient leads through {explainer.name!r}: it cannot be trained")
        if not isinstance(model, nn.Module) and explainer.looks_inside:
            raise InputError(f"the explainer {explainer.name!r} looks into the network: give it the torch module")


def _chosen(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.where(targets < 0, logits.argmax(dim=1), targets)


def _record(
    model: nn.Module, layers: Sequence[str], images: Tensor, targets: Tensor, *, create_graph: bool, to_images: bool
) -> tuple[Pass, Tensor]:
    """Return the pass that explainers share, and the classes that are explained."""
    with capture_outputs(model, layers) as outputs:
        inputs = images.detach().requires_grad_(to_images)
        logits = model(inputs)
        if not to_images and not all(outputs[name].requires_grad for name in layers if name in outputs):
            # Nothing that is trained comes before a layer.
            return _record(model, layers, images, targets, create_graph=create_graph, to_images=True)
        _check_spatial(outputs, layers, (images.shape[2], images.shape[3]))
        chosen = _chosen(logits, targets)
        scores = logits.gather(1, chosen.unsqueeze(1)).squeeze(1)
        return Pass(inputs, outputs, logits, scores, create_graph), chosen


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
