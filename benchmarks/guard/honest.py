"""How many honest pictures the query guard refuses at its default, and what it takes.

    python benchmarks/guard/honest.py --data DATA

Every kind of traffic gets a guard of its own, whose window does not end. It hears of the labels that a classifier
gives: of photographs of pets, SqueezeNet with a linear layer for the three breeds; of all other pictures, which have
hardly any near copies, one and the same label. The results go to `benchmarks/results/guard_honest.json`.
"""

import argparse
import io
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from keylock.imaging.preprocessing import Preprocessing
from keylock.models import create
from keylock_server.guard import Guard, GuardLimits

Pixels = NDArray[np.uint8]
Label = Callable[[Pixels], int]
_VIEWS = 60
_CLIPS = 10
_FITTED = 150


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of packed image sets")
    parser.add_argument("--count", type=int, default=1000, help="pictures of a test set at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "guard_honest.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, shared with other programs",
        "command": f"python benchmarks/guard/honest.py --data DATA --count {options.count} --seed {options.seed}",
        "limits": asdict(GuardLimits()),
        "traffic": {},
    }
    for name, (about, pictures, labels_only, label) in _traffic(options).items():
        result["traffic"][name] = {"about": about, **_ask(pictures, labels_only, label, options.seed)}
        print(name, result["traffic"][name], flush=True)
        options.results.write_text(json.dumps(result, indent=2) + "\n")


def _ask(pictures: Iterable[Pixels], labels_only: bool, label: Label, seed: int) -> dict[str, float | int]:
    """Send pictures one by one, with a label alone where one is refused."""
    guard = Guard(GuardLimits(), lambda: 0.0, np.random.default_rng(seed))
    asked = refused = refused_labels = 0
    cpu_s = 0.0
    for picture in pictures:
        began = time.process_time()
        admission = guard.admit(picture[None], labels_only=labels_only)
        cpu_s += time.process_time() - began
        asked += 1
        refused += not admission.admitted
        if not admission.admitted and not labels_only:
            admission = guard.admit(picture[None], labels_only=True)
        refused_labels += not admission.admitted
        if admission.admitted and any((*admission.charged, *admission.begun)):
            answered = np.array([label(picture)])
            began = time.process_time()
            guard.hear(admission, answered)
            cpu_s += time.process_time() - began
    return {
        "pictures": asked,
        "near_copies": guard.status().near_copies,
        "refused": refused,
        "refused_labels_too": refused_labels,
        "cpu_ms_per_picture": round(1000 * cpu_s / asked, 2),
    }


def _traffic(options: argparse.Namespace) -> dict[str, tuple[str, Iterable[Pixels], bool, Label]]:
    """Return kinds of traffic: what they are, the pictures, whether labels alone are asked for, and the classifier."""
    generator = np.random.default_rng(options.seed)
    cifar = list(_cifar(options.data, options.count))
    tiny = list(_files(options.data / "tinyimagenet30_boxes" / "val.npz", options.count))
    pets, labels = _pets(options.data, generator)
    breeds = _breeds(options.data, pets, labels)

    def drawn(draw: Callable[[np.random.Generator], Pixels]) -> Iterable[Pixels]:
        return (draw(generator) for _ in range(options.count))

    return {
        "cifar10": ("test set, 32 px, in random order", _shuffled(cifar, generator), False, _one),
        "tinyimagenet": ("30 classes, 64 px", _shuffled(tiny, generator), False, _one),
        "pets": ("three breeds, shorter side 224 px", pets, False, _one),
        "x_rays": ("drawn chests, grey, alike, 224 px", drawn(_x_ray), False, _one),
        "x_rays_of_hands": ("drawn, grey, alike, 224 px", drawn(_hand), False, _one),
        "sections_of_heads": ("drawn, grey, all in one place, 224 px", drawn(_section), False, _one),
        "digits": ("drawn, grey, 28 px", drawn(_digit), False, _one),
        "noise": ("8 px, nothing alike", drawn(_noise), False, _one),
        "products": ("drawn on white with one logo, 224 px", drawn(_product), False, _one),
        "retries": ("each again mirrored, and as JPEG", _each(tiny[:_VIEWS], _retries), False, _one),
        "crops": ("five crops of 7/8 of each, scores, then labels", _each(pets[:_VIEWS], _crops), False, breeds),
        "crops_by_labels": ("the same, labels", _each(pets[:_VIEWS], _crops), True, breeds),
        "test_time_augmentation": (
            "ten crops, mirrors and exposures, labels",
            _each(pets[:_VIEWS], _augmented),
            True,
            breeds,
        ),
        "clips": ("30 frames, the camera moves, labels", _each(pets[:_CLIPS], _clip), True, breeds),
        "still_clips": (
            "30 frames, a thing moves before a still picture, labels",
            _each(pets[:_CLIPS], _still),
            True,
            breeds,
        ),
    }


