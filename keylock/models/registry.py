"""Architectures by name: keylock's own, and every torchvision classification model.

Adding one is one entry in `_OWN`; `create` is the only way a name from outside becomes a model.
"""

from collections.abc import Callable

from torch import nn

from keylock.errors import ModelError, UnknownNameError
from keylock.models.resnet_cifar import ResNetCifar
from keylock.models.small_cnn import SmallCNN

__all__ = ["architectures", "create"]


def _resnet(depth: int) -> Callable[..., nn.Module]:
    def build(*, num_classes: int, channels: int) -> nn.Module:
        return ResNetCifar(num_classes=num_classes, depth=depth, channels=channels)

    return build


_OWN: dict[str, Callable[..., nn.Module]] = {
    "resnet20": _resnet(20),
    "resnet32": _resnet(32),
    "resnet56": _resnet(56),
    "small-cnn": SmallCNN,
}


def architectures() -> tuple[str, ...]:
    """Return the names `create` accepts, sorted."""
    from torchvision import models

    return tuple(sorted({*_OWN, *models.list_models(module=models)}))


def create(name: str, *, num_classes: int, channels: int = 3) -> nn.Module:
    """Build an untrained classifier in training mode.

    Args:
        name: A name of `architectures()`.
        num_classes: Number of logits.
        channels: Channels of the input; torchvision's models take 3 only.

    Returns:
        A module that maps images (batch, channels, height, width) to logits (batch, num_classes).

    Raises:
        UnknownNameError: The name is in no registry.
        ModelError: The architecture does not take that many channels, or returns more than logits.
    """
    if name in _OWN:
        return _OWN[name](num_classes=num_classes, channels=channels)
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UnknownNameError("architecture", name, architectures())
    if channels != 3:
        raise ModelError(f"the architecture {name!r} takes images of 3 channels, not {channels}: choose small-cnn")
    # The two Inception families return auxiliary logits while training; a classifier here returns logits only.
    extra = {"aux_logits": False} if name in {"googlenet", "inception_v3"} else {}
    if name in {"googlenet", "inception_v3"}:
        extra["init_weights"] = True
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **extra)
    return model
