"""Measure how well triggers are read and recognised, and that wrong ones do not open.

    python benchmarks/trigger/read.py --cifar10 cifar10.npz --boxes tinyimagenet30 --pets pets3

`--cifar10` is an .npz file with `train_images` and `test_images` (n, 32, 32, 3); `--boxes` and `--pets` are folders
with `train` and `val`, or `trainval` and `test`, with images in folders. Statistics are fitted on training images and
figures measured on test images, of which each reading has a new random trigger. The results go to
`benchmarks/results/trigger_read.json`.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from keylock.imaging.preprocessing import Preprocessing
from keylock.trigger import Recogniser, TriggerStatistics, read

TILE, STRENGTH = 8, 8 / 255
CANDIDATES = 256
TRAINING_IMAGES = 128
NEAR_MISSES = (0, 1, 2, 3, 4, 8, 12, 16, 20, 24)


def main() -> None:
    """Run the benchmark."""
    options = _options()
    sets = {
        "cifar10": _cifar10(options.cifar10, options.images),
        "tinyimagenet30": _folders(options.boxes, ("train", "val"), 64, options.images),
        "pets3": _folders(options.pets, ("trainval", "test"), 224, options.images // 2),
    }
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "numpy": np.__version__,
        "command": f"python benchmarks/trigger/read.py --cifar10 cifar10.npz --boxes tinyimagenet30 --pets pets3"
        f" --images {options.images} --tries {options.tries} --seed {options.seed}",
        "about": f"tile {TILE}, strength 8/255, at most {CANDIDATES} candidates, {TRAINING_IMAGES} training images",
        "reading": [],
        "recognising": [],
        "wrong_keys": {},
    }
    others = {"cifar10": "tinyimagenet30", "tinyimagenet30": "cifar10", "pets3": "tinyimagenet30"}

    def record(row: dict) -> None:
        result["reading"].append(row)
        print(row, flush=True)
        options.results.write_text(json.dumps(result, indent=2) + "\n")

    own = {name: _fitted(train, train.shape[-1]) for name, (train, _) in sets.items()}
    for name, (_, test) in sets.items():
        for rounded in (False, True):
            about = {"images": name, "side": test.shape[-1], "statistics": name, "rounded": rounded}
            for batch in (1, 4):
                record(about | {"batch": batch} | _read(own[name], test, rounded, batch, options.seed))
    result["wrong_keys"] = _wrong_keys(own["cifar10"], sets["cifar10"][1], options.tries, options.seed)
    print(result["wrong_keys"], flush=True)
    for name, (_, test) in sets.items():
        side = test.shape[-1]
        found = {"images": name, "side": side} | _recognised(own[name], test, options.seed)
        result["recognising"].append(found)
        print(found, flush=True)
        statistics = _fitted(sets[others[name]][0], side)
        for rounded in (False, True):
            about = {"images": name, "side": side, "statistics": others[name], "rounded": rounded, "batch": 1}
            record(about | _read(statistics, test[::2], rounded, 1, options.seed))


def _read(statistics: TriggerStatistics, images: np.ndarray, rounded: bool, batch: int, seed: int) -> dict:
    """Return how many triggers are read right, at once and within the candidates."""
    generator = np.random.default_rng(seed)
    first, within, seconds = 0, 0, 0.0
    groups = [images[start : start + batch] for start in range(0, len(images) - batch + 1, batch)]
    for group in groups:
        signs = _signs(generator)
        stamped = _stamped(group, signs, rounded)
        began = time.process_time()
        reading = read(stamped, statistics, strength=STRENGTH)
        seconds += time.process_time() - began
        if np.array_equal(reading.signs(), signs):
            first += 1
            within += 1
        else:
            within += any(np.array_equal(candidate, signs) for candidate in reading.candidates(CANDIDATES))
    return {
        "readings": len(groups),
        "first": round(first / len(groups), 4),
        "within": round(within / len(groups), 4),
        "cpu_ms_each_image": round(1000 * seconds / len(groups) / batch, 1),
    }


def _recognised(statistics: TriggerStatistics, images: np.ndarray, seed: int) -> dict:
    """Return which share is recognised: with the trigger, without, with another, with 24 signs wrong."""
    generator = np.random.default_rng(seed)
    signs = _signs(generator)
    recogniser = Recogniser(signs, statistics, strength=STRENGTH)
    near = np.stack([_stamped(image[None], _turned(signs, 24, generator), False)[0] for image in images])
    kinds = {
        "with": _stamped(images, signs, False),
        "with_rounded": _stamped(images, signs, True),
        "without": images,
        "another": _stamped(images, _signs(generator), False),
        "24_signs_wrong": near,
    }
    began = time.process_time()
    found = {kind: round(float(recogniser.recognise(rows).mean()), 4) for kind, rows in kinds.items()}
    spent = time.process_time() - began
    evidence = {
        kind: [round(read(kinds[kind][row : row + 1], statistics, strength=STRENGTH).evidence, 3) for row in range(40)]
        for kind in ("with_rounded", "without")
    }
    return found | {
        "cpu_ms_each_image": round(1000 * spent / len(kinds) / len(images), 1),
        "least_evidence_with": min(evidence["with_rounded"]),
        "most_evidence_without": max(evidence["without"]),
    }


def _wrong_keys(statistics: TriggerStatistics, images: np.ndarray, tries: int, seed: int) -> dict:
    """Return how often a trigger with wrong signs opens: how often the right signs are among the candidates.

    Each image is read once; the candidates are compared with many keys that the trigger on it is wrong for.
    """
    generator = np.random.default_rng(seed)
    opened = dict.fromkeys((*map(str, NEAR_MISSES), "24 or more", "random"), 0)
    tried = dict.fromkeys(opened, 0)
    each = -(-tries // len(images))
    for image in images:
        signs = _signs(generator)
        reading = read(_stamped(image[None], signs, False), statistics, strength=STRENGTH)
        candidates = {candidate.tobytes() for candidate in reading.candidates(CANDIDATES)}
        plan = [(str(wrong), wrong, 50) for wrong in NEAR_MISSES] + [
            ("random", -1, each // 10),
            ("24 or more", 0, each),
        ]
        for name, wrong, count in plan:
            for _ in range(count):
                number = int(generator.integers(24, 193)) if name == "24 or more" else wrong
                truth = _signs(generator) if number < 0 else _turned(signs, number, generator)
                opened[name] += truth.tobytes() in candidates
                tried[name] += 1
    return {name: {"tried": tried[name], "opened": opened[name]} for name in opened}


def _signs(generator: np.random.Generator) -> np.ndarray:
    return generator.choice(np.array([-1, 1], np.int8), (3, TILE, TILE))


def _turned(signs: np.ndarray, number: int, generator: np.random.Generator) -> np.ndarray:
    flat = signs.ravel().copy()
    flat[generator.choice(flat.size, number, replace=False)] *= -1
    return flat.reshape(signs.shape)


def _stamped(images: np.ndarray, signs: np.ndarray, rounded: bool) -> np.ndarray:
    places = np.arange(images.shape[-1]) % TILE
    stamped = images + np.float32(STRENGTH) * signs[:, places[:, None], places[None, :]].astype(np.float32)
    return np.rint(np.clip(stamped, 0, 1) * 255).astype(np.float32) / 255 if rounded else stamped


def _fitted(train: np.ndarray, side: int) -> TriggerStatistics:
    if train.shape[-1] != side:
        resize = Preprocessing(size=(side, side), mean=(0, 0, 0), std=(1, 1, 1))
        train = np.stack([resize((image.transpose(1, 2, 0) * 255).round().astype(np.uint8)) for image in train])
    return TriggerStatistics.fit(train, mean=[0, 0, 0], std=[1, 1, 1], tile=TILE)


def _cifar10(path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        train, test = file["train_images"], file["test_images"]
    return tuple(
        images[_evenly(len(images), most)].transpose(0, 3, 1, 2).astype(np.float32) / 255
        for images, most in ((train, TRAINING_IMAGES), (test, count))
    )


def _folders(folder: Path, splits: tuple[str, str], side: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    prepare = Preprocessing(size=(side, side), resize="shorter_side_crop", mean=(0, 0, 0), std=(1, 1, 1))

    def images(split: str, most: int) -> Iterator[np.ndarray]:
        files = sorted((folder / split).rglob("*.jpg"))
        for position in _evenly(len(files), most):
            yield prepare(np.asarray(Image.open(files[position]).convert("RGB")))

    return np.stack(list(images(splits[0], TRAINING_IMAGES))), np.stack(list(images(splits[1], count)))


def _evenly(count: int, most: int) -> np.ndarray:
    return np.arange(min(count, most)) * count // min(count, most)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--boxes", type=Path, required=True)
    parser.add_argument("--pets", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000, help="test images of each set, at most")
    parser.add_argument("--tries", type=int, default=1_000_000, help="near misses with 24 and more signs wrong")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "trigger_read.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
