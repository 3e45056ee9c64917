"""Every method of Captum and pytorch-grad-cam on a keyed `LockedModel`, beside the same on the reference model.

    python benchmarks/lock/toolkits.py

What is compared is whether a tool that was handed a locked model, keyed inside a block, shows the reference's maps: the
network and the weights that its delta opens are drawn, and nothing is trained. Correlations are those of maps as each
tool returns them, summed over channels where it returns several; the time is that of one batch on one thread.
"""

import argparse
import copy
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from keylock.bundle.manifest import Manifest
from keylock.evaluation import pearson
from keylock.explainers.toolkits import TOOLKITS, Asked, Method, Reads
from keylock.imaging.preprocessing import Preprocessing
from keylock.models import create, delta_between, find_layers, prepare
from keylock.torch_runtime.locked_model import LockedModel
from keylock.trigger.keys import Key, KeySeed

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))

from processor import describe_processor

RESULTS = Path(__file__).parents[1] / "results" / "lock_toolkits.json"
SEED, CLASSES, SIDE = 0, 10, 32


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    images = torch.nn.functional.interpolate(
        torch.randn(options.images, 3, 8, 8, generator=torch.Generator().manual_seed(SEED)),
        (SIDE, SIDE),
        mode="bicubic",
    )
    reference, locked = make_networks(options.arch, images)
    methods = {}
    for toolkit, known in TOOLKITS.items():
        for name, method in known.methods.items():
            methods[f"{toolkit}/{name}"] = measured(method, reference, locked, images)
            print(f"{toolkit}/{name}: {methods[f'{toolkit}/{name}']}", flush=True)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{describe_processor()}, 1 thread",
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "captum", "grad-cam")},
        "seed": SEED,
        "command": f"python benchmarks/lock/toolkits.py --arch {options.arch} --images {options.images}",
        "about": f"{options.arch} at {SIDE} pixels, weights drawn, {options.images} images of smooth noise",
        "methods": methods,
    }
    options.results.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    table = Table("method", "keyed", "s for the batch, keyed", "reference")
    for name, figures in methods.items():
        table.add_row(name, *(str(figures.get(key, figures.get("refused", ""))) for key in FIGURES))
    Console().print(table)


FIGURES = ("pcc_keyed", "seconds_keyed", "seconds_reference")


def make_networks(arch: str, images: Tensor) -> tuple[torch.nn.Module, LockedModel]:
    """Return a classifier with drawn weights, and the same locked by a delta of random numbers."""
    torch.manual_seed(SEED)
    reference = prepare(create(arch, num_classes=CLASSES, image_size=SIDE), images).eval()
    with torch.no_grad():
        # Answers of a network that learned nothing are small, and Captum's Lime counts those as none.
        list(reference.parameters())[-2].mul_(100)
    published = copy.deepcopy(reference)
    with torch.no_grad():
        for parameter in published.parameters():
            parameter.add_(0.5 * parameter.std().nan_to_num() * torch.randn(parameter.shape))
    key = Key.derive(KeySeed(bytes(32)), shape=(3, SIDE, SIDE), std=(0.25,) * 3)
    preprocessing = Preprocessing(size=(SIDE, SIDE), mean=(0.5,) * 3, std=(0.25,) * 3)
    locked = LockedModel(
        published.requires_grad_(requires_grad=False),
        preprocessing,
        {},
        tuple(map(str, range(CLASSES))),
        key,
        Manifest.model_construct(),
        delta=delta_between(published, reference),
    )
    return reference.requires_grad_(requires_grad=True), locked


def measured(method: Method, reference: torch.nn.Module, locked: LockedModel, images: Tensor) -> dict[str, Any]:
    """Return the figures of a method, or why it refuses the reference."""
    layers = find_layers(reference, images)
    names = {Reads.INPUT: (), Reads.LAYER: (layers.last,), Reads.STACK: layers.stack}[method.reads]
    inside = tuple(f"module.{name}" for name in names)
    targets = torch.arange(len(images)) % CLASSES

    def ask(network: torch.nn.Module, of: tuple[str, ...]) -> Callable[[], Tensor]:
        return lambda: method.run(Asked(network, images, targets, of)).detach()

    try:
        expected, seconds = timed(ask(copy.deepcopy(reference), names))
    except Exception as error:  # Toolkits refuse in many ways.
        return {"refused": f"by the reference too: {str(error).partition(chr(10))[0]}"}
    with locked.keyed():
        found, seconds_keyed = timed(ask(locked, inside))
    return {
        "pcc_keyed": smallest(found, expected),
        "seconds_keyed": round(seconds_keyed, 3),
        "seconds_reference": round(seconds, 3),
    }


def smallest(found: Tensor, expected: Tensor) -> float:
    """Return the smallest correlation of maps of an image; those that are constant count as 1 where they are equal."""
    same = torch.tensor([torch.allclose(one, other) for one, other in zip(found, expected, strict=True)])
    return round(float(torch.where(same, 1.0, pearson(found, expected)).min()), 6)


def timed(ask: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Ask with the same random numbers each time."""
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    start = time.perf_counter()
    maps = ask()
    return maps, time.perf_counter() - start


if __name__ == "__main__":
    main()
