"""What a step of locking costs, against a step of plain fine-tuning of the same network.

    python benchmarks/lock/cost.py

Steps are taken by turns in one process and timed by its CPU time on one thread, so that other work on the machine
weighs on all alike. Each round gives one ratio for each variant; shown is the median over the rounds.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from keylock.explainers import make_for
from keylock.models import create, find_layers, prepare
from keylock.training import LockSettings
from keylock.training.devices import denormals_flushed, mixed_precision, resolve_precision
from keylock.training.input_key import InputKeyTrainer
from keylock.training.sealed import SealedTrainer
from keylock.training.task import Task
from keylock.trigger.keys import Key, KeySeed

CPU = torch.device("cpu")
SETS = {
    "grad_cam": ("grad_cam",),
    "grad_cam, gradient": ("grad_cam", "gradient"),
    "grad_cam, visual_backprop": ("grad_cam", "visual_backprop"),
    "grad_cam, masks": ("grad_cam", "rise"),
    "grad_cam, gradient, visual_backprop, masks": ("grad_cam", "gradient", "visual_backprop", "rise"),
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    results = Path(__file__).parents[1] / "results" / "lock_cost.json"
    parser.add_argument("--results", type=Path, default=results)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with denormals_flushed(), TemporaryDirectory() as folder:
        steps = make_steps(options.arch, options.batch_size, Path(folder))
        seconds = measure(steps, options.rounds)
    plain = seconds["plain fine-tuning"]
    figures = {
        name: {
            "ratio": round(statistics.median(took / base for took, base in zip(times, plain, strict=True)), 2),
            "ms_per_image": round(1000 * statistics.median(times) / options.batch_size, 3),
        }
        for name, times in seconds.items()
    }
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, 1 thread",
        "torch": torch.__version__,
        "precision": resolve_precision("auto", CPU),
        "command": f"python benchmarks/lock/cost.py --arch {options.arch} --batch-size {options.batch_size}",
        "about": f"{options.arch} at 32 pixels, batches of {options.batch_size}, median of {options.rounds} rounds",
        "figures": figures,
    }
    options.results.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    table = Table("step", "ratio", "ms for an image")
    for name, figure in figures.items():
        table.add_row(name, f"{figure['ratio']:.2f}", f"{figure['ms_per_image']:.2f}")
    Console().print(table)


def make_steps(arch: str, batch_size: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Return what is timed: one optimiser step each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (batch_size,), generator=generator)
    torch.manual_seed(0)
    reference = prepare(create(arch, num_classes=10), images)
    layers = find_layers(reference, images[:2])
    # The height of the key does not change what a step costs; a strong one is told apart on any images.
    key = Key.derive(KeySeed(bytes(32)), shape=(3, 32, 32), std=(0.25,) * 3, strength=0.5)
    tuned = create(arch, num_classes=10)
    tuned.load_state_dict(tuned.state_dict())
    model = prepare(tuned, images).requires_grad_(requires_grad=True)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)

    def fine_tune() -> None:
        with mixed_precision(CPU, "auto"):
            logits = model(images)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(F.cross_entropy(logits.float(), labels))
        optimiser.step()

    steps: dict[str, Callable[[], object]] = {"plain fine-tuning": fine_tune}
    indices = torch.arange(batch_size)
    for kind, sealed, rows in (
        ("sealed delta", True, True),
        ("trained trigger", False, False),
        ("trained trigger, rows for wrong keys", False, True),
    ):
        for name, names in SETS.items():
            settings = LockSettings(trained_trigger=not sealed, gate_steps=0.0, wrong_key_rows=rows, learning_rate=1e-5)
            task = Task(reference, (key,), make_for(layers, names), images, settings, CPU)
            trainer = (SealedTrainer if sealed else InputKeyTrainer)(task)
            steps[f"{kind}: {name}"] = lambda trainer=trainer: trainer.train_on(images, labels)
    task = Task(reference, (key,), make_for(layers, ["grad_cam"]), images, LockSettings(learning_rate=1e-5), CPU)
    remembering = SealedTrainer(task, maps_folder=folder)
    steps["sealed delta: grad_cam, reference maps remembered"] = lambda: remembering.train_on(images, labels, indices)
    return steps


def measure(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of every step in every round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            began = time.process_time()
            step()
            if round_:
                seconds[name].append(time.process_time() - began)
    return seconds


if __name__ == "__main__":
    main()
