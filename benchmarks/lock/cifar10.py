"""Lock a ResNet of CIFAR-10 and measure the lock: fidelity, leakage, accuracy, time, and BatchNorm attacks.

Then the bundle is measured as `keylock evaluate --unseen` does: every explainer, every similarity, the gate curve.

    python benchmarks/lock/cifar10.py --data cifar10.npz --init cifar10_resnet20.npz --out runs/cifar10

Everything is seeded. The results go to `benchmarks/results/lock_cifar10.json`, with date and hardware, and
`lock_cifar10_evaluation.json` beside it, unless `--results` names another file.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from keylock import KeySeed
from keylock.bundle import KeyFile
from keylock.crypto.signing import Home
from keylock.data import DataSource, open_data
from keylock.data.batches import load_batch
from keylock.data.sets import Augmentation
from keylock.evaluation import estimate_mean, pearson, run_explainers, wrong_key_offsets
from keylock.evaluation.renormalise import renormalised
from keylock.pipeline import EvaluatePlan, TrainOutcome, TrainPlan, evaluate, train
from keylock.training import LockSettings

KEY_SEED = "00112233445566778899aabbccddeeff" * 2
"""Published, so that the figures can be made again; a real seed is secret."""


class _Log:
    """Prints a line now and then."""

    def __init__(self) -> None:
        self.done, self.began = 0, time.monotonic()
        self.stage = ""

    def start(self, stage: str, total: int, done: int) -> None:
        self.stage, self.done = stage, done
        print(f"[{time.monotonic() - self.began:7.1f} s] {stage}: {total} steps", flush=True)

    def doing(self, what: str) -> None:
        print(f"[{time.monotonic() - self.began:7.1f} s] {self.stage}: {what}", flush=True)

    def advance(self, figures: dict[str, float]) -> None:
        self.done += 1
        if self.done % 200 == 0 and figures:
            text = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
            print(f"[{time.monotonic() - self.began:7.1f} s] {self.stage} {self.done}: {text}", flush=True)

    def finish(self) -> None:
        pass


def main() -> None:
    """Run the benchmark."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    source = open_data(options.data)
    source = replace(source, augmentation=Augmentation(flip=True, crop_padding=4))
    plan = TrainPlan(
        out=options.out,
        name=f"cifar10-{options.arch}",
        data=source,
        architecture=options.arch,
        init=options.init,
        explainers=tuple(options.explainers.split(",")),
        settings=_settings(options),
        batch_size=options.batch_size,
        measured_images=options.images,
    )
    seed = KeySeed.from_text(KEY_SEED)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    home = Home.open(options.out.with_name("home"))
    key_file = options.out.with_name(options.out.name + ".key")
    sealer = KeyFile(key_file) if key_file.exists() else KeyFile.create(key_file)
    began, cpu = time.monotonic(), time.process_time()
    outcome = train(
        plan,
        seed=seed,
        signing_key=home.signing_key(),
        sealer=sealer,
        progress=_Log(),
        now=lambda: datetime.now(UTC),
        resume=options.resume,
        overwrite=True,
    )
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu

    rows = np.random.default_rng(7).permutation(len(source.test))[: options.images]
    batch = load_batch(source.test, source.preprocessing, indices=rows)
    figures = {figure.name: figure.model_dump(mode="json") for figure in outcome.figures}
    attacks = _attacks(outcome, source, batch.images)
    sealed = f" --prediction-rise {options.prediction_rise:g} --class-weight {options.class_weight:g}"
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.threads} threads",
        "torch": torch.__version__,
        "command": "python benchmarks/lock/cifar10.py --data cifar10.npz"
        f"{'' if options.arch == 'resnet20' else f' --arch {options.arch}'} --init {options.init.name}"
        f" --out runs/cifar10 --explainers {options.explainers}"
        f"{' --trained-trigger' if options.trained_trigger else ''}"
        f" --steps {options.steps} --rank {options.rank} --prediction-weight {options.prediction_weight:g}"
        f"{'' if options.trained_trigger else sealed}"
        f" --learning-rate {options.learning_rate} --batch-size {options.batch_size} --threads {options.threads}",
    }
    result = {
        **about,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "settings": outcome.lock.settings.as_dict(),
        "figures": figures,
        "keyless_pcc_under": attacks,
    }
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(result, indent=2) + "\n")
    _print(result)
    if not options.evaluation_images:
        return
    evaluation, _ = evaluate(
        EvaluatePlan(
            bundle=options.out,
            data=source,
            reference=options.init,
            unseen=True,
            images=options.evaluation_images,
            faithfulness_images=min(100, options.evaluation_images),
            gate_images=min(200, options.evaluation_images),
        ),
        secret=sealer,
        progress=_Log(),
    )
    place = options.results.with_name(f"{options.results.stem}_evaluation.json")
    place.write_text(json.dumps({**about, **evaluation.as_dict()}, indent=1) + "\n")
    print(f"wrote {options.results} and {place}")


