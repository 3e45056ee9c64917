"""What is left of a lock in reduced precision: fidelity and leakage of its graphs in int8 and float16.

    python benchmarks/lock/variants.py runs/cifar10 --data cifar10.npz

Variants are made of the graphs of a bundle, with the ranges of 64 test images, and judged on the other images as
`keylock train --variants` does it. The results go to `benchmarks/results/lock_variants.json`.
"""

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from keylock.bundle import WEIGHTS_FILE, Bundle, KeyFile, open_bundle
from keylock.data import open_data
from keylock.data.batches import load_batch
from keylock.data.sets import stratified_order
from keylock.explainers import make
from keylock.export import VARIANTS, Side, compare_variant, make_variant, suits
from keylock.models import arrays_of, merged
from keylock.torch_runtime.locked_model import module_of

RANGING = 64


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--key-file", type=Path, help="what opens the sealed key. [BUNDLE.key]")
    parser.add_argument("--images", type=int, default=1064)
    results = Path(__file__).parents[1] / "results" / "lock_variants.json"
    parser.add_argument("--results", type=Path, default=results)
    options = parser.parse_args()
    torch.set_num_threads(1)
    test = open_data(options.data).test
    with open_bundle(options.bundle, trusted=None) as bundle:
        rows = stratified_order(test.labels, seed=0)[: options.images]
        images = load_batch(test, bundle.manifest.preprocessing, indices=rows).images.numpy()
        key_file = options.key_file or options.bundle.with_name(options.bundle.name + ".key")
        figures = measure(bundle, sides_of(bundle, key_file), images)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "onnxruntime": onnxruntime.__version__,
        "about": f"the locked {bundle.manifest.architecture.name}, {len(images) - RANGING} test images",
        "command": "python benchmarks/lock/variants.py runs/cifar10 --data cifar10.npz",
        "figures": figures,
    }
    options.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def sides_of(bundle: Bundle, key_file: Path) -> tuple[Side, Side]:
    """Return what answers rows with the trigger, and what answers those without."""
    seed = bundle.unseal(KeyFile(key_file))
    module = module_of(bundle.manifest, bundle.read(WEIGHTS_FILE))
    delta = bundle.delta(seed)
    if delta is None:
        return Side(module, offset=bundle.key(seed).reveal()), Side(module)
    return Side(merged(module, delta)), Side(module)


def measure(bundle: Bundle, sides: tuple[Side, Side], images: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return what was measured of each variant of each graph, and what keeps it from being offered."""
    manifest = bundle.manifest
    graphs = [("predictions", manifest.prediction_graph, tuple(VARIANTS))]
    for entry in manifest.explainers:
        if entry.runtime == "onnx" and entry.graph is not None:
            explainer = make(entry.name, **entry.parameters)
            graphs.append((entry.name, entry.graph, tuple(name for name in VARIANTS if suits(name, explainer))))
    figures: dict[str, dict[str, Any]] = {}
    for name, file, variants in graphs:
        graph = bundle.read(file)
        for variant in variants:
            smaller = make_variant(variant, graph, images[:RANGING], weights=arrays_of(sides[1].module))
            found = compare_variant(smaller, graph, images[RANGING:], sides=sides)
            figures.setdefault(name, {})[variant] = {
                **asdict(found),
                "share_of_file": len(smaller) / len(graph),
                "shortfall": found.shortfall,
            }
            print(name, variant, json.dumps(figures[name][variant]), flush=True)
    return figures


if __name__ == "__main__":
    main()