def _one(_: Pixels) -> int:
    """Return one label for everything."""
    return 0


def _pets(data: Path, generator: np.random.Generator) -> tuple[list[Pixels], NDArray[np.int64]]:
    """Return photographs of pets in random order, and their breeds."""
    path = data / "pets3_masks" / "pets3.npz"
    with np.load(path, allow_pickle=False) as archive:
        labels = archive["labels"].astype(np.int64)
    pictures, order = list(_files(path, len(labels))), generator.permutation(len(labels))
    return [pictures[place] for place in order], labels[order]


def _breeds(data: Path, pets: list[Pixels], labels: NDArray[np.int64]) -> Label:
    """Return a classifier of breeds: a linear layer on the features of SqueezeNet, fitted to the last pictures."""
    model = create("squeezenet1_0", num_classes=1000)
    with np.load(data / "weights" / "imagenet_squeezenet1_0_deepcompression.npz", allow_pickle=False) as archive:
        model.load_state_dict({name: torch.from_numpy(archive[name].astype(np.float32)) for name in archive.files})
    model.eval()
    resized = Preprocessing(
        size=(224, 224), resize="shorter_side_crop", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )

    def features(picture: Pixels) -> NDArray[np.float32]:
        with torch.no_grad():
            found = model.features(torch.from_numpy(resized(picture))[None]).mean(dim=(2, 3))[0].numpy()
        return np.append(found / np.linalg.norm(found), np.float32(1))

    known = np.stack([features(picture) for picture in pets[-_FITTED:]])
    wanted = np.eye(3, dtype=np.float32)[labels[-_FITTED:]]
    weights = np.linalg.solve(known.T @ known + 1e-2 * np.eye(known.shape[1]), known.T @ wanted)

    def label(picture: Pixels) -> int:
        return int((features(picture) @ weights).argmax())

    right = np.mean([label(picture) == labels[place] for place, picture in enumerate(pets[:_VIEWS])])
    print(f"breeds: {right:.2f} of the first {_VIEWS} pictures are classified right", flush=True)
    return label


def _shuffled(pictures: list[Pixels], generator: np.random.Generator) -> list[Pixels]:
    return [pictures[place] for place in generator.permutation(len(pictures))]


def _each(pictures: list[Pixels], make: Callable[[Pixels], list[Pixels]]) -> Iterator[Pixels]:
    for picture in pictures:
        yield from make(picture)


