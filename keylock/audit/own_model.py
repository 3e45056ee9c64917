"""What an attacker gets by honest work: a model of his own, trained from scratch on the same data.

One for each price, trained for as many steps as the attack that it stands beside; and one that is trained until it is
as accurate as the published model, because a model of few steps is no match for one that was fine-tuned.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from keylock.audit.attacks.imitation import RATE
from keylock.audit.contract import Steps
from keylock.audit.learning import classes_of, explained, train_classifier
from keylock.audit.scoring import recoveries, similarity_to
from keylock.auditreport.record import OwnNetwork
from keylock.explainers import Explainer
from keylock.training import Progress
from keylock.training.checkpoint import storing

__all__ = ["OwnModels", "Price"]

_ROUNDS = 4


class Price(NamedTuple):
    """What an attacker spends on training.

    Attributes:
        images: How many images are trained on.
        steps: For how many steps.
        batch: Images in a step.
    """

    images: int
    steps: int
    batch: int

    def __str__(self) -> str:
        return f"own model, {self.images} images, {self.steps} steps"


class OwnModels:
    """Trains at most one model for each price, and keeps what it shows.

    Attributes:
        progress: Hears about the steps.
    """

    def __init__(
        self,
        *,
        fresh: Callable[[torch.Generator], nn.Module],
        explainers: Mapping[str, Explainer],
        own_images: Tensor,
        own_labels: Tensor,
        images: Tensor,
        truths: Mapping[str, Tensor],
        folder: Path,
        identity: str,
        seed: int,
        progress: Progress,
    ) -> None:
        """Prepare.

        Args:
            fresh: Makes an untrained classifier.
            explainers: Those that are locked, by name.
            own_images: The attacker's images (own, channels, height, width).
            own_labels: Their classes (own,).
            images: The images whose true maps are wanted (count, channels, height, width).
            truths: Their true maps (count, h, w), by explainer.
            folder: Where maps of earlier models are, and new ones go.
            identity: Of everything but the price; maps of another identity are made anew.
            seed: Of the models.
            progress: Hears about the steps.
        """
        self._fresh, self._explainers, self._truths = fresh, dict(explainers), dict(truths)
        self._own = own_images, own_labels
        self._images = images
        self._folder, self._identity, self._seed, self.progress = folder, identity, seed, progress
        self._found: dict[Price, dict[str, float]] = {}

    def price_of(self, cost: Mapping[str, float]) -> Price | None:
        """Return the price of an attack by its cost, for no more images than there are; None if nothing was trained."""
        images, steps, batch = (int(cost.get(name, 0)) for name in Price._fields)
        return Price(min(images, len(self._own[0])), steps, batch) if steps and images else None

    def correlation(self, explainer: str, price: Price) -> float:
        """Return the correlation of such a model's maps with the true ones, without its sign.

        Args:
            explainer: A locked explainer.
            price: What the model is trained for.
        """
        if price not in self._found:
            maps = self.maps(price)
            self._found[price] = {
                name: abs(float(similarity_to(maps[name], truth)[0].mean())) for name, truth in self._truths.items()
            }
        return self._found[price][explainer]

    def as_accurate(self, wanted: float, labels: Tensor, *, steps: int, batch: int) -> OwnNetwork:
        """Train a model on all of the attacker's images until it is as accurate as the published one.

        Args:
            wanted: Accuracy of the published model on the images.
            labels: The classes of the images (count,).
            steps: Gradient steps at most; after every quarter of them it is looked whether more are needed.
            batch: Images in a step.
        """
        place = self._folder / f"as-accurate-{steps}-{batch}-{self._identity[:16]}.json"
        if place.is_file():
            return OwnNetwork.model_validate_json(place.read_text("utf-8"))
        generator, model, taken = torch.Generator().manual_seed(self._seed), None, 0
        accuracy, each = 0.0, max(1, steps // _ROUNDS)
        while taken < steps and accuracy < wanted:
            model = train_classifier(
                self._fresh(generator) if model is None else model,
                *self._own,
                steps=Steps("own model, as accurate", self.progress)(each),
                total=each,
                batch=batch,
                rate=RATE,
                generator=generator,
                live=True,
            )
            taken += each
            accuracy = round(float((classes_of(model, self._images) == labels).float().mean()), 5)
        maps = {} if model is None else explained(model, self._explainers, self._images)
        found = OwnNetwork(
            accuracy=accuracy,
            wanted=wanted,
            images=len(self._own[0]),
            steps=taken,
            recoveries=recoveries(maps, self._truths, {}),
        )
        with storing(place, advice="run it again") as unfinished:
            unfinished.write_text(found.model_dump_json(), "utf-8")
        return found

    def maps(self, price: Price) -> dict[str, Tensor]:
        """Return the maps (count, h, w) of such a model of the images, by explainer.

        Args:
            price: What the model is trained for.
        """
        count, total, batch = price
        place = self._folder / f"own-{count}-{total}-{batch}-{self._identity[:16]}.safetensors"
        if place.is_file():
            return load_file(place)
        generator = torch.Generator().manual_seed(self._seed)
        model = train_classifier(
            self._fresh(generator),
            self._own[0][:count],
            self._own[1][:count],
            steps=Steps(str(price), self.progress)(total),
            total=total,
            batch=batch,
            rate=RATE,
            generator=generator,
            live=True,
        )
        maps = {name: found.contiguous() for name, found in explained(model, self._explainers, self._images).items()}
        with storing(place, advice="run it again") as unfinished:
            save_file(maps, unfinished)
        return maps
