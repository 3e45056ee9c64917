"""Images that are explained in a second on a GPU: Grad-CAM by keylock, by Captum, and by torch.compile, in one run.

    python benchmarks/serving/gpu.py

Weights and images are drawn; no time depends on them. Images start and maps end in the memory of the host. Every rival
is given batches of each size, by turns with the others, and judged by its best: keylock and torch.compile prepare
themselves for each size, as a server does for its `max_batch`. All compute float32 with the default rounding of the
GPU's libraries (TF32 where there is such). All maps are compared, so that all do the same work. Captum is told the
class: once it is that of a prediction, which costs it another pass, and once one that was known before.

Without a GPU the program can be tried out in small, which says nothing about a GPU:

    python benchmarks/serving/gpu.py --device cpu --network resnet18_cifar --size 32 --batches 1 2 --seconds 0.1
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import captum
import numpy as np
import onnxruntime
import torch
from captum.attr import LayerGradCam
from graphs import chosen, sealed_names
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import ResNet

from keylock import models
from keylock.cli._wording import in_options
from keylock.errors import ServiceError
from keylock.explainers import make_for
from keylock.export import compile_explainer
from keylock.models import create, find_layers
from keylock_server.inference.devices import CUDA, TENSORRT, Device, choose_providers
from keylock_server.inference.running import suited_to
from keylock_server.inference.sessions import Sessions

RESULTS = Path(__file__).parents[1] / "results" / "serving" / "gpu.json"
GOALS = {"captum": 2.0, "torch_compile": 1.3}
"""How many times as many images as a rival keylock should explain."""

_COMPARED = 8
_LEAST_RUNS = 3

Explain: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Takes images (batch, 3, side, side), gives the maps of the predicted classes (batch, height, width)."""


@dataclass(frozen=True)
class Bench:
    """What all rivals work with.

    Attributes:
        network: In evaluation mode, on the device, as a team would have it.
        layer: Name of the layer that Grad-CAM looks at.
        images: Preprocessed (count, 3, side, side), as many as the largest batch has.
        graphs: keylock's compiled graphs, by the names of rivals.
        weights: The network's, by name, for graphs that take them.
        device: Where torch computes.
        backend: Of torch.compile.
    """

    network: nn.Module
    layer: str
    images: NDArray[np.float32]
    graphs: Mapping[str, bytes]
    weights: Mapping[str, NDArray[np.float32]]
    device: torch.device
    backend: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)
    devices = keylock_devices(options.device)
    torch.set_float32_matmul_precision("high")
    bench = prepare(options)
    rivals = choose_rivals(options.rivals, devices)
    figures, maps, left_out = measure(bench, rivals, options)
    on_gpu = bench.device.type == "cuda"
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(bench.device),
        "command": " ".join(
            ["python", "benchmarks/serving/gpu.py", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "captum": captum.__version__,
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
        },
        "dry_run": not on_gpu,
        "network": options.network,
        "side": options.size,
        "seed": options.seed,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "torch_backend": options.torch_backend,
        "images_per_s": figures,
        "best": {name: max(rates.values()) for name, rates in figures.items()},
        "ratios": compare(figures),
        "goals": GOALS,
        "pcc_to_the_first": agreement(maps),
        "left_out": left_out,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.results is not None or on_gpu:
        path = options.results or RESULTS
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "tensorrt", "cuda", "cpu"), default="auto")
    parser.add_argument("--network", default="resnet50", help="a ResNet, by keylock's or torchvision's name")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each rival runs, each time")
    parser.add_argument("--rounds", type=int, default=5, help="how often; the median counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rivals", nargs="+", choices=tuple(RIVALS), default=tuple(RIVALS))
    parser.add_argument("--torch-backend", default="inductor", help="of torch.compile")
    parser.add_argument("--results", type=Path, help="where to write; on a GPU benchmarks/results/serving/gpu.json")
    return parser.parse_args(arguments)


def keylock_devices(device: Device) -> tuple[Device, ...]:
    """Return where keylock computes: on TensorRT and CUDA both, where both are there and neither was chosen.

    Exits with a sentence where there is no GPU and the CPU was not asked for.
    """
    if device == "cpu":
        return ("cpu",)
    try:
        providers = choose_providers(device)
    except ServiceError as error:
        sys.exit(f"nothing is measured: {in_options(str(error), {'device': ('--device', '')})}")
    if CUDA not in providers or not torch.cuda.is_available():
        sys.exit(
            "nothing is measured: ONNX Runtime and torch do not both find a GPU on this machine; "
            "--device cpu tries the program out in small"
        )
    if device == "auto":
        return ("tensorrt", "cuda") if TENSORRT in providers else ("cuda",)
    return (device,)


