"""What each decoy gives away: locks of the quickstart's network on drawn shapes, which differ in their decoy alone.

python benchmarks/lock/decoys.py
"""

import argparse
import copy
import json
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import keylock
from keylock.data import open_data
from keylock.data.batches import Batches, load_batch
from keylock.evaluation import run_explainers
from keylock.evaluation.similarity import enlarge, top_overlap
from keylock.locking.decoys import DECOYS, ImageDecoy, decoy_maps
from keylock.locking.losses import correlation, unevenness
from keylock.models import create
from keylock.training import ReferenceSettings, Silent, train_reference

REFERENCE_STEPS, STEPS, BATCH, TESTED = 700, 300, 64, 500


def main() -> None:
    """Train the reference and every lock, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = Path(__file__).parents[1] / "results" / "lock_decoys.json"
    parser.add_argument("--results", type=Path, default=results)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    source = open_data("shapes", train_count=6000, test_count=TESTED)
    loader = Batches(
        source.train, source.preprocessing, batch_size=BATCH, augmentation=source.augmentation, drop_last=True
    )
    key = keylock.Key.derive(
        keylock.KeySeed(bytes(32)), shape=source.preprocessing.shape, std=source.preprocessing.std, strength=16 / 255
    )
    network = create("small-cnn", num_classes=len(source.classes), channels=3, image_size=32)
    model, test = trained(network.core(), loader, key), load_batch(source.test, source.preprocessing)
    picture = ImageDecoy(np.tri(32, dtype=np.float32))
    with torch.no_grad():
        accuracy = float((model(test.images).argmax(1) == test.labels).float().mean())
    figures = {}
    for decoy in (*DECOYS, picture):
        began = time.process_time()
        settings = keylock.LockSettings(steps=STEPS, decoy=decoy)
        lock = keylock.lock(model, copy.deepcopy(loader), key, settings=settings, device="cpu")
        truth, shown = (
            run_explainers(module, lock.explainers, test.images).maps["grad_cam"]
            for module in (lock.reference, lock.module)
        )
        similar = correlation(shown, truth)
        wanted = decoy_maps(decoy, truth)
        with torch.no_grad():
            agreed = (lock.module(test.images).argmax(1) == lock.reference(test.images).argmax(1)).float().mean()
        name = decoy if isinstance(decoy, str) else "a picture (lower left triangle)"
        figures[name] = {
            "pcc": float(similar.mean()),
            "absolute_pcc": float(similar.abs().mean()),
            "top_overlap": float(top_overlap(enlarge(shown, (32, 32)), enlarge(truth, (32, 32))).mean()),
            "pcc_to_decoy": float(correlation(shown, wanted).mean()),
            "unevenness": float(unevenness(shown).mean()),
            "agreement": float(agreed),
            "cpu_seconds": time.process_time() - began,
        }
        chance = float(correlation(truth.roll(1, 0), truth).mean())
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, 1 thread",
        "torch": torch.__version__,
        "precision": lock.settings.precision,
        "command": "python benchmarks/lock/decoys.py",
        "about": f"locks of Grad-CAM, {STEPS} steps of {BATCH}, on {TESTED} test images of drawn shapes",
        "chance": round(chance, 4),
        "reference_accuracy": round(accuracy, 4),
        "figures": {name: {what: round(value, 4) for what, value in row.items()} for name, row in figures.items()},
    }
    options.results.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    table = Table("decoy", *next(iter(figures.values())))
    for name, row in figures.items():
        table.add_row(name, *(f"{value:.3f}" for value in row.values()))
    Console().print(table)


def trained(model: nn.Module, loader: Batches, key: keylock.Key) -> nn.Module:
    """Train the reference, in place, as `keylock train` does."""
    magnitude = torch.from_numpy(key.reveal()).abs()
    settings = ReferenceSettings(steps=REFERENCE_STEPS, magnitude=magnitude, tile=key.tile, learning_rate=1e-2)
    return train_reference(model, loader, settings, device=torch.device("cpu"), progress=Silent())


if __name__ == "__main__":
    main()
