"""Fine-tune SqueezeNet on photographs: the reference model of the lock at 224 pixels.

The published weights classify ImageNet; here the last convolution is replaced by one for the classes of an image folder
and trained, and with `--layers` the last Fire modules too. The result is what `keylock train --init` takes.

    python benchmarks/pets_reference.py --data pets --weights squeezenet1_0.npz --out pets_squeezenet.safetensors
    keylock train --data pets --arch squeezenet1_0 --init pets_squeezenet.safetensors --out pets.klb

Everything is seeded. Layers that stay as they are run once over every image and its mirror image, so that an epoch
costs as much as the trained layers do.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from keylock.data import open_data
from keylock.data.batches import load_batch
from keylock.models import create

ARCHITECTURE = "squeezenet1_0"
NEW = ("classifier.1.weight", "classifier.1.bias")
ROWS = 32


def main() -> None:
    """Fine-tune, measure and write the weights."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(options.seed)
    source = open_data(options.data)
    print(f"{len(source.train)} training and {len(source.test)} test images of {len(source.classes)} classes")
    model = create(ARCHITECTURE, num_classes=len(source.classes))
    _load_all_but_the_last(model, options.weights)
    model.eval()
    blocks = list(model.features)
    split = len(blocks) - options.layers
    frozen, trained = nn.Sequential(*blocks[:split]), nn.Sequential(*blocks[split:])

    began = time.monotonic()
    train, test = (load_batch(images, source.preprocessing) for images in (source.train, source.test))
    plain, mirrored = (_run(frozen, images) for images in (train.images, train.images.flip(3)))
    test_features = _run(frozen, test.images)
    print(f"[{time.monotonic() - began:5.1f} s] features {tuple(plain.shape[1:])} computed", flush=True)

    head = nn.Sequential(trained, model.classifier)
    _fit(head, torch.cat([plain, mirrored]), train.labels.repeat(2), options, began)
    for name, features, labels in (("training", plain, train.labels), ("test", test_features, test.labels)):
        logits = _run(head, features).flatten(1)
        print(f"accuracy on {name} images: {(logits.argmax(1) == labels).float().mean():.4f}", flush=True)
        for index, label in enumerate(source.classes):
            rows = labels == index
            print(f"    {label}: {(logits[rows].argmax(1) == index).float().mean():.4f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), options.out)
    print(f"[{time.monotonic() - began:5.1f} s] wrote {options.out}")


def _fit(head: nn.Module, features: Tensor, labels: Tensor, options: argparse.Namespace, began: float) -> None:
    """Train the last layers with Adam, a falling learning rate, dropout and label smoothing."""
    optimiser = torch.optim.Adam(head.parameters(), lr=options.learning_rate, weight_decay=1e-4)
    batches = -(-len(labels) // ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.learning_rate, options.epochs * batches)
    head.train()
    for epoch in range(options.epochs):
        total = 0.0
        for rows in torch.randperm(len(labels)).split(ROWS):
            loss = F.cross_entropy(head(features[rows]).flatten(1), labels[rows], label_smoothing=0.05)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        print(f"[{time.monotonic() - began:5.1f} s] epoch {epoch + 1}: loss {total / len(labels):.4f}", flush=True)
    head.eval()


def _run(module: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([module(rows) for rows in inputs.split(ROWS)])


def _load_all_but_the_last(model: nn.Module, path: Path) -> None:
    """Load published weights of another number of classes: everything but the last convolution."""
    with np.load(path, allow_pickle=False) as archive:
        state = {name: torch.from_numpy(archive[name]).float() for name in archive.files if name not in NEW}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if set(missing) != set(NEW) or unexpected:
        raise SystemExit(f"{path} does not hold the weights of {ARCHITECTURE}: {missing} missing, {unexpected} unknown")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="image folder with train/ and test/")
    parser.add_argument("--weights", type=Path, required=True, help=f".npz of the weights of {ARCHITECTURE}")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--layers", type=int, default=2, help="train so many modules before the last convolution too")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
