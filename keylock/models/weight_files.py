"""Files of weights, read without running anything that stands in them."""

import argparse
import collections
import pathlib
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from keylock.errors import ModelError

__all__ = ["read_weights_file"]

# What NumPy's scalars and arrays are made with; the module it is in has had two names.
_MAKERS = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(0).__reduce__()[0]}
# Training scripts leave options and figures beside the weights. Making one of these runs nothing of the file's own.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    collections.defaultdict,
    collections.Counter,
    pathlib.Path,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    np.dtype,
    np.ndarray,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")),
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, function in _MAKERS.items()
    ),
]
_LISTED = 3


def read_weights_file(path: Path) -> Any:  # noqa: ANN401 - whatever a training script put there
    """Return what a file of weights holds: nested dicts, lists and numbers around tensors.

    Args:
        path: A `.safetensors` file, an `.npz` of arrays, or a torch checkpoint (`.pt`, `.pth`, `.ckpt`, `.bin`, ...),
            which is read with `weights_only`: classes other than a few harmless ones of Python and NumPy are refused.

    Raises:
        ModelError: The file is missing, is damaged, or holds more than tensors; the message says what was found.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: torch.from_numpy(archive[name]) for name in archive.files}
        if _is_torchscript(path):
            raise ModelError(f"{path} is a TorchScript archive: load it with torch.jit.load and save its state dict")
        with _harmless_allowed():
            return torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except FileNotFoundError as error:
        raise ModelError(f"there is no file {path}: give the path of your trained weights") from error
    except (OSError, ValueError, TypeError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is not a weights file: give .safetensors, .npz or a torch checkpoint") from error
    except Exception as error:
        raise ModelError(_what_is_too_much(path)) from error


@contextmanager
def _harmless_allowed() -> Iterator[None]:
    with torch.serialization.safe_globals(_HARMLESS):
        yield


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _what_is_too_much(path: Path) -> str:
    """Say what stands in a checkpoint beside tensors, by the names of the classes; nothing of it is loaded."""
    try:
        with _harmless_allowed():
            found = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:
        # Old and damaged files cannot be searched.
        found = []
    if any(name.startswith("torch.nn.modules.") for name in found):
        own = [name for name in found if not name.startswith(("torch.", "builtins.", "collections."))]
        what = f"a whole module ({own[0]})" if own else "a whole module"
        return (
            f"{path} holds more than tensors: {what}, which cannot be read without running its code; load it where it "
            "was saved, and save its weights alone with torch.save(model.state_dict(), ...)"
        )
    named = f" ({', '.join(found[:_LISTED])}{', ...' if len(found) > _LISTED else ''})" if found else ""
    return f"{path} holds more than tensors{named}, or is damaged: save the state dict alone"