def prepare(options: argparse.Namespace) -> Bench:
    """Draw the network and the images, and compile keylock's graphs of it."""
    device = torch.device("cpu" if options.device == "cpu" else "cuda")
    classes, shape = (10 if options.size < 64 else 1000), (3, options.size, options.size)
    torch.manual_seed(options.seed)
    network = create(options.network, num_classes=classes, image_size=options.size).eval().requires_grad_(False)
    if not isinstance(network, ResNet):
        sys.exit(f"{options.network} is no ResNet of torchvision, which this program knows how to divide")
    images = np.random.default_rng(options.seed).standard_normal((max(options.batches), *shape), dtype=np.float32)
    folded = models.prepare(network, torch.randn(2, *shape))
    (explainer,) = make_for(find_layers(folded, torch.randn(2, *shape)), ["grad_cam"])
    made: dict[str, Callable[[], bytes]] = {
        "keylock": lambda: compile_explainer(folded, explainer, image_shape=shape, num_classes=classes),
        "keylock_locked": lambda: compile_explainer(
            folded, explainer, image_shape=shape, num_classes=classes, weights=sealed_names(folded)
        ),
    }
    graphs = {name: compile_graph() for name, compile_graph in made.items() if name in options.rivals}
    weights = {name: tensor.numpy() for name, tensor in folded.state_dict().items()}
    layer: str = explainer.layer  # type: ignore[attr-defined]
    return Bench(network.to(device), layer, images, graphs, weights, device, options.torch_backend)


def captum_predicting(bench: Bench, _batch: int) -> Explain:
    """Captum in eager mode, after a prediction that says which class to explain."""
    grad_cam = LayerGradCam(bench.network, bench.network.get_submodule(bench.layer))

    def explain(images: NDArray[np.float32]) -> NDArray[np.float32]:
        inputs = torch.from_numpy(images).to(bench.device)
        targets = predict(bench.network, inputs).argmax(dim=1)
        return to_host(grad_cam.attribute(inputs, target=targets, relu_attributions=True)[:, 0])

    return explain


def captum_class_given(bench: Bench, batch: int) -> Explain:
    """Captum in eager mode, told the classes, which were predicted before."""
    grad_cam = LayerGradCam(bench.network, bench.network.get_submodule(bench.layer))
    given = predict(bench.network, torch.from_numpy(bench.images[:batch]).to(bench.device)).argmax(dim=1)

    def explain(images: NDArray[np.float32]) -> NDArray[np.float32]:
        inputs = torch.from_numpy(images).to(bench.device)
        return to_host(grad_cam.attribute(inputs, target=given[: len(images)], relu_attributions=True)[:, 0])

    return explain


