"""The keylock server: predictions for everybody, true saliency maps for callers with a license.

`serve` runs a server until it is told to stop, in one process or in several, `start` runs one inside an event loop,
`serving` in a thread of its own; `ServerSettings` says what it does. It needs ONNX Runtime and no torch.

The names are imported when they are used: the process that watches over several others runs no model, and neither gRPC
nor ONNX Runtime may have begun anything in it when it forks them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import keylock  # noqa: F401 - keeps ONNX Runtime from sending events, so it comes before anything that imports that

if TYPE_CHECKING:
    from keylock_server.operations.background import serving
    from keylock_server.operations.lifecycle import RunningServer
    from keylock_server.operations.serving import serve
    from keylock_server.operations.starting import start
    from keylock_server.settings import ServerSettings

__all__ = ["RunningServer", "ServerSettings", "serve", "serving", "start"]

_HOMES: Final = {
    "RunningServer": "operations.lifecycle",
    "ServerSettings": "settings",
    "serve": "operations.serving",
    "serving": "operations.background",
    "start": "operations.starting",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
