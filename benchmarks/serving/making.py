"""Makes the material: a network with random weights, locked in two steps, published, with a license for its maps.

    python benchmarks/serving/making.py FOLDER SIDE
    python benchmarks/serving/making.py FOLDER SIDE thin
    python benchmarks/serving/making.py FOLDER SIDE grad_cam,gradient,integrated_gradients

How good the lock is makes no difference to what its graphs cost, so hardly anything is trained. `thin` makes a network
that costs next to nothing, with as many classes as that of its size, for what a call costs beside the network. Names of
explainers are those that are locked, in place of the first two of these.
"""

import copy
import json
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import torch
from material import NETWORKS, Material
from safetensors.torch import save_file
from torch import Tensor, nn

from keylock.bundle import KeyFile
from keylock.crypto.secrecy import write_secret_file
from keylock.crypto.signing import Home
from keylock.data.shapes import draw_shapes
from keylock.imaging.preprocessing import Preprocessing
from keylock.licensing import License, issue, new_license_id
from keylock.models import create
from keylock.pipeline.publish import Publication, publish
from keylock.store import LicenseStore
from keylock.training import LockSettings, lock
from keylock.trigger.keys import Key, KeySeed

_EXPLAINERS = ("grad_cam", "gradient")
_IMAGES = 64
_ASKED = 32
_BATCH = 8
_NOISE = 0.1
# So strong a key is told apart on a few images.
_STRENGTH = 0.25


_PATCH = 16


class Thin(nn.Module):
    """Looks at patches of 16 x 16 pixels: a hundredth of a prediction of ResNet-18."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, _PATCH, stride=_PATCH)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.act2 = nn.ReLU()
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes)."""
        logits: Tensor = self.head(self.act2(self.conv2(self.act1(self.conv1(images)))).mean(dim=(2, 3)))
        return logits


def main() -> None:
    """Make it, from nothing."""
    folder, side = Path(sys.argv[1]), int(sys.argv[2])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    kind = "".join(sys.argv[3:])
    thin = kind == "thin"
    make(Material(folder, side), thin=thin, explainers=_EXPLAINERS if thin or not kind else tuple(kind.split(",")))


def make(material: Material, *, thin: bool, explainers: tuple[str, ...]) -> None:
    """Draw images and weights, lock, publish, issue a license."""
    architecture, classes = NETWORKS[material.side]
    preprocessing = Preprocessing(
        size=(material.side, material.side), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    drawn = draw_shapes(count=_IMAGES, size=material.side, seed=0)
    # Photographs have noise. Without it areas are flat, and where max-pooling finds two largest values it is chance
    # through which one a gradient goes back.
    noise = np.random.default_rng(0).normal(scale=_NOISE, size=(_IMAGES, *preprocessing.shape))
    clean = np.stack([preprocessing(pixels) for pixels in drawn.images])
    images = torch.from_numpy((clean + noise).astype(np.float32))
    torch.manual_seed(0)
    model = (Thin(classes) if thin else create(architecture, num_classes=classes, image_size=material.side)).eval()
    # Its own answers are the labels: what does not classify is refused before it is locked.
    with torch.no_grad():
        labels = model(images).argmax(1)
    seed = KeySeed.generate()
    key = Key.derive(seed, shape=preprocessing.shape, std=preprocessing.std, strength=_STRENGTH)
    batches = [(images[at : at + _BATCH], labels[at : at + _BATCH]) for at in range(0, _IMAGES, _BATCH)]
    settings = LockSettings(steps=2, learning_rate=1e-4)
    locked = lock(copy.deepcopy(model), batches, key, explainers=explainers, settings=settings, device="cpu")
    now, home = datetime.now(UTC), Home.open(material.home)
    publication = Publication(
        name="model",
        classes=tuple(f"class {number}" for number in range(classes)),
        preprocessing=preprocessing,
        architecture=None if thin else architecture,
        variants=() if thin else ("int8",),
    )
    manifest = publish(
        locked,
        material.bundle,
        publication,
        seed=seed,
        key=key,
        images=images[:_BATCH],
        # Of few images, a single map that comes out otherwise decides whether there is an int8 graph.
        variant_images=images,
        signing_key=home.signing_key(),
        sealer=KeyFile.create(material.key_file),
        created=now,
    )
    license = License(
        id=new_license_id(),
        customer="benchmark",
        models=("*",),
        explainers=("*",),
        issued_at=now,
        not_before=now - timedelta(minutes=1),
        expires=now + timedelta(days=365),
    )
    with LicenseStore(home.licenses_url) as store:
        store.add(license, issuer=home.signing_key().key_id)
    write_secret_file(material.token, issue(license, home.signing_key()).encode())
    save_file(model.state_dict(), material.weights)
    torch.onnx.export(
        model, (images[:1],), material.network, input_names=["image"], output_names=["logits"], external_data=False
    )
    np.save(material.folder / "images.npy", images[:_ASKED].numpy())
    (layer,) = {explainer.layer for explainer in locked.explainers if explainer.name == "grad_cam"}  # type: ignore[attr-defined]
    about = {
        "architecture": "thin" if thin else architecture,
        "classes": classes,
        "layer": layer,
        "sealed_delta": locked.delta is not None,
        "made": now.isoformat(timespec="seconds"),
        "digest": manifest.model_digest,
        "int8": ["predict"] * ("int8" in manifest.prediction_variants)
        + [entry.name for entry in manifest.explainers if "int8" in entry.variants],
    }
    material.about_file.write_text(json.dumps(about), "utf-8")


if __name__ == "__main__":
    main()
