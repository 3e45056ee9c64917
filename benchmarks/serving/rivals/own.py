"""keylock over gRPC, for callers with a license and without."""

import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
from checkouts import environment_of
from material import Material, prepare
from numpy.typing import NDArray
from processes import ServerProcess

from keylock.inference import inference_pb2_grpc
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc
from rivals.channels import Channels
from rivals.contract import TASKS, Rival
from rivals.oip import ask_about

__all__ = ["Keylock", "KeylockAuto", "KeylockBefore", "KeylockInt8", "KeylockUnlicensed", "read_map"]


class Keylock(Rival):
    """Asks `keylock serve`, licensed: every answer is charged, and has a signed receipt."""

    name, title = "keylock", "keylock over gRPC, licensed"
    licensed: ClassVar[bool] = True
    variant: ClassVar[str] = "float32"
    environment: ClassVar[dict[str, str]] = {}

    def __init__(self, material: Material, *, workers: int = 1) -> None:
        super().__init__(material)
        self._workers = workers

    def start(self, folder: Path) -> None:
        material = self.material
        self._ready_file = folder / f"{self.name}-{self._workers}.ready"
        self._ready_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "keylock", "serve", str(material.bundle), "--port", "0"]
        command += ["--key-file", str(material.key_file), "--home", str(material.home), "--device", "cpu"]
        command += ["--workers", str(self._workers), "--ready-file", str(self._ready_file), "--log-level", "error"]
        self.process = ServerProcess(
            command,
            folder / f"{self.name}-{self._workers}.log",
            environment={**self.environment, "KEYLOCK_SERVER_THREADS": "1", "KEYLOCK_SERVER_VARIANT": self.variant},
        )

    async def ready(self) -> float:
        async def answers() -> bool:
            return self._ready_file.exists() and bool(self._ready_file.read_text("utf-8"))

        seconds = await self.process.ready(answers)
        self.connect(self._ready_file.read_text("utf-8").strip())
        return seconds

    def connect(self, target: str) -> None:
        """Make connections and requests."""
        self.target = target
        self._explanations = Channels(target, explanation_pb2_grpc.ExplanationServiceStub)
        self._predictions = Channels(target, inference_pb2_grpc.GRPCInferenceServiceStub)
        self._asked = [ask_about(image, model="model", tensor="image") for image in self.images]
        self._requests = {task: [_explain(image, task) for image in self.images] for task in TASKS if task != "predict"}
        self._metadata: tuple[tuple[str, str], ...] = ()
        if self.licensed:
            self._metadata = (("authorization", f"Bearer {self.material.token.read_text('ascii').strip()}"),)

    async def ask(self, task: str, caller: int, count: int = 1) -> object:
        place = caller % len(self.images)
        if task == "predict":
            return await self._predictions[caller].ModelInfer(self._asked[place], timeout=300)
        stub = self._explanations[caller]
        return await stub.Explain(self._requests[task][place], timeout=300, metadata=self._metadata)

    def read(self, answer: object) -> NDArray[np.float32]:
        assert isinstance(answer, pb.ExplainResponse)
        assert answer.results[0].keyed == self.licensed
        return read_map(answer)

    async def close(self) -> None:
        """Close the connections."""
        await self._explanations.close()
        await self._predictions.close()

    async def stop(self) -> None:
        await self.close()
        self.process.stop()


class KeylockUnlicensed(Keylock):
    """Asks the same kind of server without a license: the maps are decoys."""

    name, title = "keylock_unlicensed", "keylock over gRPC, unlicensed"
    tasks = ("grad_cam", "gradient")
    licensed = False


class KeylockInt8(Keylock):
    """Asks a server of graphs in eight bits, where the bundle has such graphs."""

    name, title = "keylock_int8", "keylock over gRPC in int8, licensed"
    tasks = ("predict", "grad_cam")
    variant = "int8"

    @classmethod
    def suits(cls, material: Material) -> bool:
        """Return whether both graphs were offered in eight bits: elsewhere they would be served in float32."""
        return set(cls.tasks) <= set(material.about().get("int8", ()))


class KeylockAuto(Keylock):
    """Asks a server that has chosen the fastest runtime and numbers whose maps are right."""

    name, title = "keylock_auto", "keylock over gRPC with `--variant auto`, licensed"
    variant = "auto"


class KeylockBefore(Keylock):
    """Asks a server of another build with its defaults, which serves the same network from a bundle of its own."""

    name, title = "keylock_before", "keylock of the build before, licensed"
    tree: ClassVar[Path | None] = None

    def __init__(self, material: Material) -> None:
        assert self.tree is not None
        folder = material.folder.parent.with_name(f"{material.folder.parent.name}-before")
        super().__init__(prepare(folder, material.side, self.tree))

    @classmethod
    def of(cls, tree: Path) -> None:
        """Name the checkout of that build."""
        cls.tree, cls.environment = tree, environment_of(tree)

    @classmethod
    def missing(cls) -> list[str]:
        """Name what it needs that was not given."""
        return [] if cls.tree is not None else ["--before"]


def read_map(answer: pb.ExplainResponse) -> NDArray[np.float32]:
    """Read the first map of an answer."""
    tensor = answer.results[0].map
    return np.frombuffer(tensor.data, np.float32).reshape(tuple(tensor.shape))


def _explain(image: NDArray[np.float32], explainer: str) -> pb.ExplainRequest:
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=image.shape, data=image.tobytes())
    return pb.ExplainRequest(images=[pb.Image(tensor=tensor)], explainer=explainer)
