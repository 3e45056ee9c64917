"""What compiled explanations cost, as multiples of the prediction alone: plain graphs, int8, and those of a lock.

    python benchmarks/serving/graphs.py

Networks have random weights; no time depends on their values. Every graph of a network runs by turns with the others
in one process, on one thread, timed by the CPU time of that process, so that other work on the machine weighs on all
alike. A round takes the best of several runs of each graph; shown is the median over the rounds of the ratio to the
prediction.
"""

import argparse
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from processor import describe_processor
from torch import nn

from keylock.explainers import make_for
from keylock.export import compile_explainer, compile_prediction, make_variant, suits
from keylock.graphs.binding import bind, inputs_of
from keylock.imaging.contrast import same_map
from keylock.models import arrays_of, create, find_layers, prepare
from keylock.models.deltas import adapted_layers
from keylock_server.inference.openvino_graphs import OpenVINO, is_installed
from keylock_server.inference.running import Opened

NETWORKS = ("resnet18_cifar:32", "resnet18:224", "mobilenet_v2:224")
EXPLAINERS = ("grad_cam", "gradient")
ROUNDS = 5


def main() -> None:
    """Compile, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="as ARCHITECTURE:SIZE")
    parser.add_argument("--locked", default=NETWORKS[0], help="networks to measure locks of as well, by commas")
    parser.add_argument("--batches", default="1,8", help="sizes of batches")
    results = Path(__file__).parents[1] / "results" / "serving" / "graphs.json"
    parser.add_argument("--results", type=Path, default=results)
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = round(os.getloadavg()[0], 1)
    figures: dict[str, Any] = {}
    for entry in options.networks:
        architecture, _, size = entry.partition(":")
        graphs = compile_all(architecture, int(size), locked=entry in options.locked.split(","))
        figures[entry] = {
            "nodes": {name: count_nodes(graph) for name, graph in graphs.items()},
            "batches": {batch: measure(graphs, int(batch)) for batch in options.batches.split(",")},
        }
        print(entry, json.dumps(figures[entry]["batches"]), flush=True)
        result = {
            "date": datetime.now(UTC).date().isoformat(),
            "hardware": f"{describe_processor()}, one thread",
            "load_average": [load, round(os.getloadavg()[0], 1)],
            "onnxruntime": onnxruntime.__version__,
            "torch": torch.__version__,
            "command": "python benchmarks/serving/graphs.py",
            "figures": figures,
        }
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compile_all(architecture: str, size: int, *, locked: bool) -> dict[str, bytes]:
    """Return the graphs of a network by name; `prediction` is what the others are compared with."""
    torch.manual_seed(0)
    classes, shape = (10, (3, size, size)) if size < 64 else (1000, (3, size, size))
    model = prepare(create(architecture, num_classes=classes), torch.randn(2, *shape))
    layers = find_layers(model, torch.randn(2, *shape))
    noise = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
    options: dict[str, Any] = {"image_shape": shape, "num_classes": classes}
    weights = arrays_of(model)
    graphs = {"prediction": compile_prediction(model, **options)}
    graphs["prediction, int8"] = make_variant("int8", graphs["prediction"], noise, weights=weights)
    for explainer in make_for(layers, EXPLAINERS):
        name = explainer.name
        made = {name: compile_explainer(model, explainer, **options)}
        if locked:
            sealed = compile_explainer(model, explainer, weights=sealed_names(model), **options)
            made[f"{name}, locked"] = sealed
        for label, graph in made.items():
            graphs[label] = bind(graph, chosen(weights, graph))
            if suits("int8", explainer):
                smaller = make_variant("int8", graph, noise, weights=weights)
                graphs[f"{label}, int8"] = bind(smaller, chosen(weights, smaller))
    return graphs


def chosen(weights: Mapping[str, np.ndarray], graph: bytes) -> dict[str, np.ndarray]:
    """Return the weights that a graph takes."""
    return {name: weights[name] for name in inputs_of(graph) if name in weights}


def sealed_names(model: nn.Module) -> list[str]:
    """Return the names of the weights that a lock of a network seals."""
    names = [f"{layer}.{entry}" for layer in adapted_layers(model) for entry in ("weight", "bias")]
    return [name for name in names if name in model.state_dict()]


def count_nodes(graph: bytes) -> dict[str, int]:
    """Return how many operations of each kind a graph has."""
    return dict(Counter(node.op_type for node in onnx.load_from_string(graph).graph.node).most_common())


def measure(graphs: dict[str, bytes], batch: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds of an image in each graph, their ratio to those of the prediction, and how right it is.

    Where OpenVINO is installed, graphs are run there too, and compared with the same graph in ONNX Runtime.
    """
    runs, found = {}, {}
    for name, graph in graphs.items():
        session = open_session(graph)
        inputs = feed(session, batch)
        runs[name] = partial(session.run, None, inputs)
        for numbers, opened in in_openvino(graph, name).items():
            label = f"{name}, OpenVINO {numbers}"
            runs[label] = partial(opened.run, [output.name for output in session.get_outputs()], inputs)
            found[label] = agreement(runs[name](), runs[label]())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    repeats = max(2, min(20, int(0.1 / run_s(runs["prediction"]))))
    for _ in range(ROUNDS):
        best = dict.fromkeys(runs, float("inf"))
        for _ in range(repeats):
            for name, run in runs.items():
                best[name] = min(best[name], run_s(run))
        for name, took in best.items():
            times[name].append(took)
    return {
        name: {
            "ms_per_image": round(1000 * min(took) / batch, 3),
            "ratio": round(statistics.median(a / b for a, b in zip(took, times["prediction"], strict=True)), 3),
        }
        | ({"pcc": round(found[name], 5)} if name in found else {})
        for name, took in times.items()
    }


def run_s(run: Callable[[], object]) -> float:
    """Return the CPU seconds of one run."""
    start = time.process_time()
    run()
    return time.process_time() - start


def in_openvino(graph: bytes, name: str) -> dict[str, Opened]:
    """Open a graph in OpenVINO on one thread, by the numbers it computes in; nothing where it is not installed."""
    if not is_installed():
        return {}
    openvino = OpenVINO(threads=1, runs=1)
    wanted = ["int8"] if "int8" in name else ["float32"] + ["bfloat16"] * openvino.has_bfloat16
    return {numbers: openvino.open(graph, {}, numbers=numbers) for numbers in wanted}


def agreement(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Return the lowest correlation of answers (rows, ...), row by row."""
    return min(
        same_map(one, other) for pair in zip(expected, found, strict=True) for one, other in zip(*pair, strict=True)
    )


def open_session(graph: bytes) -> onnxruntime.InferenceSession:
    """Open a graph on one thread of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def feed(session: onnxruntime.InferenceSession, batch: int) -> dict[str, np.ndarray]:
    """Return inputs: noise as images, predicted classes."""
    generator, inputs = np.random.default_rng(0), {}
    for entry in session.get_inputs():
        shape = [size if isinstance(size, int) else batch for size in entry.shape]
        inputs[entry.name] = np.zeros(shape, np.float32)
        if entry.name == "image":
            inputs["image"] = generator.standard_normal(shape, dtype=np.float32)
        if entry.name == "target":
            inputs["target"] = np.full(shape, -1, np.int64)
    return inputs


if __name__ == "__main__":
    main()
