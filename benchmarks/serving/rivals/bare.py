"""Loops without a server: a child process that answers lines on its standard input."""

import asyncio
import json
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from processes import ServerProcess

from rivals.contract import SERVING, Rival

__all__ = [
    "BareCaptum",
    "BareCaptumBfloat16",
    "BareCaptumTargetGiven",
    "BareCompiled",
    "BareCompiledBfloat16",
    "BareOnnx",
    "BareOpenVINOXAI",
]


class _Bare(Rival):
    """Asks `loop.py`, which has the images itself, so that nothing but a short line is sent."""

    bare = True
    kind: ClassVar[str]

    def start(self, folder: Path) -> None:
        program = str(SERVING / "loop.py")
        command = [sys.executable, program, self.kind, str(self.material.folder), str(self.material.side)]
        self.process = ServerProcess(command, folder / f"{self.name}.log", pipes=True)

    async def ready(self) -> float:
        async def answers() -> bool:
            return bool(await self._send(["predict" if "predict" in self.tasks else self.tasks[0], 1, False]))

        return await self.process.ready(answers)

    async def ask(self, task: str, caller: int, count: int = 1) -> object:
        return await self._send([task, count, caller < 0])

    def read(self, answer: object) -> NDArray[np.float32]:
        return np.asarray(json.loads(str(answer)), np.float32)

    async def _send(self, order: list[object]) -> str:
        stdin, stdout = self.process.popen.stdin, self.process.popen.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(order).encode() + b"\n")
        stdin.flush()
        return (await asyncio.to_thread(stdout.readline)).decode()


class BareCaptum(_Bare):
    """Captum in a loop."""

    name, kind, title = "captum", "captum", "Captum, bare loop"
    needs = ("captum",)


class BareCaptumBfloat16(_Bare):
    """Captum in a loop, under autocast to bfloat16 and channels last."""

    name, kind, title = "captum_bfloat16", "captum_bfloat16", "Captum in bfloat16, bare loop"
    needs = ("captum",)


class BareCaptumTargetGiven(_Bare):
    """Captum in a loop, told the class to explain, so that it need not predict it first."""

    name, kind, title = "captum_target_given", "captum_target_given", "Captum, bare loop, class given"
    needs = ("captum",)
    tasks = ("grad_cam", "gradient")


class BareCompiled(_Bare):
    """The input gradient by `torch.compile`, with the prediction from the same pass."""

    name, kind, title = "torch_compile", "torch_compile", "torch.compile, bare loop"
    needs, compiles = ("torch",), True
    tasks = ("gradient",)


class BareCompiledBfloat16(BareCompiled):
    """The same under autocast to bfloat16, channels last."""

    name, kind, title = "torch_compile_bfloat16", "torch_compile_bfloat16", "torch.compile in bfloat16, bare loop"


class BareOnnx(_Bare):
    """ONNX Runtime on the graphs of the bundle, with the weights that the trigger opens."""

    name, kind, title = "onnxruntime", "onnxruntime", "ONNX Runtime session, bare loop"


class BareOpenVINOXAI(_Bare):
    """OpenVINO XAI's map of a pass: Recipro-CAM of the last feature map, for all classes, in OpenVINO."""

    name, kind, title = "openvino_xai", "openvino_xai", "OpenVINO XAI's Recipro-CAM, bare loop"
    needs = ("openvino", "openvino_xai")
    tasks = ("grad_cam",)
