"""Weights put into a module by their names."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["load_state"]


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Load weights into a module, in place, as those of its present version.

    Some classes (torchvision's MNASNet) refuse, or convert, a state dict that does not say which version of the class
    wrote it, and files of tensors do not say it.

    Args:
        module: The module.
        state: Its tensors, by name.
        strict: Whether every name of the module must be there, and none beside.

    Raises:
        RuntimeError: Names or shapes are not those of the module.
    """
    versioned = OrderedDict(state)
    versioned._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
    module.load_state_dict(versioned, strict=strict)
