"""What every rival is: a server, or a bare loop, that can be started, waited for, asked and stopped."""

from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
from material import Material
from numpy.typing import NDArray
from processes import ServerProcess

__all__ = ["TASKS", "Rival"]

TASKS = ("predict", "grad_cam", "gradient")

SERVING = Path(__file__).resolve().parents[1]
"""Where the programs are that rivals run."""


class Rival(ABC):
    """One way to explain, in a process of its own.

    Attributes:
        name: In the results.
        title: In tables.
        needs: The modules it needs beside those of keylock.
        tasks: What it can be asked.
        bare: Whether there is no server: it is then asked for batches by one caller, in place of single images by
            many callers.
        compiles: Whether the first batch of each size takes long.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[tuple[str, ...]] = TASKS
    bare: ClassVar[bool] = False
    compiles: ClassVar[bool] = False
    process: ServerProcess

    def __init__(self, material: Material) -> None:
        self.material, self.images = material, material.images()

    @classmethod
    def missing(cls) -> list[str]:
        """Name the modules it needs that are not installed."""
        return [module for module in cls.needs if find_spec(module) is None]

    @classmethod
    def suits(cls, material: Material) -> bool:
        """Return whether it can work with this material."""
        return True

    @abstractmethod
    def start(self, folder: Path) -> None:
        """Start the process; `folder` is for its files."""

    @abstractmethod
    async def ready(self) -> float:
        """Wait until it answers; return the seconds since its start."""

    @abstractmethod
    async def ask(self, task: str, caller: int, count: int = 1) -> object:
        """Ask once, as one of several callers, about its image, or about `count` images in a bare loop.

        Returns:
            The answer as it came.
        """

    @abstractmethod
    def read(self, answer: object) -> NDArray[np.float32]:
        """Read the first map (height, width) of an answer."""

    async def stop(self) -> None:
        """End the process."""
        self.process.stop()
