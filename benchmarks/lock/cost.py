"""What a step of locking costs, against a step of plain fine-tuning of the same network.

    python benchmarks/lock/cost.py
    python benchmarks/lock/cost.py --arch resnet18 --image-size 64 --batch-size 16 --steps default
    python benchmarks/lock/cost.py --arch resnet18 --image-size 224 --batch-size 16 --steps default

With `--steps default` a lock step is what the defaults of `keylock train` are, Grad-CAM on a sealed delta; beside it is
the same without cuts of singular directions, and fine-tuning with what is quicker than torch's defaults: images with
their channels last, and Adam in one pass. Weights are initial ones, and images are noise: neither changes what a step
costs.

Steps are taken by turns in one process and timed by its CPU time on one thread, so that other work on the machine
weighs on all alike. Each round gives one ratio for each variant; shown is the median over the rounds.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from keylock.explainers import make_for
from keylock.models import create, find_layers, prepare
from keylock.training import LockSettings
from keylock.training.devices import denormals_flushed, mixed_precision, resolve_precision
from keylock.training.input_key import InputKeyTrainer
from keylock.training.sealed import SealedTrainer
from keylock.training.softplus import quick_softplus
from keylock.training.task import Task
from keylock.trigger.keys import Key, KeySeed

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))

from processor import describe_processor

CPU = torch.device("cpu")
CLASSES, SEED = 10, 0
PLAIN = "plain fine-tuning"
AIM = 1.8
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
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", choices=("all", "default"), default="all", help="what is timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, help="where to write; by default a file of the network's and size's")
    options = parser.parse_args()
    arch, size, rows = options.arch, options.image_size, options.batch_size
    torch.set_num_threads(1)
    with denormals_flushed(), quick_softplus(), TemporaryDirectory() as folder:
        task = make_task(arch, size, rows)
        steps = {
            **plain_steps(task),
            **(all_steps(task, Path(folder)) if options.steps == "all" else default_steps(task)),
        }
        seconds = measure(steps, options.rounds)
    plain = seconds[PLAIN]
    figures = {
        name: {
            "ratio": round(statistics.median(took / base for took, base in zip(times, plain, strict=True)), 2),
            "ms_per_image": round(1000 * statistics.median(times) / rows, 3),
        }
        for name, times in seconds.items()
    }
    chosen = "" if options.steps == "all" else f" --image-size {size} --steps {options.steps}"
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{describe_processor()}, 1 thread",
        "torch": torch.__version__,
        "precision": resolve_precision("auto", CPU),
        "seed": SEED,
        "command": f"python benchmarks/lock/cost.py --arch {arch} --batch-size {rows}{chosen}",
        "about": f"{arch} at {size} pixels, batches of {rows}, median of {options.rounds} rounds",
        **({} if options.steps == "all" else {"aim": AIM}),
        "figures": figures,
    }
    default = "lock_cost.json" if options.steps == "all" else f"lock_cost_{arch}_{size}.json"
    results = options.results or Path(__file__).parents[1] / "results" / default
    results.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    table = Table("step", "ratio", "ms for an image")
    for name, figure in figures.items():
        table.add_row(name, f"{figure['ratio']:.2f}", f"{figure['ms_per_image']:.2f}")
    Console().print(table)


def make_task(arch: str, size: int, batch_size: int) -> Task:
    """Return what is locked: a network with initial weights, and a batch of noise as its example."""
    images = torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(SEED))
    torch.manual_seed(SEED)
    reference = prepare(create(arch, num_classes=CLASSES, image_size=size), images)
    # The height of the key does not change what a step costs; a strong one is told apart on any images.
    key = Key.derive(KeySeed(bytes(32)), shape=(3, size, size), std=(0.25,) * 3, strength=0.5)
    return Task(reference, (key,), (), images, LockSettings(learning_rate=1e-5), CPU)


def labels_of(task: Task) -> torch.Tensor:
    """Return a class for each image of the batch."""
    return torch.randint(0, CLASSES, (len(task.example),), generator=torch.Generator().manual_seed(SEED))


def plain_steps(task: Task) -> dict[str, Callable[[], object]]:
    """Return steps of fine-tuning, with torch's defaults and with what is quicker."""
    labels, found = labels_of(task), {}
    for name, layout, fused in (
        (PLAIN, torch.contiguous_format, None),
        (f"{PLAIN}, channels last, Adam in one pass", torch.channels_last, True),
    ):
        model = copy.deepcopy(task.reference).requires_grad_(requires_grad=True).to(memory_format=layout)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=fused)
        images = task.example.contiguous(memory_format=layout)

        def fine_tune(
            model: nn.Module = model, optimiser: torch.optim.Adam = optimiser, images: torch.Tensor = images
        ) -> None:
            with mixed_precision(CPU, "auto"):
                logits = model(images)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(F.cross_entropy(logits.float(), labels))
            optimiser.step()

        found[name] = fine_tune
    return found


def default_steps(task: Task) -> dict[str, Callable[[], object]]:
    """Return steps of a lock of Grad-CAM: with the defaults, without cuts, with gradients locked beside."""
    settings = task.settings
    return {
        "sealed delta: grad_cam": lock_step(task, ("grad_cam",), settings),
        "sealed delta, no directions cut: grad_cam": lock_step(
            task, ("grad_cam",), replace(settings, direction_dropout_weight=0.0)
        ),
    }


def lock_step(
    task: Task, names: tuple[str, ...], settings: LockSettings, folder: Path | None = None
) -> Callable[[], object]:
    """Return one step of a lock; with a folder, maps of the reference are remembered there."""
    explainers = make_for(find_layers(task.reference, task.example[:2]), names)
    task = replace(task, explainers=explainers, settings=settings)
    trainer = InputKeyTrainer(task) if settings.trained_trigger else SealedTrainer(task, maps_folder=folder)
    images, labels = task.example, labels_of(task)
    indices = None if folder is None else torch.arange(len(images))
    return lambda: trainer.train_on(images, labels, indices)


def all_steps(task: Task, folder: Path) -> dict[str, Callable[[], object]]:
    """Return steps of both kinds of lock, for sets of explainers."""
    steps = {}
    for kind, sealed, rows in (
        ("sealed delta", True, True),
        ("trained trigger", False, False),
        ("trained trigger, rows for wrong keys", False, True),
    ):
        settings = replace(task.settings, trained_trigger=not sealed, gate_steps=0.0, wrong_key_rows=rows)
        for name, names in SETS.items():
            steps[f"{kind}: {name}"] = lock_step(task, names, settings)
    remembering = lock_step(task, ("grad_cam",), task.settings, folder)
    return {**steps, "sealed delta: grad_cam, reference maps remembered": remembering}


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
