"""Architectures by name: keylock's own, every torchvision classification model, and timm's as `timm:NAME`.

Adding one is one entry in `_OWN`; `create` is the only way a name from outside becomes a model.
"""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

from torch import nn

from keylock.errors import ModelError, UnknownNameError
from keylock.models.resnet_cifar import ResNetCifar
from keylock.models.small_cnn import SmallCNN
from keylock.models.small_stems import mobilenet_v2_cifar, resnet18_cifar
from keylock.models.vit import ViT

__all__ = ["OWN_ARCHITECTURES", "TIMM_PREFIX", "architectures", "create", "require_architecture"]

TIMM_PREFIX = "timm:"

_OWN: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v2_cifar": mobilenet_v2_cifar,
    "resnet18_cifar": resnet18_cifar,
    "resnet20": partial(ResNetCifar, depth=20),
    "resnet32": partial(ResNetCifar, depth=32),
    "resnet56": partial(ResNetCifar, depth=56),
    "small-cnn": SmallCNN,
    "vit_small": partial(ViT, width=384, heads=6),
    "vit_small_patch16": partial(ViT, image_size=224, patch=16, width=384, heads=6),
    "vit_tiny": ViT,
    "vit_tiny_patch16": partial(ViT, image_size=224, patch=16),
}

OWN_ARCHITECTURES = tuple(_OWN)
"""Names of keylock's own architectures, sorted."""


def architectures() -> tuple[str, ...]:
    """Return the names `create` accepts, sorted, but for those of timm, which are too many to list."""
    from torchvision import models

    return tuple(sorted({*_OWN, *models.list_models(module=models)}))


def require_architecture(name: str) -> None:
    """Check that a name is one `create` accepts.

    Raises:
        UnknownNameError: It is not; the message lists what comes close.
        ModelError: The name is one of timm's, and timm is not installed.
    """
    if name.startswith(TIMM_PREFIX):
        _require_timm_name(name)
    elif name not in architectures():
        known = get_close_matches(name, architectures(), n=3)
        others = ("any classifier of torchvision, such as resnet18", f"{TIMM_PREFIX}NAME for one of timm")
        raise UnknownNameError("architecture", name, [*_OWN, *(item for item in known if item not in _OWN), *others])


def create(name: str, *, num_classes: int, channels: int = 3, image_size: int | None = None) -> nn.Module:
    """Build an untrained classifier in training mode.

    Weights are drawn from torch's global generator: seed it, and the same name gives the same weights.

    Args:
        name: A name of `architectures()`, or `timm:NAME`.
        num_classes: Number of logits.
        channels: Channels of the input; torchvision's models take 3 only.
        image_size: Side of the square input in pixels, for vision transformers and others that are built for one
            size; without it they have the size of their own. All other architectures take images of any size.

    Returns:
        A module that maps images (batch, channels, height, width) to logits (batch, num_classes).

    Raises:
        UnknownNameError: The name is in no registry.
        ModelError: The architecture does not take that many channels or that size, or timm is not installed.
    """
    require_architecture(name)
    if name.startswith(TIMM_PREFIX):
        return _create_timm(name, num_classes=num_classes, channels=channels, image_size=image_size)
    if name in _OWN:
        sized = {"image_size": image_size} if name.startswith("vit_") and image_size is not None else {}
        return _OWN[name](num_classes=num_classes, channels=channels, **sized)
    return _create_torchvision(name, num_classes=num_classes, channels=channels, image_size=image_size)


def _create_torchvision(name: str, *, num_classes: int, channels: int, image_size: int | None) -> nn.Module:
    from torchvision import models

    if channels != 3:
        raise ModelError(f"the architecture {name!r} takes images of 3 channels, not {channels}: choose small-cnn")
    extra: dict[str, Any] = {}
    # The two Inception families return auxiliary logits while training; a classifier here returns logits only.
    if name in {"googlenet", "inception_v3"}:
        extra = {"aux_logits": False, "init_weights": True}
    elif image_size is not None and name.startswith("vit_"):
        extra = {"image_size": image_size}
    elif image_size is not None and name.startswith("maxvit_"):
        extra = {"input_size": (image_size, image_size)}
    try:
        model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **extra)
    except (AssertionError, ValueError, RuntimeError) as error:
        raise ModelError(f"the architecture {name!r} cannot be built for {image_size} pixels: {error}") from error
    return model


def _create_timm(name: str, *, num_classes: int, channels: int, image_size: int | None) -> nn.Module:
    import timm

    own_name = name.removeprefix(TIMM_PREFIX)
    settings = timm.get_pretrained_cfg(own_name)
    # Only models of one input size take the argument.
    fixed = settings is not None and settings.fixed_input_size
    sized: dict[str, Any] = {"img_size": image_size} if fixed and image_size is not None else {}
    try:
        model: nn.Module = timm.create_model(
            own_name, pretrained=False, num_classes=num_classes, in_chans=channels, **sized
        )
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        given = f"{channels} channels" + (f" and {image_size} pixels" if image_size is not None else "")
        raise ModelError(f"the architecture {name!r} cannot be built for {given}: {error}") from error
    _turn_before_pooling_(model)
    return model


def _turn_before_pooling_(model: nn.Module) -> None:
    """Have a network of timm's that works with the channels last, as Swin does, pool (batch, channels, h, w).

    Explainers find these maps there. Nothing in there has weights, so that published weights load as they are.
    """
    from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
    from torchvision.ops import Permute

    head = getattr(model, "head", None)
    pool = getattr(head, "global_pool", None)
    if getattr(head, "input_fmt", None) != "NHWC" or not isinstance(pool, SelectAdaptivePool2d) or not pool.pool_type:
        return
    pooling = SelectAdaptivePool2d(pool_type=f"fast{pool.pool_type}", flatten=True)
    model.get_submodule("head").global_pool = nn.Sequential(Permute([0, 3, 1, 2]), pooling)


def _require_timm_name(name: str) -> None:
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            f"the architecture {name!r} needs timm, which is not installed: pip install '.[timm]'"
        ).for_missing_extra() from error
    own_name = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(own_name):
        near = get_close_matches(own_name, timm.list_models(), n=5, cutoff=0.5)
        raise UnknownNameError("architecture", name, [f"{TIMM_PREFIX}{item}" for item in near])