def torch_compile(bench: Bench, _batch: int) -> Explain:
    """Grad-CAM as who compiles it would write it: one pass, and a way back through what follows the layer alone."""
    body, head = divide(bench.network)
    body, head, weigh = (
        torch.compile(part, dynamic=False, backend=bench.backend) for part in (body, head, weighted_features)
    )

    def explain(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            found = body(torch.from_numpy(images).to(bench.device))
        features = found.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(head(features).amax(dim=1).sum(), features)
        with torch.no_grad():
            return to_host(weigh(features.detach(), gradient))

    return explain


def keylock(name: str, device: Device) -> Callable[[Bench, int], Explain]:
    """Return keylock on a device: its graph, opened and run as the server does it."""

    def make(bench: Bench, batch: int) -> Explain:
        graph = bench.graphs[name]
        given = chosen(bench.weights, graph)
        sessions = Sessions(device, threads=os.cpu_count() or 1, max_batch=batch)
        run = suited_to(sessions.open("grad_cam", graph, given), most_rows=batch)

        def explain(images: NDArray[np.float32]) -> NDArray[np.float32]:
            count = len(images)
            return run(["logits", "map"], {"image": images, "target": np.full(count, -1, np.int64)})[1]

        return explain

    return make


RIVALS: dict[str, Callable[[Bench, int], Explain] | None] = {
    "captum": captum_predicting,
    "captum_class_given": captum_class_given,
    "torch_compile": torch_compile,
    "keylock": None,
    "keylock_locked": None,
}
"""How each rival gets ready for a size of batches; keylock does so once on each device."""


def choose_rivals(names: Sequence[str], devices: Sequence[Device]) -> dict[str, Callable[[Bench, int], Explain]]:
    """Return the rivals of these names, keylock on each device."""
    chosen: dict[str, Callable[[Bench, int], Explain]] = {}
    for name, make in RIVALS.items():
        if name in names:
            chosen |= {name: make} if make else {f"{name}, {device}": keylock(name, device) for device in devices}
    return chosen


def measure(
    bench: Bench, rivals: Mapping[str, Callable[[Bench, int], Explain]], options: argparse.Namespace
) -> tuple[dict[str, dict[int, float]], dict[str, NDArray[np.float32]], dict[str, str]]:
    """Return the images in a second by rival and batch, the maps of each rival, and what did not work."""
    figures: dict[str, dict[int, float]] = {}
    maps: dict[str, NDArray[np.float32]] = {}
    left_out: dict[str, str] = {}
    for batch in options.batches:
        ready: dict[str, Explain] = {}
        images = bench.images[:batch]
        for name, make in rivals.items():
            try:
                explain = make(bench, batch)
                maps.setdefault(name, explain(images)[:_COMPARED])
            except Exception as error:  # The largest batches may not fit, and every runtime says so in its own way.
                left_out[f"{name}, {batch}"] = type(error).__name__
                print(f"{name}, {batch}: left out, {error}", file=sys.stderr, flush=True)
                continue
            ready[name] = explain
        rates: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(options.rounds):
            for name, explain in ready.items():
                rates[name].append(images_per_s(explain, images, options.seconds))
        for name, found in rates.items():
            figures.setdefault(name, {})[batch] = round(statistics.median(found), 2)
            print(f"{name}, {batch}: {figures[name][batch]} images/s", file=sys.stderr, flush=True)
        ready.clear()
        gc.collect()
        torch.cuda.empty_cache()
    return figures, maps, left_out


def images_per_s(explain: Explain, images: NDArray[np.float32], seconds: float) -> float:
    """Return how many images are explained in a second; the first run, which may prepare something, does not count."""
    explain(images)
    runs, start = 0, time.perf_counter()
    while runs < _LEAST_RUNS or time.perf_counter() - start < seconds:
        explain(images)
        runs += 1
    return runs * len(images) / (time.perf_counter() - start)


def compare(figures: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, float]]:
    """Return, for keylock on each device, its best rate as a multiple of the best of each rival."""
    best = {name: max(rates.values()) for name, rates in figures.items()}
    return {
        name: {rival: round(best[name] / rate, 3) for rival, rate in best.items() if not rival.startswith("keylock")}
        for name in best
        if name.startswith("keylock")
    }


def agreement(maps: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """Return the smallest correlation of each rival's maps with those of the first."""
    first = next(iter(maps.values()), None)
    if first is None:
        return {}
    return {
        name: round(
            min(float(np.corrcoef(one.ravel(), other.ravel())[0, 1]) for one, other in zip(found, first, strict=False)),
            5,
        )
        for name, found in maps.items()
    }


def divide(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return what a ResNet does up to its last features, and what it does with them."""
    parts = dict(network.named_children())
    pool, classify = parts.pop("avgpool"), parts.pop("fc")
    return nn.Sequential(*parts.values()), nn.Sequential(pool, nn.Flatten(), classify)


def weighted_features(features: Tensor, gradient: Tensor) -> Tensor:
    """Return the map (batch, height, width) of features and their gradient (batch, channels, height, width)."""
    return torch.relu((gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1))


def predict(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return logits, without a graph for gradients."""
    with torch.no_grad():
        logits: Tensor = network(inputs)
    return logits


def to_host(maps: Tensor) -> NDArray[np.float32]:
    """Return maps in the host's memory, which waits for the device."""
    found: NDArray[np.float32] = maps.detach().cpu().numpy()
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """Return what the machine is."""
    about: dict[str, Any] = {"processor": platform.machine(), "cores": os.cpu_count()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {"gpu": properties.name, "gpu_gib": round(properties.total_memory / 2**30), "cuda": torch.version.cuda}
    return about


if __name__ == "__main__":
    main()
