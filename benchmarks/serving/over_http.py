"""What a call costs the server over HTTP beside the same call over gRPC, in processor time.

    python benchmarks/serving/over_http.py

One server speaks both. Asked are predictions of one image and licensed explanations of one, of 224 pixels as a float32
tensor, by a network that costs next to nothing, so that figures hold the call and hardly its graph. One caller asks on
one connection. Protocols take turns in rounds, so that whatever else the machine does concerns all of them; the
processor time of the server's process in a round is divided by its calls. The caller is no part of it.
"""

import argparse
import asyncio
import base64
import json
import os
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from checkouts import environment_of
from material import prepare
from processes import ServerProcess, free_port
from processor import describe_processor

sys.path.append(str(Path(__file__).resolve().parents[1] / "licensing"))

from world import ROOT, record

from keylock.inference import inference_pb2, inference_pb2_grpc
from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc

_RESULTS = ROOT / "benchmarks" / "results" / "serving"
_SIDE = 224
_TASK = "grad_cam"

Ask = Callable[[], Awaitable[None]]


class Connection:
    """A connection that speaks HTTP/1.1 and stays."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes both directions."""
        self._reader, self._writer = reader, writer

    def asking(self, path: str, body: bytes, media: str, check: Callable[[bytes], object], **headers: str) -> Ask:
        """Returns what asks and checks the answer."""
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n"
        head += "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        sent = head.encode() + b"\r\n" + body

        async def ask() -> None:
            self._writer.write(sent)
            answer = await self._reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            content = await self._reader.readexactly(length)
            assert answer.startswith(b"HTTP/1.1 200 "), answer + content
            assert check(content)

        return ask


async def ways(grpc_port: int, http_port: int, image: Any, token: str) -> dict[str, dict[str, Ask]]:  # noqa: ANN401
    """Returns how predictions and explanations are asked for, by protocol."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}", options=options)
    web = Connection(*await asyncio.open_connection("127.0.0.1", http_port))
    license_entry = (("authorization", f"Bearer {token}"),)

    shape, data = [1, *image.shape], image.tobytes()
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=shape)
    wanted = [inference_pb2.ModelInferRequest.InferRequestedOutputTensor(name="logits")]
    infer = inference_pb2.ModelInferRequest(inputs=[tensor], outputs=wanted, raw_input_contents=[data])
    explain = pb.ExplainRequest(explainer=_TASK)
    explain.images.add(tensor=pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=image.shape, data=data))
    predicting = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    explaining = explanation_pb2_grpc.ExplanationServiceStub(channel)
    name = (await explaining.GetModel(pb.GetModelRequest())).model.name

    async def predict_by_grpc() -> None:
        assert (await predicting.ModelInfer(infer)).raw_output_contents

    async def explain_by_grpc() -> None:
        assert (await explaining.Explain(explain, metadata=license_entry)).results[0].keyed

    about = {"name": "image", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": len(data)}}
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    text = json.dumps({"inputs": [about], "outputs": outputs}).encode()
    binary = web.asking(
        f"/v2/models/{name}/infer",
        text + data,
        "application/octet-stream",
        lambda content: b"binary_data_size" in content,
        Inference_Header_Content_Length=str(len(text)),
    )
    bearer = {"Authorization": f"Bearer {token}"}
    in_protobuf = web.asking(
        "/keylock.v1.ExplanationService/Explain",
        explain.SerializeToString(),
        "application/x-protobuf",
        lambda content: pb.ExplainResponse.FromString(content).results[0].keyed,
        **bearer,
    )
    encoded = {"dtype": "DATA_TYPE_FLOAT32", "shape": list(image.shape), "data": base64.b64encode(data).decode()}
    in_json = web.asking(
        "/v1/explain",
        json.dumps({"explainer": _TASK, "images": [{"tensor": encoded}]}).encode(),
        "application/json",
        lambda content: b'"keyed":true' in content,
        **bearer,
    )
    return {
        "prediction": {"grpc": predict_by_grpc, "http, binary": binary},
        "licensed explanation": {"grpc": explain_by_grpc, "http, protobuf": in_protobuf, "http, json": in_json},
    }


async def measure(server: ServerProcess, ready: Path, http_port: int, image: Any, options: argparse.Namespace) -> Any:  # noqa: ANN401
    """Returns the milliseconds of processor time of a call, by task and protocol, of each round but the first."""

    async def answers() -> bool:
        return ready.exists() and bool(ready.read_text("utf-8"))

    await server.ready(answers)
    grpc_port = int(ready.read_text("utf-8").strip().rpartition(":")[2])
    asked = await ways(grpc_port, http_port, image, options.token)
    found: dict[str, dict[str, list[float]]] = {task: {one: [] for one in by} for task, by in asked.items()}
    for number in range(options.rounds + 1):
        for task, by in asked.items():
            for one, ask in by.items() if number % 2 else reversed(by.items()):
                worked = server.cpu_s
                for _ in range(options.calls):
                    await ask()
                found[task][one].append((server.cpu_s - worked) / options.calls * 1000)
    return {task: {one: rounds[1:] for one, rounds in by.items()} for task, by in found.items()}


def summary(rounds: dict[str, list[float]]) -> dict[str, Any]:
    """Puts the rounds of one task together."""
    reference = statistics.median(rounds["grpc"])
    return {
        name: {
            "cpu_ms": round(statistics.median(times), 3),
            "quartiles_ms": [round(time, 3) for time in statistics.quantiles(times, n=4)[::2]],
            "over_grpc": round(statistics.median(times) / reference, 3),
        }
        for name, times in rounds.items()
    }


def main() -> None:
    """Measures and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--calls", type=int, default=200, help="of each kind in a round")
    parser.add_argument("--side", type=int, default=_SIDE, help="of the images, in pixels")
    parser.add_argument("--work", type=Path, default=Path("runs/serving"), help="where locked networks are kept")
    parser.add_argument("--results", type=Path, default=_RESULTS / "over_http.json")
    options = parser.parse_args()
    material = prepare(options.work, options.side, thin=options.side == _SIDE)
    options.token = material.token.read_text("ascii").strip()
    load_before = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as work:
        home, ready, http_port = Path(work) / "home", Path(work) / "ready", free_port()
        shutil.copytree(material.home, home)
        command = [sys.executable, "-m", "keylock", "serve", str(material.bundle), "--key-file", str(material.key_file)]
        command += ["--home", str(home), "--port", "0", "--http-port", str(http_port), "--ready-file", str(ready)]
        environment = {
            **environment_of(ROOT),
            "KEYLOCK_SERVER_THREADS": "1",
            # The same image again and again, which is what the guard is for.
            "KEYLOCK_SERVER_QUERY_GUARD": "count",
        }
        server = ServerProcess([*command, "--device", "cpu"], Path(work) / "log", environment=environment)
        try:
            rounds = asyncio.run(measure(server, ready, http_port, material.images()[0], options))
        finally:
            server.stop()
    result = {
        "hardware": f"{describe_processor()}, {os.cpu_count()} cores, one thread of computing",
        "command": shlex.join(["python", "benchmarks/serving/over_http.py"]),
        "rounds": options.rounds,
        "calls": options.calls,
        "load_average": [load_before, round(os.getloadavg()[0], 1)],
        "tasks": {task: summary(by) for task, by in rounds.items()},
    }
    record(options.results.stem, result, folder=options.results.parent)


if __name__ == "__main__":
    main()
