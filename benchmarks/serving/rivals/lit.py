"""Captum behind LitServe: HTTP, images as base64 in JSON, with batching."""

import base64
import json
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from processes import ServerProcess, free_port

from rivals.contract import SERVING, Rival

__all__ = ["CaptumLitServe", "CaptumLitServeBfloat16"]


class CaptumLitServe(Rival):
    """Asks `litserve_server.py`, over connections that are kept."""

    name, title, needs = "litserve", "Captum behind LitServe", ("captum", "litserve", "aiohttp")
    numbers: ClassVar[str] = "float32"

    def start(self, folder: Path) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        program = str(SERVING / "litserve_server.py")
        command = [sys.executable, program, str(self.material.folder), str(self.material.side), str(port), self.numbers]
        self.process = ServerProcess(command, folder / f"{self.name}.log")

    async def ready(self) -> float:
        import aiohttp

        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        encoded = [base64.b64encode(image.tobytes()).decode() for image in self.images]

        def body(task: str, image: str) -> bytes:
            return json.dumps({"task": task, "image": image}).encode()

        self._bodies = {task: [body(task, image) for image in encoded] for task in self.tasks}

        async def answers() -> bool:
            try:
                async with self._session.get(f"{self._url}/health") as response:
                    return response.status == 200
            except aiohttp.ClientConnectionError:
                return False

        return await self.process.ready(answers)

    async def ask(self, task: str, caller: int, count: int = 1) -> object:
        bodies = self._bodies[task]
        headers = {"content-type": "application/json"}
        async with self._session.post(
            f"{self._url}/predict", data=bodies[caller % len(bodies)], headers=headers
        ) as response:
            response.raise_for_status()
            return await response.read()

    def read(self, answer: object) -> NDArray[np.float32]:
        assert isinstance(answer, bytes)
        found = json.loads(answer)
        return np.frombuffer(base64.b64decode(found["map"]), np.float32).reshape(found["shape"])

    async def stop(self) -> None:
        await self._session.close()
        self.process.stop()


class CaptumLitServeBfloat16(CaptumLitServe):
    """The same under autocast to bfloat16, channels last."""

    name, title, numbers = "litserve_bfloat16", "Captum in bfloat16 behind LitServe", "bfloat16"