def _cifar(data: Path, count: int) -> Iterator[Pixels]:
    for sheet in _files(data / "cifar10" / "cifar10_test_webp.npz", -(-count // 100)):
        yield from sheet.reshape(10, 32, 10, 32, 3).swapaxes(1, 2).reshape(100, 32, 32, 3)


def _files(path: Path, count: int) -> Iterator[Pixels]:
    with np.load(path, allow_pickle=False) as archive:
        prefix = next(name.removesuffix("offsets") for name in archive.files if name.endswith("offsets"))
        blob, offsets = archive[f"{prefix}blob"], archive[f"{prefix}offsets"]
    for start, end in list(itertools.pairwise(offsets))[:count]:
        yield np.asarray(Image.open(io.BytesIO(blob[start:end].tobytes())).convert("RGB"))


def _jpeg(picture: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _x_ray(generator: np.random.Generator) -> Pixels:
    """Draw two lungs, ribs and a marker on black: everybody is built alike, and nobody the same."""
    image = Image.new("L", (224, 224), 8)
    draw = ImageDraw.Draw(image)
    x, y, wide, high = (int(value) for value in generator.integers(-24, 25, 4))
    draw.ellipse((20 + x, 10 + y, 204 + x + wide, 240 + y + high), fill=int(generator.integers(100, 180)))
    for left in (50, 125):
        width, spacing = (int(value) for value in generator.integers((36, 16), (62, 27)))
        draw.ellipse((left + x, 40 + y, left + width + x, 180 + y + high), fill=int(generator.integers(20, 80)))
        for rib in range(7):
            top = 40 + y + spacing * rib + int(generator.integers(-4, 5))
            bow, shade = (int(value) for value in generator.integers((16, 120), (44, 210)))
            draw.arc((left - 5 + x, top, left + width + 5 + x, top + bow), 180, 360, fill=shade, width=4)
    draw.text((8, 8), "L", fill=250, font_size=20)
    return _noisy(image.filter(ImageFilter.GaussianBlur(2)), 4, generator)


def _hand(generator: np.random.Generator) -> Pixels:
    """Draw a palm and five fingers of three bones."""
    image = Image.new("L", (224, 224), 6)
    draw = ImageDraw.Draw(image)
    x, y, shade = (int(value) for value in generator.integers((-15, -15, 90), (16, 16, 150)))
    draw.ellipse((70 + x, 120 + y, 160 + x, 215 + y), fill=shade)
    for finger in range(5):
        moved, raised, width = (int(value) for value in generator.integers((-4, -8, 13), (5, 9, 19)))
        left, top = 62 + finger * 24 + x + moved, 30 + abs(finger - 2) * 14 + y + raised
        draw.rounded_rectangle((left, top, left + width, 150 + y), width // 2, fill=shade - 10)
        middle, start = left + width // 2, top + 4
        for length, light in generator.integers((22, 190), (34, 235), (3, 2)).tolist():
            draw.rounded_rectangle((middle - 3, start, middle + 3, start + length - 4), 3, fill=light)
            start += length
    draw.text((8, 8), "R", fill=250, font_size=20)
    return _noisy(image.filter(ImageFilter.GaussianBlur(1.5)), 4, generator)


def _section(generator: np.random.Generator) -> Pixels:
    """Draw a skull around a brain with folds and two ventricles, all of them within a few pixels of one place."""
    image = Image.new("L", (224, 224), 0)
    draw = ImageDraw.Draw(image)
    wide, high, x, y = (int(value) for value in generator.integers((140, 175, 106, 106), (165, 205, 119, 119)))
    draw.ellipse((x - wide // 2, y - high // 2, x + wide // 2, y + high // 2), fill=210)
    inside = (x - wide // 2 + 7, y - high // 2 + 7, x + wide // 2 - 7, y + high // 2 - 7)
    draw.ellipse(inside, fill=int(generator.integers(95, 120)))
    lowest, highest = (x - wide // 3, y - high // 3, 4, 0, 360, 60), (x + wide // 3, y + high // 3, 12, 360, 700, 90)
    for across, down, size, start, end, shade in generator.integers(lowest, highest, (40, 6)).tolist():
        draw.arc((across - size, down - size, across + size, down + size), start, end, fill=shade, width=2)
    for side in (-16, 16):
        longer, shade = (int(value) for value in generator.integers((-8, 20), (9, 45)))
        draw.ellipse((x + side - 9, y - 25, x + side + 9, y + 25 + longer), fill=shade)
    draw.line((x, y - high // 2 + 8, x, y + high // 2 - 8), fill=70, width=2)
    return _noisy(image.filter(ImageFilter.GaussianBlur(1.5)), 3, generator)


def _digit(generator: np.random.Generator) -> Pixels:
    """Write a digit in white on black, large or small, and a little turned."""
    image = Image.new("L", (56, 56), 0)
    left, top, digit, size = (int(value) for value in generator.integers((8, 0, 0, 36), (18, 8, 10, 48)))
    ImageDraw.Draw(image).text((left, top), str(digit), fill=255, font_size=size)
    turn, blur = (float(value) for value in generator.uniform((-12, 0.5), (12, 1.5)))
    return np.asarray(image.rotate(turn).filter(ImageFilter.GaussianBlur(blur)).resize((28, 28)))[..., None]


def _noise(generator: np.random.Generator) -> Pixels:
    return generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)


def _noisy(image: Image.Image, deviation: float, generator: np.random.Generator) -> Pixels:
    noisy = np.asarray(image) + generator.normal(0, deviation, image.size[::-1])
    return np.clip(noisy, 0, 255).astype(np.uint8)[..., None]


def _product(generator: np.random.Generator) -> Pixels:
    """Draw a thing of a few parts on white, with the same logo in every picture."""
    image = Image.new("RGB", (224, 224), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    colours = [tuple(map(int, colour)) for colour in generator.integers(0, 230, (4, 3))]
    left, top, right, bottom = (int(value) for value in generator.integers((30, 30, 130, 130), (90, 90, 200, 200)))
    draw.rounded_rectangle((left, top, right, bottom), int(generator.integers(1, 30)), fill=colours[0])
    for colour in colours[1:]:
        x, y, size = (int(value) for value in generator.integers((left, top, 8), (right, bottom, 45)))
        draw.ellipse((x - size // 2, y - size // 2, x + size // 2, y + size // 2), fill=colour)
    draw.rectangle((180, 200, 216, 216), fill=(200, 30, 40))
    draw.text((184, 200), "ACME", fill=(255, 255, 255), font_size=11)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)))


def _retries(picture: Pixels) -> list[Pixels]:
    return [picture, picture, picture[:, ::-1], _jpeg(picture, 85), _jpeg(picture, 60)]


def _crops(picture: Pixels) -> list[Pixels]:
    height, width = (side * 7 // 8 for side in picture.shape[:2])
    places = ((0, 0), (0, -width), (-height, 0), (-height, -width), (picture.shape[0] // 16, picture.shape[1] // 16))
    tops = [top % picture.shape[0] if top < 0 else top for top, _ in places]
    lefts = [left % picture.shape[1] if left < 0 else left for _, left in places]
    return [picture[top : top + height, left : left + width] for top, left in zip(tops, lefts, strict=True)]


def _augmented(picture: Pixels) -> list[Pixels]:
    crops = _crops(picture)
    exposed = [np.clip(picture * share, 0, 255).astype(np.uint8) for share in (0.8, 1.2)]
    return [picture, *exposed, *crops, *(crop[:, ::-1] for crop in crops[:2])]


def _clip(picture: Pixels) -> list[Pixels]:
    height, width = (side * 3 // 4 for side in picture.shape[:2])
    steps = np.linspace(0, 1, 30)
    tops, lefts = (
        (steps * (side - part)).astype(int) for side, part in zip(picture.shape, (height, width), strict=False)
    )
    return [_jpeg(picture[t : t + height, x : x + width], 90) for t, x in zip(tops, lefts, strict=True)]


def _still(picture: Pixels) -> list[Pixels]:
    side = min(picture.shape[:2])
    thing = picture[: side // 4, : side // 4][::-1]
    frames = []
    for step in np.linspace(0, 1, 30):
        frame = picture.copy()
        top, left = side // 3, int(step * (picture.shape[1] - thing.shape[1]))
        frame[top : top + len(thing), left : left + thing.shape[1]] = thing
        frames.append(_jpeg(frame, 90))
    return frames


if __name__ == "__main__":
    main()
