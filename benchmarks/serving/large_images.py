"""How much memory a server takes for 32 pictures of 50 million pixels at once, and what small images notice of it.

python benchmarks/serving/large_images.py

The pictures are small files: PNG in colour, PNG of 16 bits, JPEG, and progressive JPEG. While they are decoded one
more caller sends a small image twice in a second.
"""

import io
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import grpc
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "licensing"))

from world import ROOT, Server, World, image, record

from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc

_SIDE: Final = 7070
_COUNT: Final = 32
_PATIENCE_S: Final = 900


def _files() -> dict[str, bytes]:
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "PNG": ("RGB", "PNG", {"compress_level": 1}),
        "PNG of 16 bits": ("I;16", "PNG", {"compress_level": 1}),
        "JPEG": ("RGB", "JPEG", {}),
        "progressive JPEG": ("RGB", "JPEG", {"progressive": True}),
    }
    found = {}
    for name, (mode, kind, options) in kinds.items():
        buffer = io.BytesIO()
        Image.new(mode, (_SIDE, _SIDE)).save(buffer, kind, **options)
        found[name] = buffer.getvalue()
    return found


def _memory_mb(server: Server, field: str) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(rf"{field}:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) // 1024


def measure(server: Server) -> dict[str, object]:
    """Sends everything, and returns what was seen."""
    outcomes: Counter[str] = Counter()
    files = list(_files().values())
    with grpc.insecure_channel(server.target) as channel:
        explain = explanation_pb2_grpc.ExplanationServiceStub(channel).Explain
        small = pb.ExplainRequest(images=[image(1)])
        for _ in range(5):
            explain(small, timeout=60)
        before = _memory_mb(server, "VmRSS")

        def send(data: bytes) -> None:
            try:
                explain(pb.ExplainRequest(images=[pb.Image(encoded=data)]), timeout=_PATIENCE_S)
                outcomes["answered"] += 1
            except grpc.RpcError as error:
                outcomes[error.code().name] += 1

        threads = [threading.Thread(target=send, args=(files[number % len(files)],)) for number in range(_COUNT)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        small_s = []
        while any(thread.is_alive() for thread in threads):
            asked = time.monotonic()
            explain(small, timeout=_PATIENCE_S)
            small_s.append(time.monotonic() - asked)
            time.sleep(0.5)
        seconds = time.monotonic() - began
    peak = _memory_mb(server, "VmHWM")
    time.sleep(1)
    return {
        "pictures": _COUNT,
        "pixels_each": _SIDE**2,
        "outcomes": dict(outcomes),
        "seconds": round(seconds, 1),
        "memory_before_mb": before,
        "peak_beside_mb": peak - before,
        "kept_afterwards_mb": _memory_mb(server, "VmRSS") - before,
        "small_images": len(small_s),
        "small_image_s": {"median": round(statistics.median(small_s), 3), "longest": round(max(small_s), 3)},
    }


def main() -> None:
    """Measures and records."""
    with tempfile.TemporaryDirectory() as work, World.make(Path(work), f"sqlite:///{work}/licenses.db") as made:
        server = Server(made, "large", settings={"deadline_s": _PATIENCE_S})
        try:
            found = measure(server)
        finally:
            server.stop()
    record("large_images", found, folder=ROOT / "benchmarks" / "results" / "serving")


if __name__ == "__main__":
    main()
