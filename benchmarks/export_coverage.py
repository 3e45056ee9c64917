"""Which networks and explainers compile, how closely they match torch, and what a map costs beside a prediction.

    python benchmarks/export_coverage.py                           every network of the list, into benchmarks/results
    python benchmarks/export_coverage.py --missing                 those that the file has nothing of
    python benchmarks/export_coverage.py resnet20:32 vit_tiny:32   these alone, in place of what was known of them

Networks have random weights. Every graph is compared with torch in ONNX Runtime and, where it is installed, in
OpenVINO, as the server opens it there: in float32, in which it has to hold all that is asked of ONNX Runtime, and in
bfloat16, of which the figures are told. Maps of a graph are compared on a batch, those of a loop on one image, because
a loop runs the network hundreds of times. Times are CPU times on one thread, which a busy machine changes less than the
clock's. `python benchmarks/render_coverage.py` writes the table into the documentation.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn import functional as F

from keylock import explainers, models
from keylock.errors import ExportError, KeylockError
from keylock.explainers import Explainer
from keylock.export import (
    Side,
    compile_explainer,
    compile_gradient_sums,
    compile_many,
    compile_prediction,
    verify_graph,
    verify_loop,
)
from keylock.imaging.contrast import same_map
from keylock.iterative import Loop
from keylock_server.inference.openvino_graphs import OpenVINO, is_installed
from keylock_server.inference.running import Opened

CLASSES = 10
BATCH = 8
NETWORKS = (
    *("small-cnn:32", "resnet20:32", "resnet32:32", "resnet56:32", "resnet18_cifar:32", "mobilenet_v2_cifar:32"),
    *("vit_tiny:32", "resnet18:64", "mobilenet_v2:64", "mobilenet_v3_small:64", "squeezenet1_1:64", "alexnet:64"),
    *(
        "vgg11_bn:32",
        "shufflenet_v2_x0_5:64",
        "mnasnet0_5:64",
        "regnet_y_400mf:64",
        "googlenet:64",
        "resnext50_32x4d:64",
    ),
    *("efficientnet_b0:64", "densenet121:64", "convnext_tiny:64", "swin_t:64", "inception_v3:96"),
)
RESULTS = Path(__file__).parent / "results" / "export_coverage.json"


def main() -> None:
    """Compile, verify and time every explainer of the networks named as `architecture:size`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="as ARCHITECTURE:SIZE")
    parser.add_argument("--missing", action="store_true", help="leave out networks that the file has figures of")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = json.loads(options.results.read_text("utf-8"))["figures"] if options.results.is_file() else {}
    for entry in options.networks:
        if options.missing and entry in figures:
            continue
        architecture, _, size = entry.partition(":")
        found = {}
        for name, row in Coverage(architecture, int(size)).rows():
            found[name] = row
            print(entry, name, json.dumps(row), flush=True)
        figures[entry] = found
        result = {
            "date": datetime.now(UTC).date().isoformat(),
            "onnxruntime": onnxruntime.__version__,
            "openvino": version("openvino") if is_installed() else None,
            "torch": torch.__version__,
            "command": "python benchmarks/export_coverage.py",
            "figures": {known: figures[known] for known in sorted(figures)},
        }
        if left := [network for network in NETWORKS if network not in figures]:
            result["note"] = f"Not measured: {', '.join(left)}."
        options.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        gc.collect()


