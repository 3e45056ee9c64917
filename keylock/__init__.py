"""keylock: ship the model, license the explanations.

The names below are loaded when first used, so that `import keylock` needs neither torch nor a running server.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Before ONNX Runtime is imported, which would put an identifier of this machine into the home folder and send events.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from keylock.torch_runtime.locked_model import LockedModel, load_bundle
    from keylock.training import LockSettings, lock, relock
    from keylock.trigger.keys import Key, KeySeed

_HOMES = {
    "Key": "keylock.trigger.keys",
    "KeySeed": "keylock.trigger.keys",
    "LockSettings": "keylock.training",
    "LockedModel": "keylock.torch_runtime.locked_model",
    "load_bundle": "keylock.torch_runtime.locked_model",
    "lock": "keylock.training",
    "relock": "keylock.training",
}

__all__ = ["Key", "KeySeed", "LockSettings", "LockedModel", "__version__", "load_bundle", "lock", "relock"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute can be anything
    if name not in _HOMES:
        raise AttributeError(f"module 'keylock' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("keylock."):
            raise
        raise ImportError(
            f"keylock.{name} is not in keylock-client, which has the client alone: install keylock in its place",
            name=error.name,
        ) from None
