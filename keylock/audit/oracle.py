"""All that an attacker without a license has: predictions and keyless maps, by asking. Every answer is counted.

A server's query guard refuses near copies of recent images: scores first, then labels. Of a batch that is refused each
image is asked about by itself, and where its scores are refused, its label is asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor, nn

from keylock.audit.answered import Answers, NearCopiesError, Tally
from keylock.audit.contract import NotApplicableError
from keylock.errors import LicenseReason, UnknownNameError
from keylock.explainers import EXPLAINERS, BlackBox, Explainer, explain_many
from keylock.models import split_rows
from keylock_client import Client
from keylock_client.errors import LicenseRefusedError, SimilarQueriesError

__all__ = ["METHODS", "GraphOracle", "LocalOracle", "Oracle", "ServerOracle", "of_networks"]


METHODS = tuple(name for name, kind in EXPLAINERS.items() if issubclass(kind, BlackBox))
"""The explainers that need predictions alone."""


def of_networks(names: Iterable[str]) -> tuple[str, ...]:
    """Leave out the explainers that ask for predictions alone."""
    return tuple(name for name in names if name not in METHODS)


_PIECES: Final = 16
"""Images that are asked about together once a larger batch was refused; of these each by itself."""


class Oracle(ABC):
    """Answers about images, one row for each.

    Attributes:
        names: The explainers on offer that look into the network. Attackers run those that ask for predictions alone on
            their own.
        tally: How many images were answered so far, and how.
        has_guard: Whether whoever answers has a query guard of its own.
    """

    has_guard: ClassVar[bool] = False

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.tally = of_networks(names), Tally()

    @property
    def queries(self) -> int:
        """Images answered so far."""
        return self.tally.answered

    def predict(self, images: Tensor) -> Tensor:
        """Return logits (count, classes) of preprocessed images (count, channels, height, width), as `ask` does."""
        return self.ask(images).logits

    @torch.no_grad()
    def ask(self, images: Tensor, *, scores: bool = True, labels: bool = True) -> Answers:
        """Return what comes back about preprocessed images (count, channels, height, width).

        Args:
            images: What to ask about.
            scores: Ask for scores.
            labels: Ask for labels alone, where scores are refused or not asked for.
        """
        return Answers.joined([self._asked(rows, scores, labels) for (rows,) in split_rows(images)])

    def _asked(self, images: Tensor, scores: bool, labels: bool) -> Answers:
        try:
            found = Answers.of_scores(self._predict(images)) if scores else self._labelled(images)
        except NearCopiesError as refusal:
            if len(images) > 1:
                return Answers.joined([self._asked(rows, scores, labels) for rows in _pieces(images)])
            if scores and labels and refusal.labels_left:
                return self._asked(images, scores=False, labels=True)
            self.tally.refused += 1
            return Answers.none(self._plain_answer(images).shape[1])
        if scores:
            self.tally.scores += len(images)
        else:
            self.tally.labels += len(images)
        return found

    def _labelled(self, images: Tensor) -> Answers:
        return Answers.of_labels(self._label(images), count=self._plain_answer(images).shape[1])

    def explain(self, name: str, images: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return keyless maps (count, h, w); nan for images that were refused.

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
        chosen = torch.full((len(images),), -1, device=images.device) if targets is None else targets
        return torch.cat([self._explained(name, rows, classes) for rows, classes in split_rows(images, chosen)])

    def _explained(self, name: str, images: Tensor, targets: Tensor) -> Tensor:
        try:
            maps = self._explain(name, images, targets)
        except NearCopiesError:
            if len(images) > 1:
                pieces = zip(_pieces(images), _pieces(targets), strict=True)
                return torch.cat([self._explained(name, rows, classes) for rows, classes in pieces])
            self.tally.refused += 1
            return torch.full_like(self._explain(name, torch.zeros_like(images), targets), torch.nan)
        self.tally.scores += len(images)
        return maps

    def explain_all(self, images: Tensor, targets: Tensor | None = None) -> dict[str, Tensor]:
        """Return keyless maps (count, h, w) of every explainer on offer."""
        return {name: self.explain(name, images, targets) for name in self.names}

    # Whoever has no guard has no windows and knows no callers.
    def wait(self) -> None:  # noqa: B027
        """Let as much time pass as a query guard remembers pictures for; without one there is none to wait for."""

    def call_anew(self) -> None:  # noqa: B027
        """Go on as another caller; whoever answers in this process knows none."""

    def _plain_answer(self, images: Tensor) -> Tensor:
        """Return the logits (1, classes) of an image of one colour, which is no near copy of anything."""
        return self._predict(torch.zeros_like(images[:1]))

    @abstractmethod
    def _predict(self, images: Tensor) -> Tensor:
        """Return logits (count, classes), or raise `NearCopiesError`."""

    def _label(self, images: Tensor) -> Tensor:
        """Return predicted classes (count,), or raise `NearCopiesError`."""
        return self._predict(images).argmax(dim=1)

    @abstractmethod
    def _explain(self, name: str, images: Tensor, targets: Tensor) -> Tensor:
        """Return maps (count, h, w), or raise `NearCopiesError`."""


def _pieces(rows: Tensor) -> tuple[Tensor, ...]:
    """Split what was refused as a whole."""
    return torch.split(rows, _PIECES if len(rows) > _PIECES else 1)


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
        self.tally.scores += len(self.names) * len(images)
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

    has_guard = True

    def __init__(self, client: Client, another: Callable[[], Client] | None = None) -> None:
        """Ask the server what it offers.

        Args:
            client: Asks.
            another: Makes another client of the same server, for an attacker who calls as somebody else.

        Raises:
            ClientError: The server does not answer.
        """
        self._client, self._another, self._own = client, another, False
        described = client.model()
        self._classes = {label: place for place, label in enumerate(described.classes)}
        super().__init__(tuple(explainer.name for explainer in described.explainers))

    def wait(self) -> None:
        """Refuse: nobody waits that long.

        Raises:
            NotApplicableError: Always.
        """
        raise NotApplicableError("a running server's windows take their time: audit without oracle= to skip it")

    def call_anew(self) -> None:
        """Open another connection."""
        if self._another is not None:
            if self._own:
                self._client.close()
            self._client, self._own = self._another(), True

    def _predict(self, images: Tensor) -> Tensor:
        try:
            answers = self._client.predict(list(images.cpu().numpy()))
        except SimilarQueriesError as error:
            raise NearCopiesError(labels_left=error.labels_left) from None
        return torch.tensor([answer.logits for answer in answers], device=images.device)

    def _label(self, images: Tensor) -> Tensor:
        try:
            labels = self._client.label(list(images.cpu().numpy()))
        except SimilarQueriesError as error:
            raise NearCopiesError(labels_left=error.labels_left) from None
        return torch.tensor([self._classes[label] for label in labels], device=images.device)

    def _explain(self, name: str, images: Tensor, targets: Tensor) -> Tensor:
        rows, maps = images.cpu().numpy(), [torch.empty(0)] * len(images)
        for target in sorted(set(targets.tolist())):
            # One call explains one class.
            places = (targets == target).nonzero().flatten().tolist()
            asked = None if target < 0 else int(target)
            try:
                answers = self._client.explain([rows[place] for place in places], explainer=name, target=asked)
            except SimilarQueriesError as error:
                raise NearCopiesError(labels_left=error.labels_left) from None
            except LicenseRefusedError as error:
                if error.reason is not LicenseReason.NEEDED_FOR_TARGET:
                    raise
                raise NotApplicableError("the server explains the predicted class alone") from None
            for place, answer in zip(places, answers, strict=True):
                maps[place] = torch.from_numpy(answer.map.copy())
        return torch.stack(maps).to(images.device)
