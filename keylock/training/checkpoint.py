"""Checkpoints: one safetensors file with all tensors, and what is not a tensor as JSON in its metadata.

A checkpoint is written beside its place and then moved there, so that an interrupted write leaves the last good one. It
holds no key: a run is resumed with the key it was started with, and the key's public id is compared.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from keylock.errors import ResumeError, StorageError
from keylock.files.atomic import PRIVATE, make_folders, replacing
from keylock.models import load_state

__all__ = [
    "optimiser_tensors",
    "prefixed",
    "read_checkpoint",
    "restore_module",
    "restore_optimiser",
    "storing",
    "write_checkpoint",
]

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def storing(path: Path, *, advice: str = "go on with --resume") -> Iterator[Path]:
    """Give a place to write a file to, which then takes the place of `path`; its folder is made.

    Args:
        path: The file.
        advice: How the run goes on once the file can be written, for the error.

    Raises:
        StorageError: It cannot be written; what was at the path before is still there.
    """
    try:
        make_folders(path.parent, mode=PRIVATE)
        with replacing(path, mode=PRIVATE) as unfinished:
            yield unfinished
    except OSError as error:
        raise StorageError(path, error.strerror or type(error).__name__, advice) from error
    except SafetensorError as error:
        # The library gives the system's error as text alone.
        code = _SYSTEM_ERROR.search(str(error))
        if code is None:
            raise
        raise StorageError(path, os.strerror(int(code[1])), advice) from error


def write_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint, atomically.

    Args:
        path: Where to; its folder is made.
        tensors: By name.
        state: JSON values.

    Raises:
        StorageError: It cannot be written; what was there before is still there.
    """
    with storing(path) as unfinished:
        save_file(
            {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
            unfinished,
            metadata={"state": json.dumps(state)},
        )


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint.

    Raises:
        ResumeError: There is none, or it is damaged.
    """
    if not path.is_file():
        raise ResumeError(f"there is no checkpoint at {path}: start without resume=True")
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ResumeError(f"the checkpoint {path} is damaged: remove it and start without resume=True") from error


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under `prefix.name`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def restore_module(module: nn.Module, prefix: str, tensors: dict[str, Tensor]) -> None:
    """Load what stands under a prefix into a module.

    Raises:
        ResumeError: It does not fit.
    """
    own = {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
    try:
        load_state(module, own)
    except RuntimeError as error:
        raise ResumeError("the checkpoint belongs to another architecture: start without resume=True") from error


def optimiser_tensors(optimiser: optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of an optimiser's state as `optimiser.PARAMETER.NAME`."""
    state: dict[int, dict[str, Tensor]] = optimiser.state_dict()["state"]
    return {f"optimiser.{index}.{name}": tensor for index, entry in state.items() for name, tensor in entry.items()}


def restore_optimiser(optimiser: optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load an optimiser's state from what `optimiser_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        if full_name.startswith("optimiser."):
            _, index, name = full_name.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
