"""A connection for each caller, as callers on different machines have them."""

from collections.abc import Callable
from typing import Any

import grpc

__all__ = ["Channels"]

_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    # A server that is not there yet is tried again at once.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 50),
)


class Channels:
    """Stubs by the number of the caller; each is connected when it is first used."""

    def __init__(self, target: str, stub: Callable[[grpc.aio.Channel], Any]) -> None:
        self._target, self._stub = target, stub
        self._channels: dict[int, grpc.aio.Channel] = {}
        self._stubs: dict[int, Any] = {}

    def __getitem__(self, caller: int) -> Any:  # noqa: ANN401 - stubs have no type of their own
        if caller not in self._stubs:
            self._channels[caller] = grpc.aio.insecure_channel(self._target, options=_OPTIONS)
            self._stubs[caller] = self._stub(self._channels[caller])
        return self._stubs[caller]

    async def close(self) -> None:
        """Close all connections."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
        self._stubs.clear()
