"""Captum behind a plain grpc.aio server: one image at a time."""

import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from processes import ServerProcess, free_port

from rivals.channels import Channels
from rivals.contract import SERVING, TASKS, Rival

__all__ = ["CaptumGrpc"]


def _stub(channel: grpc.aio.Channel) -> dict[str, Any]:
    return {task: channel.unary_unary(f"/captum/{task}") for task in TASKS}


class CaptumGrpc(Rival):
    """Asks `grpc_server.py`."""

    name, title, needs = "grpc_aio", "Captum behind grpc.aio", ("captum",)

    def start(self, folder: Path) -> None:
        port = free_port()
        program = str(SERVING / "grpc_server.py")
        command = [sys.executable, program, str(self.material.folder), str(self.material.side), str(port)]
        self.process = ServerProcess(command, folder / f"{self.name}.log")
        self._channels = Channels(f"127.0.0.1:{port}", _stub)

    async def ready(self) -> float:
        self._requests = [image.tobytes() for image in self.images]

        async def answers() -> bool:
            try:
                await self.ask("grad_cam", 0)
            except grpc.aio.AioRpcError:
                return False
            return True

        return await self.process.ready(answers)

    async def ask(self, task: str, caller: int, count: int = 1) -> object:
        return await self._channels[caller][task](self._requests[caller % len(self._requests)], timeout=300)

    def read(self, answer: object) -> NDArray[np.float32]:
        assert isinstance(answer, bytes)
        classes = self.material.about()["classes"]
        values = np.frombuffer(answer, np.float32)[classes:]
        side = round(len(values) ** 0.5)
        return values.reshape(side, side)

    async def stop(self) -> None:
        await self._channels.close()
        self.process.stop()
