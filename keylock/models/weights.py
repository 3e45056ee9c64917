"""Trained weights: a user's, read without running anything that stands in the file, and the digest that names them."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from keylock.errors import ModelError

__all__ = ["digest_of_weights", "load_weights"]

_WRAPPERS = ("state_dict", "model", "model_state_dict")


def digest_of_weights(model: nn.Module) -> str:
    """Return the digest of names, shapes and values of a model's weights, 64 hexadecimal digits."""
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return hashlib.sha256(save(weights)).hexdigest()


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Load trained weights into a model, in place.

    Args:
        model: The architecture the weights belong to.
        path: A `.safetensors` file, an `.npz` of arrays, or a torch checkpoint (`.pt`, `.pth`, ...). Checkpoints are
            read with `weights_only`, so that a file cannot run code; a state dict inside `state_dict` or `model` is
            found, and the prefix `module.` of data-parallel training is dropped.

    Raises:
        ModelError: The file cannot be read, or its tensors do not fit the architecture.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in _read(path).items()}
    own = model.state_dict()
    # Step counters carry no weight; older checkpoints do not have them.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    wrong = [name for name in state if name in own and state[name].shape != own[name].shape]
    if missing or unknown or wrong:
        kinds = (("missing", missing), ("not of this architecture", unknown), ("of another shape", wrong))
        found = "; ".join(f"{kind}: {_list_some(names)}" for kind, names in kinds if names)
        raise ModelError(f"the weights in {path} do not fit the architecture ({found}): check --arch and the classes")
    model.load_state_dict(state, strict=False)
    return model


def _list_some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: torch.from_numpy(archive[name]) for name in archive.files}
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(f"there is no file {path}: give the path of your trained weights") from error
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is not a weights file: give .safetensors, .npz or a torch checkpoint") from error
    except Exception as error:
        raise ModelError(f"{path} holds more than tensors, or is damaged: save the state dict alone") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path} holds no state dict: save `model.state_dict()`")
    return content
