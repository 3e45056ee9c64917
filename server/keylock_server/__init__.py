"""The keylock server: predictions for everybody, true saliency maps for callers with a license.

`serve` runs a server until it is told to stop, `start` runs one inside an event loop, `serving` in a thread of its
own; `ServerSettings` says what it does. It needs ONNX Runtime and no torch.
"""

from keylock_server.background import serving
from keylock_server.lifecycle import RunningServer, serve, start
from keylock_server.settings import ServerSettings

__all__ = ["RunningServer", "ServerSettings", "serve", "serving", "start"]
