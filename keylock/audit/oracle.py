"""All that an attacker without a license has: predictions and keyless maps, by asking. Every answer is counted."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from keylock.audit.contract import NotApplicableError
from keylock.errors import LicenseReason, UnknownNameError
from keylock.explainers import EXPLAINERS, BlackBox, Explainer, explain_many
from keylock.models import split_rows
from keylock_client import Client
from keylock_client.errors import LicenseRefusedError

__all__ = ["METHODS", "GraphOracle", "LocalOracle", "Oracle", "ServerOracle", "of_networks"]


METHODS = tuple(name for name, kind in EXPLAINERS.items() if issubclass(kind, BlackBox))
"""The explainers that need predictions alone."""


def of_networks(names: Iterable[str]) -> tuple[str, ...]:
    """Leave out the explainers that ask for predictions alone."""
    return tuple(name for name in names if name not in METHODS)


class Oracle(ABC):
    """Answers about images, one row for each.

    Attributes:
        names: The explainers on offer that look into the network. Attackers run those that ask for predictions alone on
            their own.
        queries: Images answered so far.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.queries = of_networks(names), 0

    def predict(self, images: Tensor) -> Tensor:
        """Return logits (count, classes) of preprocessed images (count, channels, height, width)."""
        self.queries += len(images)
        with torch.no_grad():
            return torch.cat([self._predict(rows) for (rows,) in split_rows(images)])

    def explain(self, name: str, images: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return keyless maps (count, h, w).

        Args:
            name: An explainer on offer.
            images: Preprocessed images (count, channels, height, width).
            targets: Classes to explain (count,); by default those that are predicted.

        Raises:
            UnknownNameError: There is no such explainer.
            NotApplicableError: A class was asked for, and who is asked explains predicted ones alone.
        """
        if name not in self.names:
            raise UnknownNameError("explainer", name, self.names)
        self.queries += len(images)
        chosen = torch.full((len(images),), -1, device=images.device) if targets is None else targets
        return torch.cat([self._explain(name, rows, classes) for rows, classes in split_rows(images, chosen)])

    def explain_all(self, images: Tensor, targets: Tensor | None = None) -> dict[str, Tensor]:
        """Return keyless maps (count, h, w) of every explainer on offer."""
        return {name: self.explain(name, images, targets) for name in self.names}

    @abstractmethod
    def _predict(self, images: Tensor) -> Tensor: ...

    @abstractmethod
    def _explain(self, name: str, images: Tensor, targets: Tensor) -> Tensor: ...


class LocalOracle(Oracle):
    """Answers from a torch module, which nobody who asks gets to see."""

    def __init__(self, module: nn.Module, explainers: Mapping[str, Explainer]) -> None:
        super().__init__(tuple(explainers))
        self.__module, self.__explainers = module, dict(explainers)

    def _predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.__module(images)
        return logits

    def explain_all(self, images: Tensor, targets: Tensor | None = None) -> dict[str, Tensor]:
        """Return keyless maps (count, h, w) of every explainer on offer, which share a pass where they can."""
        self.queries += len(self.names) * len(images)
        chosen, asked = [self.__explainers[name] for name in self.names], targets
        if asked is None:
            asked = torch.full((len(images),), -1, device=images.device)
        parts = [explain_many(self.__module, chosen, rows, of)[1] for rows, of in split_rows(images, asked)]
        return {name: torch.cat([part[name] for part in parts]) for name in self.names}

    def _explain(self, name: str, images: Tensor, targets: Tensor) -> Tensor:
        return self.__explainers[name].explain(self.__module, images, targets).maps


class GraphOracle(Oracle):
    """Answers from the ONNX graphs of a bundle, as a server without the key does."""

    def __init__(self, bundle: Path) -> None:
        """Load the graphs.

        Raises:
            BundleError: The bundle cannot be used.
        """
        from keylock_server.inference.model_loader import open_model
        from keylock_server.settings import ServerSettings

        self._model, _ = open_model(ServerSettings.load(bundle=bundle, keyless=True))
        super().__init__(tuple(self._model.explainers))

    def _predict(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self._model.predict(images.cpu().numpy())).to(images.device)

    def _explain(self, name: str, images: Tensor, targets: Tensor) -> Tensor:
        nobody = np.zeros(len(images), np.bool_)
        answer = self._model.explain(
            images.cpu().numpy(), explainer=name, targets=targets.cpu().numpy().astype(np.int64), keyed=nobody
        )
        return torch.from_numpy(answer.maps).to(images.device)


class ServerOracle(Oracle):
    """Answers from a running server, through the SDK; the client has no license."""

    def __init__(self, client: Client) -> None:
        """Ask the server what it offers.

        Raises:
            ClientError: The server does not answer.
        """
        self._client = client
        super().__init__(tuple(explainer.name for explainer in client.model().explainers))

    def _predict(self, images: Tensor) -> Tensor:
        answers = self._client.predict(list(images.cpu().numpy()))
        return torch.tensor([answer.logits for answer in answers], device=images.device)

    def _explain(self, name: str, images: Tensor, targets: Tensor) -> Tensor:
        rows, maps = images.cpu().numpy(), [torch.empty(0)] * len(images)
        for target in sorted(set(targets.tolist())):
            # One call explains one class.
            places = (targets == target).nonzero().flatten().tolist()
            asked = None if target < 0 else int(target)
            try:
                answers = self._client.explain([rows[place] for place in places], explainer=name, target=asked)
            except LicenseRefusedError as error:
                if error.reason is not LicenseReason.NEEDED_FOR_TARGET:
                    raise
                raise NotApplicableError("the server explains the predicted class alone") from None
            for place, answer in zip(places, answers, strict=True):
                maps[place] = torch.from_numpy(answer.map.copy())
        return torch.stack(maps).to(images.device)
