"""keylock: ship the model, license the explanations.

The names below are loaded when first used, so that `import keylock` needs neither torch nor a running server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from keylock.keys import Key, KeySeed
    from keylock.locked import LockedModel, load_bundle
    from keylock.training import LockSettings, lock, relock

_HOMES = {
    "Key": "keylock.keys",
    "KeySeed": "keylock.keys",
    "LockSettings": "keylock.training",
    "LockedModel": "keylock.locked",
    "load_bundle": "keylock.locked",
    "lock": "keylock.training",
    "relock": "keylock.training",
}

__all__ = ["Key", "KeySeed", "LockSettings", "LockedModel", "__version__", "load_bundle", "lock", "relock"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute can be anything
    if name not in _HOMES:
        raise AttributeError(f"module 'keylock' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
