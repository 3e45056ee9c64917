"""Captum: all of its attributions, each as it is called by default, on cells of pixels where it changes inputs.

References:
    Kokhlikyan et al., "Captum: A unified and generic model interpretability library for PyTorch", 2020.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from keylock.explainers.toolkits.base import TOOLKITS, Asked, Method, Reads, Toolkit

__all__ = ["CAPTUM"]

_STEPS: Final = 16
_CELLS: Final = 7
_SHAPLEY_CELLS: Final = 4
_ORDERED_CELLS: Final = 2
_SAMPLES: Final = 10
_FITTED: Final = 128
_AT_ONCE: Final = 16
_NOISE: Final = 0.15

Call = Callable[[Asked, Any], Tensor]
"""From what is asked and a method's class to attributions, in the shape of the input or of the layer."""


def _cells(height: int, width: int, side: int) -> Tensor:
    """Return for each position the number of its cell (height, width), of a grid of at most side x side cells."""
    rows, columns = (torch.arange(length) * min(side, length) // length for length in (height, width))
    return rows.unsqueeze(1) * min(side, width) + columns


def _pixels(asked: Asked, side: int = _CELLS) -> Tensor:
    """Return the cells of the images (1, 1, height, width)."""
    return _cells(*asked.size, side)[None, None]


def _positions(asked: Asked) -> Tensor:
    """Return the cells of the layer's positions, in the shape of its output with a batch of one."""
    shapes: list[torch.Size] = []
    handle = asked.modules[0].register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
    with torch.no_grad():
        asked.network(asked.images[:1])
    handle.remove()
    if len(shapes[0]) == 4:
        return _cells(shapes[0][2], shapes[0][3], _CELLS).expand(shapes[0])
    return _cells(shapes[0][1], 1, _CELLS**2).view(1, -1, 1).expand(shapes[0])


def _references(asked: Asked) -> Tensor:
    """Return the baselines of methods that want several: black, grey and white after preprocessing."""
    low, high = asked.images.amin(), asked.images.amax()
    shades = torch.stack([low, (low + high) / 2, high]).view(-1, 1, 1, 1)
    return shades.expand(-1, *asked.images.shape[1:]).contiguous()


def _whole(features: Tensor) -> Tensor:
    """Stand for a neuron: all that a layer gives out, (batch,)."""
    return features.flatten(1).sum(dim=1)


def _made(kind: str, call: Call, reads: Reads, asked: Asked) -> Tensor:
    """Sum a method's attributions over the channels: their size at the input, with their sign at a layer."""
    import captum.attr

    summed = asked.laid_out(call(asked, getattr(captum.attr, kind))).sum(dim=1)
    return summed.abs() if reads is Reads.INPUT else summed


def _plain(asked: Asked, kind: Any, **options: object) -> Tensor:  # noqa: ANN401
    """Ask a method of the network and its input."""
    found: Tensor = kind(asked.network).attribute(
        asked.images.clone().requires_grad_(), target=asked.targets, **options
    )
    return found


def _at_layer(asked: Asked, kind: Any, **options: object) -> Tensor:  # noqa: ANN401
    """Ask a method of the network and a layer."""
    found: Tensor = kind(asked.network, asked.modules[0]).attribute(
        asked.images.clone().requires_grad_(), target=asked.targets, **options
    )
    return found


def _of_neuron(asked: Asked, kind: Any, **options: object) -> Tensor:  # noqa: ANN401
    """Ask a method of a neuron what in the input it hears; the neuron is the whole layer."""
    found: Tensor = kind(asked.network, asked.modules[0]).attribute(
        asked.images.clone().requires_grad_(), neuron_selector=_whole, **options
    )
    return found


def _occlusion(asked: Asked, kind: Any) -> Tensor:  # noqa: ANN401
    side = max(2, min(asked.size) // 4)
    window = (asked.images.shape[1], side, side)
    strides = (asked.images.shape[1], side // 2, side // 2)
    return _plain(asked, kind, sliding_window_shapes=window, strides=strides, perturbations_per_eval=_AT_ONCE)


def _noise_tunnel(asked: Asked, kind: Any) -> Tensor:  # noqa: ANN401
    from captum.attr import Saliency

    found: Tensor = kind(Saliency(asked.network)).attribute(
        asked.images.clone().requires_grad_(),
        target=asked.targets,
        nt_samples=_SAMPLES,
        stdevs=_NOISE * float(asked.images.amax() - asked.images.amin()),
    )
    return found


def _activation(asked: Asked, kind: Any) -> Tensor:  # noqa: ANN401
    found: Tensor = kind(asked.network, asked.modules[0]).attribute(asked.images)
    return found


def _masked(asked: Asked, kind: Any, *, side: int = _CELLS, **options: object) -> Tensor:  # noqa: ANN401
    return _plain(asked, kind, feature_mask=_pixels(asked, side), **options)


def _masked_layer(asked: Asked, kind: Any) -> Tensor:  # noqa: ANN401
    """Ask of the class's score itself: with `target`, LayerFeaturePermutation of Captum 0.9 chooses the class twice."""

    def scores(images: Tensor) -> Tensor:
        logits: Tensor = asked.network(images)
        return logits.gather(1, asked.targets.unsqueeze(1)).squeeze(1)

    found: Tensor = kind(scores, asked.modules[0]).attribute(asked.images, layer_mask=_positions(asked))
    return found


def _relevance(ask: Callable[..., Tensor], asked: Asked, kind: Any) -> Tensor:  # noqa: ANN401
    """Put what has a rule in the place of what has none: ReLU for a softplus, dropout for a layer that does nothing."""
    rules = {nn.Identity: nn.Dropout(0.0), nn.Softplus: nn.ReLU()}
    for parent in list(asked.network.modules()):
        for name, child in parent.named_children():
            if type(child) in rules:
                setattr(parent, name, copy.deepcopy(rules[type(child)]))
    # Containers and activations have no relevance of their own; they hand on that of the last layer with weights.
    return ask(replace(asked, layers=tuple(_last_inside(asked.network, name) for name in asked.layers)), kind)


def _last_inside(network: nn.Module, name: str) -> str:
    while isinstance(module := network.get_submodule(name), nn.Sequential):
        weighted = [child for child, inside in module.named_children() if next(inside.parameters(), None) is not None]
        if not weighted:
            break
        name = f"{name}.{weighted[-1]}"
    return name


def _neuron_conductance(asked: Asked, kind: Any) -> Tensor:  # noqa: ANN401
    return _of_neuron(asked, kind, target=asked.targets, n_steps=_STEPS, internal_batch_size=64)


def _from_references(ask: Callable[..., Tensor], asked: Asked, kind: Any, **options: object) -> Tensor:  # noqa: ANN401
    return ask(asked, kind, baselines=_references(asked), **options)


_STEPPED: Final[dict[str, Any]] = {"n_steps": _STEPS, "internal_batch_size": 64}
_AT_INPUT: dict[str, tuple[Call, bool]] = {
    "Saliency": (_plain, True),
    "InputXGradient": (_plain, False),
    "IntegratedGradients": (partial(_plain, **_STEPPED), True),
    "DeepLift": (_plain, True),
    "DeepLiftShap": (partial(_from_references, _plain), False),
    "GradientShap": (partial(_from_references, _plain, n_samples=_SAMPLES), False),
    "GuidedBackprop": (_plain, True),
    "Deconvolution": (_plain, False),
    "LRP": (partial(_relevance, _plain), True),
    "NoiseTunnel": (_noise_tunnel, False),
    "Occlusion": (_occlusion, False),
    "FeatureAblation": (partial(_masked, perturbations_per_eval=_AT_ONCE), True),
    "FeaturePermutation": (_masked, False),
    "ShapleyValueSampling": (
        partial(_masked, side=_SHAPLEY_CELLS, n_samples=_SAMPLES, perturbations_per_eval=_AT_ONCE),
        False,
    ),
    # It goes through every order of the cells, of which there are 24 for four.
    "ShapleyValues": (partial(_masked, side=_ORDERED_CELLS, perturbations_per_eval=_AT_ONCE), False),
    "Lime": (partial(_masked, n_samples=_FITTED, perturbations_per_eval=_AT_ONCE), False),
    "KernelShap": (partial(_masked, n_samples=_FITTED, perturbations_per_eval=_AT_ONCE), False),
}
_AT_LAYERS: dict[str, tuple[Call, bool]] = {
    "LayerGradCam": (_at_layer, True),
    "LayerGradientXActivation": (_at_layer, True),
    "LayerActivation": (_activation, True),
    "LayerConductance": (partial(_at_layer, **_STEPPED), False),
    "InternalInfluence": (partial(_at_layer, **_STEPPED), False),
    "LayerIntegratedGradients": (partial(_at_layer, **_STEPPED), False),
    "LayerDeepLift": (_at_layer, True),
    "LayerDeepLiftShap": (partial(_from_references, _at_layer), False),
    "LayerGradientShap": (partial(_from_references, _at_layer, n_samples=_SAMPLES), False),
    "LayerLRP": (partial(_relevance, _at_layer), False),
    "LayerFeatureAblation": (_masked_layer, False),
    "LayerFeaturePermutation": (_masked_layer, False),
}
# Their maps are of the input, though they look at a layer.
_OF_NEURONS: dict[str, tuple[Call, bool]] = {
    "GuidedGradCam": (_at_layer, False),
    "NeuronGradient": (_of_neuron, True),
    "NeuronConductance": (_neuron_conductance, False),
    "NeuronIntegratedGradients": (partial(_of_neuron, **_STEPPED), False),
    "NeuronDeepLift": (_of_neuron, False),
    "NeuronDeepLiftShap": (partial(_from_references, _of_neuron), False),
    "NeuronGradientShap": (partial(_from_references, _of_neuron, n_samples=_SAMPLES), False),
    "NeuronDeconvolution": (_of_neuron, False),
    "NeuronGuidedBackprop": (_of_neuron, False),
    "NeuronFeatureAblation": (
        lambda asked, kind: _of_neuron(asked, kind, feature_mask=_pixels(asked), perturbations_per_eval=_AT_ONCE),
        False,
    ),
}
_METHODS = {
    name: Method(where, partial(_made, name, call, sign), quick)
    for table, where, sign in (
        (_AT_INPUT, Reads.INPUT, Reads.INPUT),
        (_AT_LAYERS, Reads.LAYER, Reads.LAYER),
        (_OF_NEURONS, Reads.LAYER, Reads.INPUT),
    )
    for name, (call, quick) in table.items()
}

_BASE: Final = "a base class"
_TEXT: Final = "for texts and language models"
_STATISTICS: Final = "gathers statistics of attributions, and makes none"
_LEFT_OUT: Final = {
    **dict.fromkeys(
        (
            "Attribution",
            "GradientAttribution",
            "PerturbationAttribution",
            "NeuronAttribution",
            "LayerAttribution",
            "InterpretableInput",
        ),
        _BASE,
    ),
    "LimeBase": "what Lime and KernelShap are made of, which are attacked",
    "DataLoaderAttribution": "one map for a whole data set, and none for an image",
    **dict.fromkeys(
        (
            "LLMAttribution",
            "LLMAttributionResult",
            "LLMGradientAttribution",
            "RemoteLLMAttribution",
            "RemoteLLMProvider",
            "VLLMProvider",
            "InterpretableEmbeddingBase",
            "TextTemplateInput",
            "TextTokenInput",
            "TokenReferenceBase",
            "ProductBaselines",
            "ImageMaskInput",
            "configure_interpretable_embedding_layer",
            "remove_interpretable_embedding_layer",
        ),
        _TEXT,
    ),
    "visualization": "draws attributions, and makes none",
    **dict.fromkeys(
        (
            "Summarizer",
            "SummarizerSingleTensor",
            "CommonStats",
            "ClassSummarizer",
            "Mean",
            "StdDev",
            "MSE",
            "Var",
            "Min",
            "Max",
            "Sum",
            "Count",
            "StatValue",
        ),
        _STATISTICS,
    ),
}

CAPTUM = Toolkit("captum", "captum", _METHODS, _LEFT_OUT)
"""What Captum exports in `captum.attr`."""

TOOLKITS["captum"] = CAPTUM
