"""Where in a checkpoint the weights of a network stand: in which entry, and under which prefix of names.

Training scripts keep weights in `state_dict`, `model`, `net`, `ema` and the like, beside other things, and wrappers put
prefixes before their names: `module.`, `_orig_mod.`, `model.`. Nothing is taken by its name alone. Whatever has all
names of the architecture, in their shapes, is found; where two places have them with different values, neither is
taken.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Entry", "find_entries"]

# Wrappers that may stand anywhere in a name, and that no architecture has.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_PROFILING = ("total_ops", "total_params")
# Heads that torchvision's Inception networks have for training alone.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
_COUNTER = "num_batches_tracked"
_DEEPEST = 4


@dataclass(frozen=True)
class Entry:
    """Weights in a checkpoint, with the names that an architecture gives them.

    Attributes:
        keys: Keys of the dicts that lead there.
        inner: The prefix without what wrappers put into names, and without its last dot.
        prefix: What stood before the names, with its last dot.
        weights: By the architecture's names.
        missing: Names of the architecture that are not there; counters of batches, which carry no weight, may be.
        unknown: Names that the architecture does not have.
        misshapen: Names of tensors of another shape.
        ignored: Names under which nothing of the network stands, such as what profilers and losses leave.
    """

    keys: tuple[str, ...]
    inner: str
    prefix: str
    weights: dict[str, Tensor]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    misshapen: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def named(self) -> bool:
        """Whether every name of the architecture is there and no other."""
        return not self.missing and not self.unknown

    @property
    def place(self) -> tuple[str, ...]:
        """The keys, and the prefix as the last of them where there is one."""
        return (*self.keys, self.inner) if self.inner else self.keys

    @property
    def label(self) -> str:
        """What a user chooses it by."""
        return "/".join(self.place) or "the top level"

    def same_as(self, other: "Entry") -> bool:
        """Tell whether both hold the same values."""
        return self.weights.keys() == other.weights.keys() and all(
            tensor.dtype == other.weights[name].dtype and torch.equal(tensor, other.weights[name])
            for name, tensor in self.weights.items()
        )


def find_entries(content: Mapping[Any, Any], own: Mapping[str, Tensor]) -> list[Entry]:
    """Return everything in a checkpoint that comes close to the weights of an architecture, the best first.

    Args:
        content: What the file holds.
        own: The state dict of the architecture.
    """
    found: list[Entry] = []
    for place, tensors in _state_dicts(content, ()):
        names = {_without_wrappers(name, own): name for name in tensors}
        plain = {name: tensors[original] for name, original in names.items()}
        found.extend(_entry(place, prefix, plain, own, names) for prefix in _prefixes(plain, own))
    if not any(entry.named for entry in found):
        # Parts of one network in entries of their own: {"backbone": ..., "head": ...}.
        joined = {
            ".".join((*place, name)): tensor for place, d in _state_dicts(content, ()) for name, tensor in d.items()
        }
        whole = [_entry((), prefix, joined, own, {}) for prefix in _prefixes(joined, own)]
        found.extend(entry for entry in whole if entry.named)
    return sorted(found, key=lambda entry: _distance(entry, len(own)))


def _distance(entry: Entry, size: int) -> tuple[int, int]:
    return (not entry.named, 2 * len(entry.missing) + len(entry.unknown) + len(entry.misshapen) - size)


def _state_dicts(
    content: Mapping[Any, Any], place: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every dict that holds tensors by name, with the keys that lead to it."""
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for key, value in content.items():
        if isinstance(value, Mapping) and isinstance(key, str) and len(place) < _DEEPEST:
            yield from _state_dicts(value, (*place, key))


def _without_wrappers(name: str, own: Mapping[str, Tensor]) -> str:
    if name in own or not any(wrapper in name for wrapper in _WRAPPERS):
        return name
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _prefixes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Return every prefix under which the whole architecture stands, else those under which the most of it does."""
    needed = {name for name in own if not name.endswith(_COUNTER)}
    votes: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        votes.update(".".join([*parts[:cut], ""]) for cut in range(len(parts)) if ".".join(parts[cut:]) in needed)
    most = min(max(votes.values(), default=0), len(needed))
    return [prefix for prefix, count in votes.items() if count >= most] or [""]


def _entry(
    place: tuple[str, ...],
    prefix: str,
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    originals: Mapping[str, str],
) -> Entry:
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    outside = [name for name in tensors if not name.startswith(prefix)]
    unknown = [name for name in inside if name not in own]
    ignored = [name for name in unknown if _carries_nothing(name)]
    weights = {name: tensor for name, tensor in inside.items() if name in own}
    name = next(iter(weights), "")
    original = originals.get(prefix + name, prefix + name)
    return Entry(
        keys=place,
        inner=prefix.rstrip("."),
        prefix=original.removesuffix(name) if original.endswith(name) else _wrapper_of(original),
        weights=weights,
        missing=tuple(name for name in own if name not in weights and not name.endswith(_COUNTER)),
        unknown=tuple(name for name in unknown if name not in ignored),
        misshapen=tuple(
            name for name, tensor in weights.items() if tensor.shape != own[name].shape and not name.endswith(_COUNTER)
        ),
        ignored=(*ignored, *outside),
    )


def _wrapper_of(name: str) -> str:
    return next(f"{wrapper}." for wrapper in _WRAPPERS if wrapper in name.split("."))


def _carries_nothing(name: str) -> bool:
    """Tell whether a name is a profiler's, a counter, or of a head for training alone."""
    return name.split(".")[-1] in (*_PROFILING, "n_averaged", _COUNTER) or name.startswith(_AUXILIARY)
