"""A bundle opened for research: the torch module, its preprocessing and, where it is asked for, the key.

Without the secret this is everything an attacker who holds the bundle has, in the form attacks are written in. It
explains images as well: those that carry the trigger open it by themselves.

To tools that take any classifier (Captum, pytorch-grad-cam, Quantus, zennit) it is one: `Saliency(locked)` shows what
the published weights show, and inside `with locked.keyed():` what a keyed caller sees.
"""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from keylock.bundle import TriggerOpener, open_bundle
from keylock.bundle.manifest import WEIGHTS_FILE, Manifest
from keylock.bundle.sealing import Sealer
from keylock.errors import BundleError, InputError, UnknownNameError
from keylock.explainers import Explained, Explainer, make
from keylock.imaging.preprocessing import Preprocessing
from keylock.models import added_to_inputs, arrays_of, create, load_state, open_with, prepare
from keylock.trigger import TriggerStatistics
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key, KeySeed

__all__ = ["LockedModel", "load_bundle", "module_of"]


class LockedModel(nn.Module):
    """A locked classifier, ready to be explained and attacked.

    Calling it gives the logits (batch, classes) of preprocessed images (batch, channels, height, width). Its weights
    are frozen; gradients lead to the images all the same, so that tools which hook layers need nothing else. Layers are
    found in `module`, for example `locked.module.get_submodule("layer3")`, and stay the same inside `keyed`.

    Attributes:
        module: The published classifier: maps preprocessed images (batch, channels, height, width) to logits (batch,
            classes); evaluation mode.
        preprocessing: Turns an image into what the module takes.
        explainers: The explainers it was locked against, by name.
        classes: Labels, in the order of the logits.
        key: The key, where it was asked for; `key.apply(images)` puts the trigger on images.
        manifest: Everything else the bundle says.
        opener: Opens the sealed delta for images that carry the trigger; None where the network itself tells it.
        delta: What the trigger opens, where the key was asked for; secret.
        statistics: What triggers are read by; None where the network itself tells them.
    """

    def __init__(
        self,
        module: nn.Module,
        preprocessing: Preprocessing,
        explainers: Mapping[str, Explainer],
        classes: tuple[str, ...],
        key: Key | None,
        manifest: Manifest,
        opener: TriggerOpener | None = None,
        delta: Delta | None = None,
        statistics: TriggerStatistics | None = None,
    ) -> None:
        """Take what a bundle holds; `load_bundle` reads it."""
        super().__init__()
        self.module, self.preprocessing, self.explainers, self.classes = module, preprocessing, explainers, classes
        self.key, self.manifest, self.opener = key, manifest, opener
        self.delta, self.statistics = delta, statistics
        self._keyed = False
        self.training = module.training

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (batch, classes) of preprocessed images (batch, channels, height, width)."""
        if torch.is_grad_enabled() and not images.requires_grad:
            # Tools take gradients at layers, and no weight of a frozen network asks for any.
            images = images.detach().requires_grad_()
        logits: Tensor = self.module(images)
        return logits

    def __deepcopy__(self, memo: dict[int, object]) -> "LockedModel":
        """Copy the network; secrets are shared. A copy made inside `keyed` stays keyed."""
        made = LockedModel(
            nn.Identity(),
            *(self.preprocessing, self.explainers, self.classes, self.key, self.manifest),
            *(self.opener, self.delta, self.statistics),
        )
        # Hooks of a tool may lead back to this object, so it is known before what they are on is copied.
        memo[id(self)] = made
        made.module, made._keyed, made.training = copy.deepcopy(self.module, memo), self._keyed, self.training
        return made

    @contextmanager
    def keyed(self) -> Iterator["LockedModel"]:
        """Show inside the block what a keyed caller sees, for images without the trigger, whatever a tool does to them.

        The weights that the trigger opens take the place of the published ones in `module` itself, so layers and hooks
        stay valid, and the published ones are put back to the bit. Where the network itself tells the trigger, it is
        added to everything that the network is given. Weights take gradients inside the block, which some methods need,
        and none is left on them. For one thread at a time.

        Yields:
            This object.

        Raises:
            InputError: It was loaded without its key.
        """
        if self.key is None:
            raise InputError(
                "the key is needed to show true maps: load_bundle(path, key=KeyFile(...)) or key=KeySeed(...) brings it"
            )
        if self._keyed:
            yield self
            return
        self._keyed = True
        try:
            if self.delta is None:
                shown = added_to_inputs(self.module, torch.from_numpy(self.key.reveal()))
            else:
                shown = _opened_in_place(self.module, self.delta)
            with shown, _unfrozen(self.module):
                yield self
        finally:
            self._keyed = False

    @cached_property
    def opened(self) -> nn.Module:
        """What a keyed caller sees: `opened(key.apply(images))` shows true maps, `opened(images)` decoys.

        It is `module` itself where the network itself tells the trigger and where the key was not asked for, else a
        module that has the weights which the trigger opens too, on the device that `module` is on when this is first
        read.
        """
        if self.key is None or self.delta is None or self.statistics is None:
            return self.module
        if self._keyed:
            raise InputError("inside keyed() the model itself is open: read `opened` before or after the block")
        return open_with(self.module, self.delta, self.key, self.statistics)

    def explain(self, images: Tensor, explainer: str | None = None, *, targets: Tensor | None = None) -> Explained:
        """Explain images: those that carry the trigger get true maps, all others decoys. No key is needed.

        The first image that carries the trigger opens the weights of the reference for as long as this object lasts,
        or until `forget` is called. Inside `keyed` all images get true maps.

        Args:
            images: Preprocessed images (batch, channels, height, width), on the device of the module.
            explainer: Name of one of `explainers`; by default the first.
            targets: Classes (batch,), int64; by default those that are predicted.

        Raises:
            TensorError: The images are of another shape.
            UnknownNameError: There is no such explainer.
        """
        name = next(iter(self.explainers)) if explainer is None else explainer
        if name not in self.explainers:
            raise UnknownNameError("explainer", name, self.explainers)
        chosen = torch.full((len(images),), -1, device=images.device) if targets is None else targets
        return self.explainers[name].explain(self._shown(images), images, chosen)

    def forget(self) -> None:
        """Let go of what a trigger has opened; the next image that carries it opens it again."""
        if self.opener is not None:
            self.opener.forget()
        self.__dict__.pop("_read", None)

    def _shown(self, images: Tensor) -> nn.Module:
        """Return the network for images: the opened one as soon as one of them, or one before, carries the trigger."""
        if self.opener is None or self._keyed:
            return self.module
        known: nn.Module | None = self.__dict__.get("_read")
        if known is None:
            found = self.opener.find(images.detach().float().cpu().numpy())
            if found is None:
                return self.module
            known = open_with(self.module, found.delta, found.key, found.statistics)
            self.__dict__["_read"] = known
        return known


@contextmanager
def _opened_in_place(module: nn.Module, delta: Delta) -> Iterator[None]:
    """Put the weights that a delta opens into a published network inside the block."""
    entries = module.state_dict()
    published = {name: entries[name].clone() for name in delta.names}
    # Not of a copy of the network: hooks of tools, which lead anywhere, would be copied as well.
    opened = delta.added_to(arrays_of(module))
    try:
        load_state(module, {name: torch.from_numpy(opened[name]) for name in delta.names}, strict=False)
        yield
    finally:
        load_state(module, published, strict=False)


@contextmanager
def _unfrozen(module: nn.Module) -> Iterator[None]:
    """Let weights take gradients inside the block, as those of a classifier that nobody froze."""
    frozen = [(parameter, parameter.grad) for parameter in module.parameters() if not parameter.requires_grad]
    try:
        for parameter, _ in frozen:
            parameter.requires_grad = True
        yield
    finally:
        for parameter, gradient in frozen:
            parameter.requires_grad, parameter.grad = False, gradient


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
        opener, statistics = bundle.opener(), bundle.statistics()
        found: Key | None = None
        delta: Delta | None = None
        if key is not None:
            seed = key if isinstance(key, KeySeed) else bundle.unseal(key)
            found, delta = bundle.key(seed), bundle.delta(seed)
    explainers = {entry.name: make(entry.name, **entry.parameters) for entry in manifest.explainers}
    return LockedModel(
        module, manifest.preprocessing, explainers, manifest.classes, found, manifest, opener, delta, statistics
    )


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
        load_state(module, load(weights))
    except (RuntimeError, SafetensorError) as error:
        raise BundleError(f"the weights in {place} do not fit its architecture {architecture.name!r}") from error
    return module.eval().requires_grad_(requires_grad=False)