class Coverage:
    """One network with all explainers that fit it."""

    def __init__(self, architecture: str, size: int) -> None:
        """Build the network and compile its prediction."""
        self._model = _network(architecture, size)
        self._images, self._shape = _images(size), (3, size, size)
        self._targets = np.arange(BATCH, dtype=np.int64) % CLASSES
        self._prediction = compile_prediction(self._model, image_shape=self._shape, num_classes=CLASSES)
        self._asked: dict[str, bytes] = {}
        self._openvino = OpenVINO(threads=1, runs=1) if is_installed() else None

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield what was found of each explainer: how it runs, and where it does not compile, why."""
        layers = models.find_layers(self._model, torch.from_numpy(self._images[:2]))
        fitting: dict[str, Explainer | KeylockError] = {}
        for name in explainers.EXPLAINERS:
            try:
                (explainer,) = explainers.make_for(layers, [name])
                if not isinstance(explainer, Loop):
                    Side(self._model).explained(explainer, self._images[:1], self._targets[:1])
                fitting[name] = explainer
            except KeylockError as error:
                fitting[name] = error
        graphs = self._compile([found for found in fitting.values() if _is_graph(found)])
        for name, explainer in fitting.items():
            found = graphs.get(name, explainer)
            try:
                if isinstance(found, KeylockError):
                    raise found
                yield name, self._loop(explainer) if isinstance(explainer, Loop) else self._graph(explainer, *found)
            except ExportError as error:
                yield name, {"runtime": "torch", "why": error.message}
            except KeylockError as error:
                yield name, {"runtime": "none", "why": error.message}

    def _graph(self, explainer: Explainer, graph: bytes, compile_s: float) -> dict[str, Any]:
        side = Remembering(self._model)
        expected = side.explained(explainer, self._images, self._targets)
        found = verify_graph(graph, side, explainer, self._images, self._targets)
        return {
            "runtime": "compiled",
            "pcc_mean": found.pcc_mean,
            "pcc_minimum": found.pcc_minimum,
            "max_difference": found.max_difference,
            "openvino": self._graph_in_openvino(explainer, graph, expected),
            "compile_cpu_s": round(compile_s, 1),
            "file_mb": round(len(graph) / 1e6, 1),
            "times_prediction": round(self._relative_time(graph), 2),
        }

    def _graph_in_openvino(
        self, explainer: Explainer, graph: bytes, expected: tuple[np.ndarray, np.ndarray]
    ) -> dict[str, dict[str, Any]]:
        """Return how closely the maps of a graph match torch in OpenVINO, and what is wrong there, by numbers."""
        if self._openvino is None:
            return {}
        found = {}
        for numbers in ["float32"] + ["bfloat16"] * self._openvino.has_bfloat16:
            try:
                opened = self._openvino.open(graph, {}, numbers=numbers)
                _, maps = opened.run(("logits", "map"), {"image": self._images, "target": self._targets})
            except RuntimeError as error:
                found[numbers] = {"wrong": str(error)}
                continue
            found[numbers] = _agreement(maps, expected[1])
        try:
            side = InOpenVINO(self._model, self._openvino)
            verify_graph(graph, side, explainer, self._images, self._targets)
        except (ExportError, RuntimeError) as error:
            found["float32"]["wrong"] = str(error)
        return found

    def _loop(self, explainer: Explainer) -> dict[str, Any]:
        assert isinstance(explainer, Loop)
        # As the pipeline does: a loop asks predictions, or sums of gradients with their signs.
        compiled, predictions = self._once(explainer.reads), self._once("logits")
        rows = explainer, self._images[:1], self._targets[:1]
        side = Remembering(self._model)
        found = verify_loop(compiled, side, *rows, predictions=predictions)
        row = {
            "runtime": "loop",
            "reads": explainer.reads,
            "passes": explainer.passes(self._shape),
            "pcc_mean": found.pcc_mean,
            "pcc_minimum": found.pcc_minimum,
            "max_difference": found.max_difference,
        }
        if self._openvino is None:
            return row
        there = InOpenVINO(self._model, self._openvino, known=side.known)
        try:
            again = verify_loop(compiled, there, *rows, predictions=predictions)
        except (ExportError, RuntimeError) as error:
            return row | {"openvino": {"float32": {"wrong": str(error)}}}
        same = {"pcc_minimum": again.pcc_minimum, "max_difference": again.max_difference}
        return row | {"openvino": {"float32": same}}

    def _once(self, reads: str) -> bytes:
        makers: dict[str, Callable[[], bytes]] = {
            "gradient": lambda: compile_gradient_sums(self._model, image_shape=self._shape, num_classes=CLASSES),
            "logits": lambda: self._prediction,
        }
        if reads not in self._asked:
            self._asked[reads] = makers[reads]()
        return self._asked[reads]

    def _compile(self, fitting: Sequence[Explainer]) -> dict[str, tuple[bytes, float] | ExportError]:
        """Return the graph of each explainer, and the CPU time of all of them, or of one alone where one fails."""
        shape: dict[str, Any] = {"image_shape": self._shape, "num_classes": CLASSES}
        start = time.process_time()
        try:
            _, graphs = compile_many(self._model, fitting, **shape)
        except ExportError:
            return {explainer.name: self._compile_one(explainer, shape) for explainer in fitting}
        elapsed_s = time.process_time() - start
        return {name: (graph, elapsed_s) for name, graph in graphs.items()}

    def _compile_one(self, explainer: Explainer, shape: dict[str, Any]) -> tuple[bytes, float] | ExportError:
        start = time.process_time()
        try:
            graph = compile_explainer(self._model, explainer, **shape)
        except ExportError as error:
            return error
        return graph, time.process_time() - start

    def _relative_time(self, graph: bytes) -> float:
        """Return the best time of the explainer over that of the prediction, measured in turns."""
        images = {"image": self._images}
        runs = [
            (_session(graph), images | {"target": self._targets}),
            (_session(self._prediction), images),
        ]
        best = [float("inf")] * len(runs)
        for _ in range(12):
            for index, (session, inputs) in enumerate(runs):
                start = time.process_time()
                session.run(None, inputs)
                best[index] = min(best[index], time.process_time() - start)
        return best[0] / best[1]


class Remembering(Side):
    """A network in torch that is asked once for the maps of the same rows: a loop costs hundreds of passes."""

    def __init__(self, module: nn.Module, known: dict[bytes, tuple[np.ndarray, np.ndarray]] | None = None) -> None:
        """Take the network, and what it answered to one explainer before."""
        super().__init__(module)
        object.__setattr__(self, "known", {} if known is None else known)

    def explained(self, explainer: Explainer, images: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits and maps of torch."""
        rows = images.tobytes() + targets.tobytes()
        if rows not in self.known:
            self.known[rows] = super().explained(explainer, images, targets)
        return self.known[rows]


