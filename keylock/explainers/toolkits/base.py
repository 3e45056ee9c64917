"""What methods of public toolkits have in common: how they are asked, and how their answers become maps."""

import contextlib
import copy
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from keylock.errors import InputError
from keylock.explainers.base import Family, MultiPass
from keylock.explainers.passes import Run
from keylock.explainers.tokens import lay_out_tokens
from keylock.models import twice_differentiable

__all__ = ["TOOLKITS", "Asked", "Method", "Reads", "Toolkit", "ToolkitMethod", "ask"]

_SEED = 20170


class Reads(StrEnum):
    """Where a method makes its map: at the input, at a layer, or from all layers of the stack together."""

    INPUT = "input"
    LAYER = "layer"
    STACK = "stack"


@dataclass(frozen=True, eq=False)
class Asked:
    """What a method is asked.

    Attributes:
        network: A copy of the classifier, in evaluation mode, that the method may change as it likes.
        images: Preprocessed images (batch, channels, height, width).
        targets: Classes to explain (batch,).
        layers: Names of the layers to look at; none for a method that reads the input.
    """

    network: nn.Module
    images: Tensor
    targets: Tensor
    layers: tuple[str, ...]

    @property
    def modules(self) -> list[nn.Module]:
        """The layers to look at."""
        return [self.network.get_submodule(name) for name in self.layers]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.images.shape[2], self.images.shape[3]

    def laid_out(self, values: Tensor) -> Tensor:
        """Return features or attributions as (batch, channels, h, w), tokens in the grid of their patches."""
        return lay_out_tokens(values, self.size) if values.dim() == 3 else values


class Method(NamedTuple):
    """A method of a toolkit.

    Attributes:
        reads: Where it makes its map.
        run: From what is asked to maps (batch, h, w) of any sign.
        quick: Whether the suite `quick` runs it: one of each kind, and none that takes long.
    """

    reads: Reads
    run: Callable[[Asked], Tensor]
    quick: bool = False


class Toolkit(NamedTuple):
    """A public toolkit.

    Attributes:
        package: What is imported.
        extra: The extra of keylock that installs it.
        methods: By the toolkit's own name for them.
        left_out: Everything else that it exports, and why it is no attack, in a few words.
    """

    package: str
    extra: str
    methods: Mapping[str, Method]
    left_out: Mapping[str, str]

    @property
    def installed(self) -> bool:
        """Whether it can be imported."""
        return importlib.util.find_spec(self.package) is not None


TOOLKITS: dict[str, Toolkit] = {}
"""Every toolkit, by the name of its attacks' family."""


@dataclass(frozen=True)
class ToolkitMethod(MultiPass):
    """A method of a toolkit as an explainer.

    Attributes:
        toolkit: A name of `TOOLKITS`.
        method: A name of its methods.
        layers: Names of layers with output (batch, channels, h, w), or (batch, tokens, channels) in a transformer.
    """

    toolkit: str
    method: str
    layers: tuple[str, ...] = ()
    name = "toolkit_method"
    family = Family.GRADIENT
    differentiable = False
    compiled = False

    def maps_in(self, run: Run) -> Tensor:
        """Return the maps (batch, h, w), each from 0 upwards; the model is left as it was.

        Random numbers are the same at every call, so that two networks can be compared.

        Raises:
            InputError: The toolkit refuses the network, or gives no maps for it.
        """
        maps = torch.nan_to_num(
            ask(run, TOOLKITS[self.toolkit].methods[self.method], self.method, self.layers), posinf=0.0, neginf=0.0
        )
        return maps - maps.amin(dim=(1, 2), keepdim=True)


def ask(run: Run, method: Method, name: str, layers: tuple[str, ...]) -> Tensor:
    """Return the maps (batch, h, w) of a method of a toolkit, of any sign; the model is left as it was.

    Raises:
        InputError: The toolkit refuses the network, or gives no maps for it.
    """
    network = copy.deepcopy(run.network).eval().requires_grad_(requires_grad=True)
    asked = Asked(network, run.images, run.targets, layers)
    try:
        with _quiet(), _same_draws(), twice_differentiable(), torch.enable_grad():
            maps = method.run(asked).detach().float()
    except CancelledError:
        raise
    except Exception as error:
        # Toolkits refuse a network in many ways; which of them it was is in the words.
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{name}: {said}") from None
    if maps.dim() != 3 or len(maps) != len(run.images):
        raise InputError(f"{name}: an answer of shape {tuple(maps.shape)} is no map for each image")
    return maps


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings and progress bars of a toolkit from whoever watches the audit."""
    silence = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _same_draws() -> Iterator[None]:
    """Draw the same numbers from the global generators of torch and NumPy inside the block, and put both back."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        np.random.seed(_SEED)
        try:
            yield
        finally:
            np.random.set_state(state)
