"""Trained weights: a user's, read without running anything that stands in the file, and the digest that names them."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from keylock.errors import ModelError
from keylock.models.state import load_state
from keylock.models.weight_entries import Entry, find_entries
from keylock.models.weight_files import read_weights_file

__all__ = ["digest_of_weights", "load_weights", "split_entry", "weights_file"]

_LOG = logging.getLogger(__name__)
_LISTED = 3


def digest_of_weights(model: nn.Module) -> str:
    """Return the digest of names, shapes and values of a model's weights, 64 hexadecimal digits."""
    return hashlib.sha256(weights_file(model)).hexdigest()


def weights_file(model: nn.Module) -> bytes:
    """Return the content of a safetensors file of a model's `state_dict()`."""
    # Layers that share a parameter have it under both names; the format refuses what shares memory.
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()})


def split_entry(path: Path) -> tuple[Path, str | None]:
    """Take `FILE#ENTRY` apart: the file, and which entry of it is meant, or None where none is named."""
    if path.exists() or "#" not in path.name:
        return path, None
    name, _, entry = str(path).rpartition("#")
    return Path(name), entry


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Load trained weights into a model, in place.

    Which entry of a checkpoint was taken, which prefix was taken off the names, and what was left out is logged as a
    warning, which Python writes to standard error. Weights of a last layer with one logit become those of two, -z/2
    and z/2, where the model has two classes.

    Args:
        model: The architecture the weights belong to.
        path: A `.safetensors` file, an `.npz` of arrays, or a torch checkpoint (`.pt`, `.pth`, ...). Checkpoints are
            read with `weights_only`, so that a file cannot run code. `FILE#ENTRY` names an entry of it, where several
            fit.

    Raises:
        ModelError: The file cannot be read, nothing in it or more than one thing fits the architecture, or the weights
            have values that are no numbers. The model is as it was.
    """
    file, wanted = split_entry(path)
    content = read_weights_file(file)
    own = model.state_dict()
    found = find_entries(content, own) if isinstance(content, Mapping) else []
    if wanted is not None:
        found = _chosen(found, wanted, file)
    if not found:
        raise ModelError(f"{file} holds no state dict: save `model.state_dict()`")
    entry = _only_one(found, file)
    weights, notes = _fitting(entry, own, file)
    _require_numbers(weights, own, file)
    load_state(model, weights, strict=False)
    notes = [*_origin(entry), *notes]
    if notes:
        _LOG.warning("%s: %s", file.name, "; ".join(notes))
    return model


def _chosen(found: list[Entry], wanted: str, file: Path) -> list[Entry]:
    """Return the entries that a user's name means: its whole place, or the end of it."""
    names = tuple(part for part in wanted.replace(".", "/").split("/") if part)

    def parts(entry: Entry) -> tuple[str, ...]:
        return tuple("/".join(entry.place).replace(".", "/").split("/"))

    chosen = (
        [entry for entry in found if parts(entry) == names]
        or [entry for entry in found if names and parts(entry)[-len(names) :] == names]
        or [entry for entry in found if names and parts(entry)[: len(names)] == names]
    )
    if not chosen:
        raise ModelError(f"{file} has no weights under {wanted!r}: there are {_labels(found)}")
    return chosen


def _only_one(found: list[Entry], file: Path) -> Entry:
    """Return the one entry that fits, or the nearest where none does."""
    first, *others = [entry for entry in found if entry.named and not entry.misshapen] or found[:1]
    different = [entry for entry in others if not entry.same_as(first)]
    if different:
        raise ModelError(
            f"{file} holds {1 + len(different)} different sets of weights for this architecture, under "
            f"{_labels([first, *different])}: say which by {file.name}#{different[0].label}, for example"
        )
    return first


def _labels(entries: list[Entry]) -> str:
    return ", ".join(dict.fromkeys(entry.label for entry in entries)) or "none"


def _fitting(entry: Entry, own: Mapping[str, Tensor], file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights in the architecture's shapes, and what had to be done for it."""
    weights, notes = dict(entry.weights), []
    for name in [name for name, tensor in weights.items() if tensor.dim() != own[name].dim() and tensor.numel() == 1]:
        weights[name] = weights[name].reshape(own[name].shape)
    misshapen = [name for name in entry.misshapen if weights[name].shape != own[name].shape]
    if entry.named and _is_one_logit(misshapen, weights, own):
        for name in misshapen:
            weights[name] = torch.cat([-weights[name], weights[name]]) / 2
        notes.append(f"one logit z became two, -z/2 and z/2 ({', '.join(misshapen)})")
        misshapen = []
    if entry.missing or entry.unknown or misshapen:
        shapes = [f"{name} is {tuple(weights[name].shape)}, not {tuple(own[name].shape)}" for name in misshapen]
        kinds = (
            ("missing", entry.missing),
            ("not of this architecture", entry.unknown),
            ("of another shape", shapes),
        )
        found = "; ".join(f"{kind}: {_list_some(names)}" for kind, names in kinds if names)
        where = f" under {entry.label}" if entry.place else ""
        raise ModelError(
            f"the weights in {file}{where} do not fit the architecture ({found}): check arch= and the classes"
        )
    return weights, notes


def _is_one_logit(misshapen: list[str], weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Tell whether all that differs is a last layer of one output where the architecture has two."""
    layers = {name.rpartition(".")[0] for name in misshapen}
    return len(layers) == 1 and all(
        weights[name].shape[:1] == (1,)
        and own[name].shape[:1] == (2,)
        and weights[name].shape[1:] == own[name].shape[1:]
        for name in misshapen
    )


def _require_numbers(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], file: Path) -> None:
    for name, tensor in weights.items():
        if not own[name].is_floating_point():
            continue
        if not tensor.is_floating_point():
            raise ModelError(
                f"the tensor {name!r} in {file} holds {str(tensor.dtype).removeprefix('torch.')} and not "
                "floating-point numbers, as quantised weights do: give the weights from before quantisation"
            )
        if tensor.is_meta or tensor.layout != torch.strided:
            raise ModelError(
                f"the tensor {name!r} in {file} {'has no values' if tensor.is_meta else 'is stored as a sparse one'}: "
                "save the weights as plain tensors"
            )
        if name.endswith("running_var") and bool((tensor.float() < 0).any()):
            raise ModelError(
                f"the tensor {name!r} in {file} holds variances below 0, which no training leaves there: give the "
                "checkpoint as it was written"
            )
        if not bool(torch.isfinite(tensor.float()).all()):
            raise ModelError(
                f"the tensor {name!r} in {file} holds values that are NaN or infinite: the training that wrote it "
                "diverged, so give an earlier checkpoint"
            )


def _origin(entry: Entry) -> list[str]:
    """Say where weights were found, for a reader who did not choose it."""
    notes = []
    if entry.keys:
        notes.append(f"took the entry {'/'.join(entry.keys)}")
    if entry.prefix:
        notes.append(f"took {entry.prefix!r} off the names")
    if entry.ignored:
        notes.append(f"left out {len(entry.ignored)} that are not part of the network ({_list_some(entry.ignored)})")
    return notes


def _list_some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
