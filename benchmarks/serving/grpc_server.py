"""Captum behind a plain grpc.aio server: one thread that computes, one image at a time.

    python benchmarks/serving/grpc_server.py FOLDER SIDE PORT

Takes an image as bytes (float32), gives logits and map as bytes.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from eager import Eager
from material import Material
from rivals.contract import TASKS


async def main() -> None:
    """Serve until the process is ended."""
    material = Material(Path(sys.argv[1]), int(sys.argv[2]))
    model = Eager(material)
    model.answer("grad_cam", material.images()[:1])
    thread = ThreadPoolExecutor(max_workers=1)

    def compute(task: str, image: bytes) -> bytes:
        logits, maps = model.answer(task, np.frombuffer(image, np.float32))
        return b"".join(array[0].tobytes() for array in (logits, maps) if array is not None)

    def handler(task: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def handle(image: bytes, _context: object) -> bytes:
            return await asyncio.get_running_loop().run_in_executor(thread, compute, task, image)

        return handle

    server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1),))
    handlers = {task: grpc.unary_unary_rpc_method_handler(handler(task)) for task in TASKS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("captum", handlers),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[3]}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
