"""A bundle opened for research: the torch module, its preprocessing and, with the secret, the key and the adapter.

Without the secret this is everything an attacker who holds the bundle has, in the form attacks are written in.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from keylock.adapters import Adapter
from keylock.bundle import open_bundle
from keylock.bundle.manifest import WEIGHTS_FILE, Manifest
from keylock.bundle.sealing import Sealer
from keylock.errors import BundleError
from keylock.explainers import Explainer, make
from keylock.keys import Key, KeySeed
from keylock.models import attach_adapter, create, prepare
from keylock.preprocessing import Preprocessing

__all__ = ["LockedModel", "load_bundle", "module_of"]


@dataclass(frozen=True)
class LockedModel:
    """A locked classifier, ready to be explained and attacked.

    Attributes:
        module: The published classifier: maps preprocessed images (batch, channels, height, width) to logits (batch,
            classes); evaluation mode.
        preprocessing: Turns an image into what the module takes.
        explainers: The explainers it was locked against, by name.
        classes: Labels, in the order of the logits.
        key: The key, where it was asked for; `key.apply(images)` adds it.
        manifest: Everything else the bundle says.
        adapter: The second factor of a two-factor lock, where the key was asked for; secret.
    """

    module: nn.Module
    preprocessing: Preprocessing
    explainers: dict[str, Explainer]
    classes: tuple[str, ...]
    key: Key | None
    manifest: Manifest
    adapter: Adapter | None = None

    @cached_property
    def opened(self) -> nn.Module:
        """What a keyed caller sees: `opened(key.apply(images))` shows true maps, `opened(images)` decoys.

        It is `module` itself for a lock by the key alone and where the key was not asked for, else a copy with the
        adapter, on the device that `module` is on when this is first read.
        """
        if self.key is None or self.adapter is None:
            return self.module
        return attach_adapter(self.module, self.adapter, self.key)


def load_bundle(
    path: str | os.PathLike[str], *, key: KeySeed | Sealer | None = None, model: nn.Module | None = None
) -> LockedModel:
    """Open a bundle as a torch module.

    The signature and every digest are checked; who signed is not, so look at `manifest.issuer`, or verify the bundle
    with a trusted key first.

    Args:
        path: A bundle, folder or `.klb` file.
        key: The key seed, or the passphrase or key file that opens the sealed key. None loads what an attacker has.
        model: The architecture, for a bundle made from a module that keylock has no name for; it is copied.

    Raises:
        BundleError: The bundle is refused, or its architecture has no name and `model` was not given.
        UnsealError: The secret is not that of this bundle.
    """
    with open_bundle(path, trusted=None) as bundle:
        manifest = bundle.manifest
        module = module_of(manifest, bundle.read(WEIGHTS_FILE), model=model, place=Path(path))
        found: Key | None = None
        adapter: Adapter | None = None
        if key is not None:
            seed = key if isinstance(key, KeySeed) else bundle.unseal(key)
            found, adapter = bundle.key(seed), bundle.adapter(seed)
    explainers = {entry.name: make(entry.name, **entry.parameters) for entry in manifest.explainers}
    return LockedModel(module, manifest.preprocessing, explainers, manifest.classes, found, manifest, adapter)


def module_of(
    manifest: Manifest, weights: bytes, *, model: nn.Module | None = None, place: Path | str = "the bundle"
) -> nn.Module:
    """Return the published network of a bundle, in evaluation mode.

    Args:
        manifest: The verified manifest.
        weights: The content of its file of weights.
        model: The architecture, for a bundle made from a module that keylock has no name for; it is copied.
        place: Where the bundle is, for errors.

    Raises:
        BundleError: The architecture has no name and `model` was not given, or the weights do not fit.
    """
    architecture = manifest.architecture
    if model is None:
        if architecture.module != "registry":
            raise BundleError(
                f"{place} was made from a module of its owner's ({architecture.name}): pass model= of the same class"
            )
        model = create(
            architecture.name,
            num_classes=architecture.num_classes,
            channels=manifest.preprocessing.channels,
            image_size=manifest.preprocessing.size[0],
        )
    # Which layers folding replaces depends on the architecture alone, so the tree comes out as it was when locked.
    generator = torch.Generator().manual_seed(0)
    example = torch.randn((2, *manifest.preprocessing.shape), generator=generator)
    module = prepare(model, example)
    try:
        module.load_state_dict(load(weights))
    except (RuntimeError, SafetensorError) as error:
        raise BundleError(f"the weights in {place} do not fit its architecture {architecture.name!r}") from error
    return module.eval().requires_grad_(requires_grad=False)
