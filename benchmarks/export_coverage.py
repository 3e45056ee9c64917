"""Which networks and explainers compile, how closely they match torch, and what a map costs beside a prediction.

    python benchmarks/export_coverage.py                           every network of the list, into benchmarks/results
    python benchmarks/export_coverage.py resnet20:32 vit_tiny:32   these alone, in place of what was known of them

Networks have random weights. Maps of a graph are compared on a batch, those of a loop on one image, because a loop runs
the network hundreds of times. Times are CPU times on one thread, which a busy machine changes less than the clock's.
`python benchmarks/render_coverage.py` writes the table into the documentation.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
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
    compile_prediction,
    verify_graph,
    verify_loop,
)
from keylock.iterative import Loop

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
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = json.loads(options.results.read_text("utf-8"))["figures"] if options.results.is_file() else {}
    for entry in options.networks:
        architecture, _, size = entry.partition(":")
        figures[entry] = {}
        for name, found in Coverage(architecture, int(size)).rows():
            figures[entry][name] = found
            print(entry, name, json.dumps(found), flush=True)
            result = {
                "date": datetime.now(UTC).date().isoformat(),
                "onnxruntime": onnxruntime.__version__,
                "torch": torch.__version__,
                "command": "python benchmarks/export_coverage.py",
                "figures": {known: figures[known] for known in sorted(figures)},
            }
            options.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


class Coverage:
    """One network with all explainers that fit it."""

    def __init__(self, architecture: str, size: int) -> None:
        """Build the network and compile its prediction."""
        self._model = _network(architecture, size)
        self._images, self._shape = _images(size), (3, size, size)
        self._targets = np.arange(BATCH, dtype=np.int64) % CLASSES
        self._prediction = compile_prediction(self._model, image_shape=self._shape, num_classes=CLASSES)
        self._asked: dict[str, bytes] = {}

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield what was found of each explainer: how it runs, and where it does not compile, why."""
        layers = models.find_layers(self._model, torch.from_numpy(self._images[:2]))
        for name in explainers.EXPLAINERS:
            try:
                (explainer,) = explainers.make_for(layers, [name])
                found = self._loop(explainer) if isinstance(explainer, Loop) else self._graph(explainer)
            except ExportError as error:
                found = {"runtime": "torch", "why": error.message}
            except KeylockError as error:
                found = {"runtime": "none", "why": error.message}
            yield name, found

    def _graph(self, explainer: Explainer) -> dict[str, Any]:
        start = time.process_time()
        graph = self._compile(explainer)
        elapsed_s = time.process_time() - start
        found = verify_graph(graph, Side(self._model), explainer, self._images, self._targets)
        return {
            "runtime": "compiled",
            "pcc_mean": found.pcc_mean,
            "pcc_minimum": found.pcc_minimum,
            "max_difference": found.max_difference,
            "compile_cpu_s": round(elapsed_s, 1),
            "file_mb": round(len(graph) / 1e6, 1),
            "times_prediction": round(self._relative_time(graph), 2),
        }

    def _loop(self, explainer: Explainer) -> dict[str, Any]:
        assert isinstance(explainer, Loop)
        # As the pipeline does: a loop asks predictions, or sums of gradients with their signs.
        compiled, predictions = self._once(explainer.reads), self._once("logits")
        found = verify_loop(
            compiled, Side(self._model), explainer, self._images[:1], self._targets[:1], predictions=predictions
        )
        return {
            "runtime": "loop",
            "reads": explainer.reads,
            "passes": explainer.passes(self._shape),
            "pcc_mean": found.pcc_mean,
            "pcc_minimum": found.pcc_minimum,
            "max_difference": found.max_difference,
        }

    def _once(self, reads: str) -> bytes:
        makers: dict[str, Callable[[], bytes]] = {
            "gradient": lambda: compile_gradient_sums(self._model, image_shape=self._shape, num_classes=CLASSES),
            "logits": lambda: self._prediction,
        }
        if reads not in self._asked:
            self._asked[reads] = makers[reads]()
        return self._asked[reads]

    def _compile(self, explainer: Explainer) -> bytes:
        return compile_explainer(self._model, explainer, image_shape=self._shape, num_classes=CLASSES)

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


def _network(architecture: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    model = models.create(architecture, num_classes=CLASSES, image_size=size)
    images = torch.from_numpy(_images(size))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            layer.weight.data.uniform_(0.7, 1.5)
            layer.bias.data.uniform_(-0.2, 0.4)
    # Statistics of real activations: with others, the answers of a deep network hardly depend on the image.
    with torch.no_grad():
        model.train()(images)
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
