"""Which networks and explainers compile, how closely they match torch, and what a map costs beside a prediction.

Prints one Markdown row for each pair, on random weights and one thread. Times are CPU times, which a busy machine
changes less than the clock's.

    python benchmarks/export_coverage.py resnet20:32 resnet18:64 mobilenet_v2:64
"""

import sys
import time

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.nn import functional as F

from keylock import explainers, models
from keylock.errors import KeylockError
from keylock.export import compile_explainer, compile_prediction, verify_graph

CLASSES = 10
BATCH = 8
DEFAULT = (
    "small-cnn:32",
    "resnet20:32",
    "resnet18:64",
    "mobilenet_v2:64",
    "squeezenet1_1:64",
    "vgg11_bn:32",
)


def main() -> None:
    """Compile, verify and time every explainer of the networks named as `architecture:size`."""
    torch.set_num_threads(1)
    print("| network | explainer | compiled in CPU s | file MB | mean PCC | smallest PCC | time / prediction |")
    print("|---|---|---|---|---|---|---|")
    for entry in sys.argv[1:] or DEFAULT:
        architecture, _, size = entry.partition(":")
        for row in _rows(architecture, int(size)):
            print(f"| {architecture}, {size} px | " + " | ".join(row) + " |", flush=True)


def _rows(architecture: str, size: int) -> list[list[str]]:
    model = _network(architecture)
    images = _images(size)
    targets = np.arange(BATCH) % CLASSES
    shape = (3, size, size)
    prediction = compile_prediction(model, image_shape=shape)
    rows = []
    layers = models.find_layers(model, torch.from_numpy(images[:2]))
    for explainer in explainers.make_for(layers, explainers.EXPLAINERS):
        start = time.process_time()
        try:
            graph = compile_explainer(model, explainer, image_shape=shape, num_classes=CLASSES)
            elapsed_s = time.process_time() - start
            found = verify_graph(graph, model, explainer, images, targets)
        except KeylockError as error:
            rows.append([explainer.name, f"no: {error.message}", "", "", "", ""])
            continue
        ratio = _relative_time(graph, prediction, images, targets)
        figures = [f"{elapsed_s:.1f}", f"{len(graph) / 1e6:.1f}", f"{found.pcc_mean:.5f}", f"{found.pcc_minimum:.5f}"]
        rows.append([explainer.name, *figures, f"{ratio:.2f}"])
    return rows


def _network(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    model = models.create(architecture, num_classes=CLASSES)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.3, 0.3)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.7, 1.5)
            layer.bias.data.uniform_(-0.2, 0.4)
    return model.eval()


def _images(size: int) -> np.ndarray:
    coarse = torch.randn(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=(size, size), mode="bilinear").numpy()


def _relative_time(graph: bytes, prediction: bytes, images: np.ndarray, targets: np.ndarray) -> float:
    """The best time of the explainer over that of the prediction, measured in turns."""
    runs = [(_session(graph), {"image": images, "target": targets}), (_session(prediction), {"image": images})]
    best = [float("inf")] * len(runs)
    for _ in range(40):
        for index, (session, inputs) in enumerate(runs):
            start = time.process_time()
            session.run(None, inputs)
            best[index] = min(best[index], time.process_time() - start)
    return best[0] / best[1]


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
