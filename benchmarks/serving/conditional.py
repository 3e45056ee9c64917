"""What a request costs a server that explains a tenth of its images, over one that explains all of them.

    python benchmarks/serving/conditional.py

A prediction of every image remains, so explainers that cost little more than it save least: Grad-CAM and the gradient
are shown beside an iterated one. A licensed caller sends requests of images that are preprocessed already, one request
after the other, on one thread of computing: once all images are explained, and once those alone whose prediction is
below a probability that a tenth of them are below. The public prediction is answered both times, as the client asks for
it; the figures without it are for callers that do not want it. Processor time is that of the server's processes, which
other work on the machine weighs on little. The two kinds take turns in rounds.
"""

import argparse
import asyncio
import os
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from material import Material, prepare
from numpy.typing import NDArray
from processor import describe_processor
from rivals.own import Keylock

sys.path.append(str(Path(__file__).resolve().parents[1] / "licensing"))

from world import ROOT, record

from keylock.v1 import explanation_pb2 as pb

_RESULTS = ROOT / "benchmarks" / "results" / "serving"
_EXPLAINERS = ("grad_cam", "gradient", "integrated_gradients")
_GOAL = 0.35
_LARGE = pb.AnswerOptions(max_bytes=2**26)
_DTYPE = pb.DATA_TYPE_FLOAT32


class Asked:
    """A server, and what a request to it costs."""

    def __init__(self, material: Material, work: Path) -> None:
        """Starts it."""
        self._server = Keylock(material)
        self._server.start(work)
        self._metadata = (("authorization", f"Bearer {material.token.read_text('ascii').strip()}"),)

    async def ready(self) -> None:
        """Waits until it answers."""
        await self._server.ready()
        self._stub = self._server._explanations[0]

    async def ask(self, request: pb.ExplainRequest, *, calls: int) -> tuple[float, int]:
        """Returns the processor time of a request in milliseconds, and how many units one was charged."""
        worked = self._server.process.cpu_s
        for _ in range(calls):
            answer = await self._stub.Explain(request, metadata=self._metadata, timeout=300)
        return (self._server.process.cpu_s - worked) / calls * 1000, answer.usage.units

    async def probabilities(self, images: list[pb.Image]) -> NDArray[np.float32]:
        """Returns how probable the most probable class of each image is."""
        everything = pb.ExplainIf(probability_below=1e-9)
        answer = await self._stub.Explain(
            pb.ExplainRequest(images=images, explain_if=everything), metadata=self._metadata, timeout=300
        )
        return np.array([result.prediction.probability for result in answer.results], np.float32)

    async def close(self) -> None:
        """Ends it."""
        await self._server.stop()


async def measure(material: Material, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measures every explainer; every figure is the median of the rounds, the first of which warms up."""
    images = [
        pb.Image(tensor=pb.Tensor(dtype=_DTYPE, shape=one.shape, data=one.tobytes()))
        for one in material.images()[: options.images]
    ]
    asked = Asked(material, work)
    try:
        await asked.ready()
        sure = np.sort(await asked.probabilities(images))
        hits = max(1, round(options.share * len(images)))
        condition = pb.ExplainIf(probability_below=float(sure[hits - 1 : hits + 1].astype(np.float64).mean()))
        found: dict[tuple[str, str], list[float]] = {}
        units: dict[str, set[int]] = {"all": set(), "some": set()}
        for number in range(options.rounds + 1):
            for explainer in options.explainers:
                for kind, fields in _kinds(condition).items():
                    request = pb.ExplainRequest(images=images, explainer=explainer, answer=_LARGE, **fields)
                    cpu_ms, charged = await asked.ask(request, calls=options.calls)
                    units["some" if kind == "some" else "all"].add(charged)
                    if number:
                        found.setdefault((explainer, kind), []).append(cpu_ms)
    finally:
        await asked.close()
    return {
        "images": len(images),
        "explained": hits,
        "units_charged": {name: sorted(one) for name, one in units.items()},
        "explainers": {explainer: _summary(explainer, found) for explainer in options.explainers},
    }


def _kinds(condition: pb.ExplainIf) -> dict[str, dict[str, Any]]:
    return {
        "all": {"prediction": pb.PREDICTION_KIND_PUBLIC},
        "all_without_public_prediction": {},
        "some": {"prediction": pb.PREDICTION_KIND_PUBLIC, "explain_if": condition},
    }


def _summary(explainer: str, found: dict[tuple[str, str], list[float]]) -> dict[str, Any]:
    some = found[explainer, "some"]
    said: dict[str, Any] = {
        "cpu_ms": {kind: round(statistics.median(found[explainer, kind]), 1) for kind in _kinds(pb.ExplainIf())}
    }
    for kind, name in (("all", "ratio"), ("all_without_public_prediction", "ratio_without_public_prediction")):
        ratios = sorted(one / other for one, other in zip(some, found[explainer, kind], strict=True))
        said[name] = round(statistics.median(ratios), 3)
        said[f"{name}_range"] = [round(ratios[0], 3), round(ratios[-1], 3)]
    said["goal_met"] = said["ratio"] <= _GOAL
    return said


def main() -> None:
    """Measures and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--explainers", nargs="+", default=list(_EXPLAINERS))
    parser.add_argument("--images", type=int, default=10, help="of a request, 32 at most")
    parser.add_argument("--share", type=float, default=0.1, help="of the images that are explained")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2, help="of each kind in a round")
    parser.add_argument("--work", type=Path, default=Path("runs/serving"), help="where locked networks are kept")
    parser.add_argument("--results", type=Path, default=_RESULTS / "conditional.json")
    options = parser.parse_args()
    material = prepare(options.work, options.side, explainers=tuple(options.explainers))
    load_before = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as work:
        result = asyncio.run(measure(material, Path(work), options))
    told = {
        "hardware": f"{describe_processor()}, {os.cpu_count()} cores, one thread of computing",
        "command": shlex.join(["python", "benchmarks/serving/conditional.py", *sys.argv[1:]]),
        "network": material.about()["architecture"],
        "side": options.side,
        "goal": f"at most {_GOAL} of the processor time of explaining all",
        "rounds": options.rounds,
        "load_average": [load_before, round(os.getloadavg()[0], 1)],
        **result,
    }
    record(options.results.stem, told, folder=options.results.parent)


if __name__ == "__main__":
    main()
