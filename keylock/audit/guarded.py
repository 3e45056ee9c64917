"""An oracle behind a query guard in this process, which refuses what a server refuses callers without a license."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from keylock.audit.answered import NearCopiesError
from keylock.audit.contract import NotApplicableError
from keylock.audit.oracle import Oracle
from keylock.imaging.preprocessing import Preprocessing

try:
    from keylock_server.guard import Admission, Guard, GuardLimits
except ImportError as error:
    if not (error.name or "").startswith("keylock_server"):
        raise
    _IS_INSTALLED = False
else:
    _IS_INSTALLED = True

__all__ = ["Guarded"]


class Guarded(Oracle):
    """Answers as another oracle does, as far as the guard lets it."""

    has_guard = True

    def __init__(self, oracle: Oracle, preprocessing: Preprocessing, limits: "GuardLimits | None" = None) -> None:
        """Make a guard that has seen nothing yet.

        Args:
            oracle: Who answers; it counts what it answers too.
            preprocessing: How images become pixels again, which are what the guard looks at.
            limits: What the guard allows; by default what it allows in a server.

        Raises:
            NotApplicableError: The server's package, which has the guard, is not installed.
        """
        if not _IS_INSTALLED:
            raise NotApplicableError("the query guard is part of keylock_server: install keylock[server]")
        super().__init__(oracle.names)
        self._oracle, self._preprocessing = oracle, preprocessing
        self._limits = GuardLimits() if limits is None else limits
        self._now_s = 0.0
        self._guard = Guard(self._limits, lambda: self._now_s)

    def wait(self) -> None:
        """Let a window pass; the clock is the oracle's own."""
        self._now_s += self._limits.window_s

    def _predict(self, images: Tensor) -> Tensor:
        admission = self._admit(images, labels_only=False)
        logits = self._oracle.predict(images)
        self._hear(admission, logits)
        return logits

    def _label(self, images: Tensor) -> Tensor:
        admission = self._admit(images, labels_only=True)
        logits = self._oracle.predict(images)
        self._hear(admission, logits)
        return logits.argmax(dim=1)

    def _explain(self, name: str, images: Tensor, targets: Tensor) -> Tensor:
        admission = self._admit(images, labels_only=False)
        # Not counted: a map comes with its prediction.
        self._hear(admission, self._oracle._predict(images))
        return self._oracle.explain(name, images, targets)

    def _admit(self, images: Tensor, *, labels_only: bool) -> "Admission":
        admission = self._guard.admit(_pixels_of(images, self._preprocessing), labels_only=labels_only)
        if not admission.admitted:
            raise NearCopiesError(labels_left=admission.labels_left)
        return admission

    def _hear(self, admission: "Admission", logits: Tensor) -> None:
        self._guard.hear(admission, logits.argmax(dim=1).cpu().numpy())


def _pixels_of(images: Tensor, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return images (count, channels, height, width) as pixels (count, height, width, channels) in 0 to 1."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    pixels = (images.cpu().float() * std + mean).permute(0, 2, 3, 1)
    return pixels.contiguous().numpy()
