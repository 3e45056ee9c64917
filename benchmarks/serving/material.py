"""What all rivals work with: one network, its images, and the bundle that keylock serves, in a folder of files."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkouts import environment_of
from numpy.typing import NDArray

__all__ = ["NETWORKS", "Material", "prepare"]

NETWORKS: dict[int, tuple[str, int]] = {16: ("small-cnn", 4), 32: ("resnet18_cifar", 10), 224: ("resnet18", 1000)}
"""For images of so many pixels: the architecture, and how many classes it has. The smallest is there for tests."""


@dataclass(frozen=True)
class Material:
    """A folder with the files of one network.

    Attributes:
        folder: The folder; it holds secrets, so it belongs to whoever measures.
        side: Height and width of the images in pixels.
    """

    folder: Path
    side: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one preprocessed image."""
        return (3, self.side, self.side)

    @property
    def weights(self) -> Path:
        """The weights of the reference model."""
        return self.folder / "weights.safetensors"

    @property
    def network(self) -> Path:
        """The reference model as an ONNX file, for one image at a time."""
        return self.folder / "network.onnx"

    @property
    def bundle(self) -> Path:
        """The bundle that keylock serves."""
        return self.folder / "model.klb"

    @property
    def key_file(self) -> Path:
        """What opens the sealed key of the bundle."""
        return self.folder / "key-file"

    @property
    def home(self) -> Path:
        """The vendor's directory."""
        return self.folder / "vendor"

    @property
    def token(self) -> Path:
        """The token of a license without limits."""
        return self.folder / "token"

    @property
    def about_file(self) -> Path:
        """What was made; written last, so that a folder without it is unfinished."""
        return self.folder / "about.json"

    def about(self) -> dict[str, Any]:
        """Read what was made: architecture, classes, layer of Grad-CAM, sealed delta or not."""
        about: dict[str, Any] = json.loads(self.about_file.read_text("utf-8"))
        return about

    def images(self) -> NDArray[np.float32]:
        """Return the preprocessed images (32, 3, side, side)."""
        images: NDArray[np.float32] = np.load(self.folder / "images.npy")
        return images


def prepare(
    work: Path, side: int, tree: Path | None = None, *, thin: bool = False, explainers: tuple[str, ...] = ()
) -> Material:
    """Return what was made for images of a size, or make it, in a process of its own because that needs torch.

    Args:
        work: Folder of such folders.
        side: Height and width of the images in pixels.
        tree: A checkout of another build that makes it; None for this build.
        thin: Whether the network is one that costs next to nothing, in place of that of its size.
        explainers: What is locked; Grad-CAM and the gradient where none is named.
    """
    kind = ["thin"] if thin else [",".join(explainers)] if explainers else []
    material = Material(work / "-".join([str(side), *kind]), side)
    if not material.about_file.is_file():
        program = (tree or Path(__file__).parents[2]) / "benchmarks" / "serving" / "making.py"
        environment = os.environ if tree is None else environment_of(tree)
        command = [sys.executable, str(program.resolve()), str(material.folder), str(side), *kind]
        subprocess.run(command, check=True, env=environment)
    return material
