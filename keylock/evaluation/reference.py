"""The reference model of a bundle: loaded from the vendor's weights, and proved to be the one that was locked."""

from pathlib import Path

import torch
from torch import nn

from keylock.bundle.manifest import Manifest
from keylock.errors import BundleError, ModelError
from keylock.models import create, digest_of_weights, load_weights, prepare

__all__ = ["find_reference", "load_reference", "reference_digest"]


def reference_digest(reference: nn.Module) -> str:
    """Return the digest by which a manifest names its reference model: that of its folded weights."""
    return f"sha256:{digest_of_weights(reference)}"


def find_reference(bundle: Path) -> Path:
    """Return where `keylock train` left the reference weights of a bundle: in its work folder.

    Raises:
        ModelError: They are not there.
    """
    place = bundle.with_name(f"{bundle.name}.work") / "reference.safetensors"
    if not place.is_file():
        raise ModelError(
            f"the reference model is not at {place}: give its weights (reference=): "
            "those that the training began with, or reference.safetensors of its work folder"
        )
    return place


def load_reference(weights: Path, manifest: Manifest) -> nn.Module:
    """Load the reference model of a bundle, prepared as it was for locking.

    Args:
        weights: Trained weights as `keylock.models.load_weights` takes them, before folding.
        manifest: Of the bundle.

    Returns:
        The classifier in evaluation mode, without gradients of its weights.

    Raises:
        BundleError: The bundle has no architecture that keylock can build, or does not say what its reference was.
        ModelError: The weights do not fit, or are not those that this bundle was locked from.
    """
    architecture = manifest.architecture
    if architecture.module != "registry" or manifest.reference_digest is None:
        raise BundleError(
            f"the bundle {manifest.name} does not say how to build its reference model: "
            "measure it from Python, with keylock.evaluation"
        )
    model = create(
        architecture.name,
        num_classes=architecture.num_classes,
        channels=manifest.preprocessing.channels,
        image_size=manifest.preprocessing.size[0],
    )
    load_weights(model, weights)
    # Which layers folding replaces depends on the architecture alone, not on the images it is checked on.
    example = torch.randn((2, *manifest.preprocessing.shape), generator=torch.Generator().manual_seed(0))
    reference = prepare(model, example)
    if reference_digest(reference) != manifest.reference_digest:
        raise ModelError(
            f"{weights} is not the reference model of the bundle {manifest.name}: "
            "give the weights it was locked from, or its maps would be held against the wrong truth"
        )
    return reference.eval().requires_grad_(requires_grad=False)
