"""How many honest pictures the query guard refuses at its default, and what it takes.

    python benchmarks/guard/honest.py --data DATA

Every kind of traffic gets a guard of its own, whose window does not end. The results go to
`benchmarks/results/guard_honest.json`.
"""

import argparse
import io
import itertools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from keylock_server.guard import Guard, GuardLimits

Pixels = NDArray[np.uint8]
_VIEWS = 100


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of packed image sets")
    parser.add_argument("--count", type=int, default=3000, help="pictures of a test set at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "guard_honest.json")
    options = parser.parse_args()
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, shared with other programs",
        "command": f"python benchmarks/guard/honest.py --data DATA --count {options.count} --seed {options.seed}",
        "limits": asdict(GuardLimits()),
        "traffic": {},
    }
    for name, (about, pictures, labels_only) in _traffic(options).items():
        result["traffic"][name] = {"about": about, **_ask(pictures, labels_only, options.seed)}
        print(name, result["traffic"][name], flush=True)
        options.results.write_text(json.dumps(result, indent=2) + "\n")


def _ask(pictures: Iterator[Pixels], labels_only: bool, seed: int) -> dict[str, float | int]:
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
        if not admission.admitted:
            refused_labels += labels_only or not guard.admit(picture[None], labels_only=True).admitted
    status = guard.status()
    return {
        "pictures": asked,
        "near_copies": status.near_copies,
        "refused": refused,
        "refused_labels_too": refused_labels,
        "cpu_ms_per_picture": round(1000 * cpu_s / asked, 2),
    }


def _traffic(options: argparse.Namespace) -> dict[str, tuple[str, Iterator[Pixels], bool]]:
    """Return kinds of traffic: what they are, the pictures, and whether labels alone are asked for."""
    generator = np.random.default_rng(options.seed)
    cifar = list(_cifar(options.data, options.count))
    tiny = list(_files(options.data / "tinyimagenet30_boxes" / "val.npz", options.count))
    pets = list(_files(options.data / "pets3_masks" / "pets3.npz", options.count))
    return {
        "cifar10": ("test set, 32 px, in random order", iter(_shuffled(cifar, generator)), False),
        "tinyimagenet": ("30 classes, 64 px", iter(_shuffled(tiny, generator)), False),
        "pets": ("three breeds, shorter side 224 px", iter(_shuffled(pets, generator)), False),
        "x_rays": ("drawn, grey, alike, 224 px", (_x_ray(generator) for _ in range(500)), False),
        "products": ("drawn on white with one logo, 224 px", (_product(generator) for _ in range(500)), False),
        "retries": ("each again mirrored, and as JPEG", _each(tiny[:_VIEWS], _retries), False),
        "crops": ("five crops of 7/8 of each", _each(pets[:_VIEWS], _crops), False),
        "test_time_augmentation": ("ten crops, mirrors and exposures, labels", _each(pets[:_VIEWS], _augmented), True),
        "clips": ("30 frames, the camera moves, labels", _each(pets[:20], _clip), True),
        "still_clips": ("30 frames, a thing moves before a still picture, labels", _each(pets[:20], _still), True),
    }


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
    noisy = np.asarray(image.filter(ImageFilter.GaussianBlur(2))) + generator.normal(0, 4, (224, 224))
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
