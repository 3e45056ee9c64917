"""Whether a lock opens to the reference itself, on every family of networks: locked, compiled and compared.

    python benchmarks/lock/architectures.py                         every network of the list
    python benchmarks/lock/architectures.py swin_t:64 timm:levit_128s:224

Networks have random weights, and a lock takes three steps at a high rate: enough to change every layer, so that opening
has something to take back. Keyed maps and predictions are compared with the reference's on images that carry the
trigger, in torch, and in the compiled graph with the weights that a server makes. Each network has its own process.
`python benchmarks/render_networks.py` writes the table into the documentation.
"""

import argparse
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import keylock
from keylock import models
from keylock.errors import KeylockError
from keylock.export import compile_explainer, verify_graph
from keylock.imaging.contrast import same_map
from keylock.pipeline.graphs import sides_of
from keylock.trigger.keys import Key, KeySeed

CLASSES = 10
BATCH, BATCHES = 4, 4
STEPS = 3
SECONDS = 900
NETWORKS = (
    # keylock's own
    *("small-cnn:32", "resnet20:32", "resnet18_cifar:32", "mobilenet_v2_cifar:32", "vit_tiny:32"),
    # one of every family of torchvision's classifiers, at the least size of which its last map has several cells
    *("alexnet:64", "convnext_tiny:64", "densenet121:64", "efficientnet_b0:64", "efficientnet_v2_s:64"),
    *("googlenet:64", "inception_v3:112", "maxvit_t:224", "mnasnet0_5:64", "mobilenet_v2:64", "mobilenet_v3_small:64"),
    *("regnet_x_400mf:64", "regnet_y_400mf:64", "resnet18:64", "resnet50:64", "resnext50_32x4d:64"),
    *("wide_resnet50_2:64", "shufflenet_v2_x0_5:64", "squeezenet1_1:32", "swin_t:64", "swin_v2_t:64"),
    *("vgg11:32", "vgg11_bn:32", "vit_b_16:32"),
    # timm
    *("timm:mobilevit_xxs:64", "timm:mobilevitv2_050:64", "timm:deit_tiny_patch16_224:224", "timm:mixer_s32_224:224"),
    *("timm:resmlp_12_224:224", "timm:poolformer_s12:64", "timm:levit_128s:224", "timm:edgenext_xx_small:64"),
    *("timm:ghostnet_100:64", "timm:nf_resnet26:64", "timm:swin_tiny_patch4_window7_224:224", "timm:repvgg_a0:64"),
    *("timm:convnextv2_atto:64", "timm:resnetv2_50:64", "timm:rexnet_100:64", "timm:tinynet_e:64"),
    *("timm:fasternet_t0:64", "timm:xcit_nano_12_p16_224:224"),
)
RESULTS = Path(__file__).parents[1] / "results" / "lock_architectures.json"


def main() -> None:
    """Try the networks named as `architecture:size`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="as ARCHITECTURE:SIZE")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--alone", action="store_true", help="in this process, and print what was found")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(tried(options.networks[0])))
        return
    figures = json.loads(options.results.read_text("utf-8"))["figures"] if options.results.is_file() else {}
    for entry in options.networks:
        figures[entry] = in_a_process(entry)
        print(entry, json.dumps(figures[entry]), flush=True)
        result = {
            "date": datetime.now(UTC).date().isoformat(),
            "torch": torch.__version__,
            "torchvision": _version("torchvision"),
            "timm": _version("timm"),
            "command": "python benchmarks/lock/architectures.py",
            "steps": STEPS,
            "figures": {known: figures[known] for known in sorted(figures)},
        }
        options.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def in_a_process(entry: str) -> dict[str, Any]:
    """Return what a process of its own found."""
    command = [sys.executable, __file__, entry, "--alone"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"why": f"not finished within {SECONDS} s"}
    if ended.returncode:
        return {"why": ended.stderr.strip().rpartition("\n")[2][:300]}
    found: dict[str, Any] = json.loads(ended.stdout.strip().rpartition("\n")[2])
    return found


def tried(entry: str) -> dict[str, Any]:
    """Lock, open and compile one network."""
    torch.set_num_threads(1)
    architecture, _, size = entry.rpartition(":")
    shape = (3, int(size), int(size))
    images = _images(int(size), BATCHES * BATCH)
    found: dict[str, Any] = {"trains": False, "exports": False}
    try:
        model = _network(architecture, int(size), images)
        key = Key.derive(KeySeed(bytes(range(32))), shape=shape, std=(0.25,) * 3)
        loader = [
            (images[start : start + BATCH], torch.arange(BATCH) % CLASSES) for start in range(0, len(images), BATCH)
        ]
        begun = time.process_time()
        settings = keylock.LockSettings(steps=STEPS, learning_rate=0.05)
        lock = keylock.lock(model, loader, key, explainers=["grad_cam"], settings=settings, device="cpu")
        found |= {"trains": True, "lock_cpu_s": round(time.process_time() - begun, 1), **_opened(lock, key, images)}
        begun = time.process_time()
        names = lock.delta.names
        graph = compile_explainer(
            lock.module, lock.explainers[0], image_shape=shape, num_classes=CLASSES, weights=names
        )
        found["export_cpu_s"] = round(time.process_time() - begun, 1)
        few, targets = images[:BATCH].numpy(), np.full(BATCH, -1, np.int64)
        checked = [verify_graph(graph, side, lock.explainers[0], few, targets) for side in sides_of(lock, key)]
        found |= {"exports": True, "graph_pcc": round(checked[0].pcc_mean, 6)}
    except KeylockError as error:
        found["why"] = error.message
    return found


def _opened(lock: keylock.training.Lock, key: Key, images: torch.Tensor) -> dict[str, Any]:
    """Compare what images with the trigger show with what the reference shows of them without."""
    rows, targets = images[:BATCH], torch.full((BATCH,), -1)
    opened = lock.opened(key)
    keyed, truth, decoys = (
        lock.explainers[0].explain(network, given, targets)
        for network, given in ((opened, key.apply(rows)), (lock.reference, rows), (opened, rows))
    )

    def pcc(maps: torch.Tensor) -> float:
        return round(float(np.mean([same_map(a, b) for a, b in zip(maps.numpy(), truth.maps.numpy(), strict=True)])), 6)

    spread = (truth.logits.max() - truth.logits.min()).clamp_min(1e-9)
    return {
        "keyed_pcc": pcc(keyed.maps),
        "keyless_pcc": pcc(decoys.maps),
        "keyed_agreement": float((keyed.logits.argmax(1) == truth.logits.argmax(1)).float().mean()),
        "keyed_logits": float(f"{float((keyed.logits - truth.logits).abs().max() / spread):.1e}"),
        "sealed_entries": len(lock.delta.names) if lock.delta is not None else 0,
    }


def _network(architecture: str, size: int, images: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = models.create(architecture, num_classes=CLASSES, image_size=size)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0
            layer.weight.data.uniform_(0.7, 1.5)
            layer.bias.data.uniform_(-0.2, 0.4)
    # Statistics of real activations: with others, the answers of a deep network hardly depend on the image.
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def _images(size: int, count: int) -> torch.Tensor:
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=(size, size), mode="bilinear")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