class InOpenVINO(Remembering):
    """The same network, whose graphs are run in OpenVINO in float32."""

    def __init__(
        self,
        module: nn.Module,
        openvino: OpenVINO,
        known: dict[bytes, tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        """Take what opens graphs as well."""
        super().__init__(module, known)
        object.__setattr__(self, "openvino", openvino)

    def open(self, graph: bytes) -> "Session":
        """Open a graph."""
        outputs = [value.name for value in onnx.load_from_string(graph).graph.output]
        return Session(self.openvino.open(graph, {}, numbers="float32"), outputs)


class Session:
    """A graph in OpenVINO that is run as one in ONNX Runtime is."""

    def __init__(self, opened: Opened, outputs: Sequence[str]) -> None:
        """Take the graph, and its outputs in their order."""
        self._opened, self._outputs = opened, outputs

    def run(self, _all: None, rows: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return all outputs."""
        return self._opened.run(self._outputs, rows)


def _is_graph(found: object) -> bool:
    return isinstance(found, Explainer) and not isinstance(found, Loop)


def _agreement(maps: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """Return the smallest correlation of a map (batch, h, w), and the largest difference as a share of its largest."""
    peaks = np.maximum(expected.max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)
    return {
        "pcc_minimum": min(same_map(one, other) for one, other in zip(maps, expected, strict=True)),
        "max_difference": float((np.abs(maps - expected) / peaks).max()),
    }


def _network(architecture: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    model = models.create(architecture, num_classes=CLASSES, image_size=size)
    images = torch.from_numpy(_images(size))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            layer.weight.data.uniform_(0.7, 1.5)
            layer.bias.data.uniform_(-0.2, 0.4)
    # Statistics of real activations: with others, the answers of a deep network hardly depend on the image. Noisy
    # images are among them, because SmoothGrad's would leave the range of the others, and the gradients of
    # EfficientNet are then so steep that those of torch in float32 and in float64 correlate with .5.
    noisy = images + 0.15 * (images.max() - images.min()) * torch.randn(
        images.shape, generator=torch.Generator().manual_seed(2)
    )
    with torch.no_grad():
        model.train()(torch.cat([images, noisy]))
    # Every lock starts with this; without it no rule of LRP fits.
    return models.prepare(model.eval(), images)


def _images(size: int) -> np.ndarray:
    coarse = torch.randn(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=(size, size), mode="bilinear").numpy()


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
