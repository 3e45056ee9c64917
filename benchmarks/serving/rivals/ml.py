"""Captum behind MLServer: a custom runtime, asked over gRPC with raw tensors, with adaptive batching."""

import json
import sys
from pathlib import Path
from typing import ClassVar

import grpc
import numpy as np
from numpy.typing import NDArray
from processes import ServerProcess, free_port

from keylock.inference import inference_pb2 as pb
from keylock.inference import inference_pb2_grpc
from rivals.channels import Channels
from rivals.contract import SERVING, Rival
from rivals.oip import ask_about, read_output

__all__ = ["CaptumMLServer", "CaptumMLServerBfloat16"]

_MOST = 32
_WAIT_S = 0.002


class CaptumMLServer(Rival):
    """Asks MLServer, with `mlserver_runtime.py` in its one worker process."""

    name, title, needs = "mlserver", "Captum behind MLServer", ("captum", "mlserver")
    numbers: ClassVar[str] = "float32"

    def start(self, folder: Path) -> None:
        port = free_port()
        models = folder / self.name
        for task in self.tasks:
            (models / task).mkdir(parents=True, exist_ok=True)
            settings = {
                "name": task,
                "implementation": "mlserver_runtime.CaptumRuntime",
                "max_batch_size": _MOST,
                "max_batch_time": _WAIT_S,
                "parameters": {
                    "uri": str(self.material.folder),
                    "side": self.material.side,
                    "numbers": self.numbers,
                },
            }
            (models / task / "model-settings.json").write_text(json.dumps(settings), "utf-8")
        settings = {
            "host": "127.0.0.1",
            "http_port": free_port(),
            "grpc_port": port,
            "metrics_port": free_port(),
            "debug": False,
            "parallel_workers": 1,
        }
        (models / "settings.json").write_text(json.dumps(settings), "utf-8")
        command = [sys.executable, "-c", "from mlserver.cli import main; main()", "start", str(models)]
        search = {"PYTHONPATH": ":".join([str(SERVING), *sys.path[1:]])}
        self.process = ServerProcess(command, folder / f"{self.name}.log", environment=search)
        self._channels = Channels(f"127.0.0.1:{port}", inference_pb2_grpc.GRPCInferenceServiceStub)

    async def ready(self) -> float:
        self._requests = {
            task: [ask_about(image, model=task, tensor="image") for image in self.images] for task in self.tasks
        }

        async def answers() -> bool:
            try:
                for task in self.tasks:
                    found = await self._channels[0].ModelReady(pb.ModelReadyRequest(name=task), timeout=5)
                    if not found.ready:
                        return False
            except grpc.aio.AioRpcError:
                return False
            return True

        return await self.process.ready(answers)

    async def ask(self, task: str, caller: int, count: int = 1) -> object:
        requests = self._requests[task]
        return await self._channels[caller].ModelInfer(requests[caller % len(requests)], timeout=300)

    def read(self, answer: object) -> NDArray[np.float32]:
        assert isinstance(answer, pb.ModelInferResponse)
        return read_output(answer, "map")[0]

    async def stop(self) -> None:
        await self._channels.close()
        self.process.stop()


class CaptumMLServerBfloat16(CaptumMLServer):
    """The same under autocast to bfloat16, channels last."""

    name, title, numbers = "mlserver_bfloat16", "Captum in bfloat16 behind MLServer", "bfloat16"