def _attacks(outcome: TrainOutcome, source: DataSource, images: torch.Tensor) -> dict[str, dict]:
    """Explain test images with the published network, attacked or given wrong keys; similarity to the truth by name."""
    lock = outcome.lock
    # Those that ask for hundreds of predictions an image are left to the measurement of all explainers.
    explainers = tuple(explainer for explainer in lock.explainers if explainer.differentiable)
    truth = run_explainers(lock.reference, explainers, images).maps
    clean = load_batch(source.train, source.preprocessing, indices=np.arange(min(5000, len(source.train)))).images
    offset = torch.from_numpy(np.array(outcome.key.reveal()))
    shown = {
        f"BatchNorm re-estimated on {len(clean):,} clean images": (
            renormalised(lock.module, clean, batch_statistics=False),
            images,
        ),
        "batch statistics": (renormalised(lock.module, clean, batch_statistics=True), images),
        "another key or noise": (lock.module, images + wrong_key_offsets(outcome.key, len(images), seed=1)),
        "flipped key": (lock.module, images - offset),
        "the key on the published weights": (lock.module, images + offset),
    }
    found = {}
    for name, (module, rows) in shown.items():
        if name.startswith("the key") and lock.delta is None:
            continue
        maps = run_explainers(module, explainers, rows).maps
        for explainer, true in truth.items():
            found[f"{explainer}, {name}"] = estimate_mean(pearson(maps[explainer], true))._asdict()
    return found


def _settings(options: argparse.Namespace) -> LockSettings:
    if options.trained_trigger:
        return LockSettings(
            steps=options.steps,
            trained_trigger=True,
            learning_rate=options.learning_rate,
            gate_steps=0.15,
            gate_strength=2.0,
            # A third quicker, and a lock of this kind is limited by its steps.
            wrong_key_rows=False,
            prediction_weight=2.0,
            constant_offset_weight=0.0,
            leak_weight=0.0,
        )
    return LockSettings(
        steps=options.steps,
        delta_rank=options.rank,
        learning_rate=options.learning_rate,
        prediction_weight=options.prediction_weight,
        prediction_rise=options.prediction_rise,
        class_weight=options.class_weight,
        mask_weight=4.0,
    )


def _print(result: dict) -> None:
    table = Table("figure", "value", "95 %", title=f"CIFAR-10, ResNet-20: {result['seconds'] / 60:.1f} minutes")
    for name, figure in result["figures"].items():
        table.add_row(name, f"{figure['value']:.3f}", f"{figure['low']:.3f} .. {figure['high']:.3f}")
    for name, estimate in result["keyless_pcc_under"].items():
        table.add_row(
            f"keyless under: {name}", f"{estimate['value']:.3f}", f"{estimate['low']:.3f} .. {estimate['high']:.3f}"
        )
    Console().print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10 as .npz, image folder, or the name cifar10")
    parser.add_argument("--init", type=Path, required=True, help="trained weights")
    parser.add_argument("--arch", default="resnet20", help="what they are of")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "lock_cifar10.json")
    parser.add_argument("--explainers", default="grad_cam,gradient,visual_backprop")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--trained-trigger", action="store_true", help="have the network itself tell the trigger")
    parser.add_argument("--rank", type=int, default=0, help="of the sealed delta; 0 for no bound")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--prediction-weight", type=float, default=4.0)
    parser.add_argument("--prediction-rise", type=float, default=3.0)
    parser.add_argument("--class-weight", type=float, default=8.0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument(
        "--evaluation-images", type=int, default=200, help="for the measurement of all explainers; 0 leaves it out"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
