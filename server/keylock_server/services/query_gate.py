"""The query guard before the services: what it looks at, who is exempt, what a refusal says and what is counted.

It looks at every image that is answered with a prediction or a decoy. Those that are answered with a true map are paid
for one by one, and are not looked at. It sees pixels as the model looks at them, in the range of pixels again, so that
the form in which an image travels makes no difference.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keylock.bundle import Manifest
from keylock.errors import KeylockError, LicenseError, LicenseReason
from keylock.imaging.preprocessing import Preprocessing
from keylock.licensing import check
from keylock.v1 import admin_pb2 as pb
from keylock_server.auth.authentication import Authenticator, Caller, bearer_token
from keylock_server.guard import Admission, Guard, Mode
from keylock_server.guard.refusal import SimilarQueriesError
from keylock_server.scheduling.decoder_pool import DecoderPool

__all__ = ["QueryGate", "seen"]

_LOG: Final = logging.getLogger("keylock_server")
_TOLD_EVERY_S: Final = 60.0
# Beyond these, pixel values are taken down to their logarithms.
_LOWEST, _HIGHEST, _LARGEST = np.float32(-0.5), np.float32(1.5), np.float32(1e38)


class QueryGate:
    """Asks the guard before anything is computed. For one event loop."""

    def __init__(
        self,
        guard: Guard | None,
        mode: str,
        *,
        pool: DecoderPool,
        authenticator: Authenticator,
        observe: Callable[[str, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes the gate.

        Args:
            guard: Knows what was asked lately; None where everything is answered.
            mode: What it does with near copies, `count` or `limit`.
            pool: Threads to describe pictures in.
            authenticator: Verifies the licenses of those who ask for predictions.
            observe: Told of images: `near_copy`, `identical`, `other`, `refused`, or with `count` `would_be_refused`,
                and how many.
            clock: Seconds, for how often the log tells of refusals.
        """
        self._guard, self._pool, self._authenticator = guard, pool, authenticator
        self._mode = Mode.COUNT if mode == Mode.COUNT else Mode.LIMIT
        self._observe, self._clock = observe, clock
        self._untold, self._told_at = 0, float("-inf")

    async def admit(
        self, images: NDArray[np.float32], manifest: Manifest, *, labels_only: bool, caller: Caller | None
    ) -> Admission | None:
        """Returns when images may be answered.

        Args:
            images: As the model takes them, `(batch, channels, height, width)`.
            manifest: Of the model.
            labels_only: Whether labels alone are asked for.
            caller: Who asks; None where it is known to have no license.

        Returns:
            What `hear` is to be given with the answer; None where nothing was counted.

        Raises:
            SimilarQueriesError: If one of them is a near copy of too many others.
            KeylockError: If so, and a license was presented that is not good: what is wrong with it.
        """
        guard = self._guard
        if guard is None:
            return None
        fault = None
        try:
            if caller is not None and await self._is_exempt(caller, manifest):
                return None
        except KeylockError as error:
            fault = error
        admission = await self._pool.run(
            lambda _: guard.admit(**seen(images, manifest.preprocessing), labels_only=labels_only, mode=self._mode)
        )
        if admission.admitted:
            if admission.beyond:
                self._observe("would_be_refused", len(images))
                return None
            self._observe("near_copy", admission.near_copies)
            self._observe("identical", admission.identical)
            self._observe("other", len(images) - admission.near_copies - admission.identical)
            return admission
        self._observe("refused", len(images))
        self._tell(len(images))
        raise fault or SimilarQueriesError(
            row=admission.row or 0, retry_after_s=admission.retry_after_s, labels_left=admission.labels_left
        )

    def hear(self, admission: Admission | None, logits: NDArray[np.float32]) -> None:
        """Charges what is about to be answered. Not to be called for what is not answered.

        It takes a tenth of a millisecond, and less than a way to another thread and back.

        Args:
            admission: What `admit` returned.
            logits: What is answered, or whose label is `(batch, classes)`.
        """
        guard = self._guard
        if guard is not None and admission is not None and (any(admission.charged) or any(admission.begun)):
            guard.hear(admission, logits.argmax(axis=1))

    async def _is_exempt(self, caller: Caller, manifest: Manifest) -> bool:
        """Tells whether a caller of predictions has a license for near copies.

        Raises:
            LicenseError: If a license was presented that is not good, or not for this model.
            ServiceError: If the store cannot be used.
        """
        try:
            if bearer_token(caller.metadata) is None:
                return False
            identity = await asyncio.to_thread(self._authenticator.require, caller)
        except LicenseError as error:
            # Predictions need no license: what is none may be meant for somebody on the way.
            if error.reason is LicenseReason.MALFORMED:
                return False
            raise
        check(identity.license, model_name=manifest.name, model_digest=manifest.model_digest)
        return identity.license.similar_queries

    async def status(self) -> pb.QueryGuard:
        """Describes the guard to operators."""
        guard = self._guard
        if guard is None:
            return pb.QueryGuard(mode="off")
        known = await asyncio.to_thread(guard.status)
        return pb.QueryGuard(
            mode=self._mode.value,
            images=known.seen,
            near_copies=known.near_copies,
            identical=known.identical,
            refused=known.refused,
            pictures=known.entries,
            memory_bytes=known.memory_bytes,
            window_s=guard.limits.window_s,
        )

    def _tell(self, images: int) -> None:
        """Logs refusals, once in a while; the line of each call is logged anyway."""
        self._untold += images
        if self._clock() - self._told_at >= _TOLD_EVERY_S:
            _LOG.warning("the query guard refused %d near copies of recent pictures", self._untold)
            self._untold, self._told_at = 0, self._clock()


def seen(images: NDArray[np.float32], preprocessing: Preprocessing) -> dict[str, NDArray[np.float32]]:
    """Returns what a model looks at as the guard takes it: the arguments `pixels`, `scale` and `shift` of `admit`.

    Nothing is copied unless a value is far from those of pictures.

    Args:
        images: Preprocessed, `(batch, channels, height, width)`.
        preprocessing: That of the model.
    """
    mean, std = (np.asarray(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    with np.errstate(over="ignore"):
        lowest, highest = (each(images, axis=(0, 2, 3)) * std + mean for each in (np.min, np.max))
    if lowest.min() >= _LOWEST and highest.max() <= _HIGHEST:
        return {"pixels": images.transpose(0, 2, 3, 1), "scale": std, "shift": mean}
    return {"pixels": _squeezed(images, mean, std)}


def _squeezed(images: NDArray[np.float32], mean: NDArray[np.float32], std: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns pixels around 0 to 1 of tensors with any values, float32 `(batch, height, width, channels)`.

    Values that no picture has are taken to their logarithms, so that pictures that differ in them go on to differ, and
    nothing overflows.
    """
    with np.errstate(over="ignore"):
        pixels = images.transpose(0, 2, 3, 1) * std + mean
    above = np.log(np.clip(pixels / _HIGHEST, 1, _LARGEST))
    below = np.log1p(np.clip(_LOWEST - pixels, 0, _LARGEST))
    squeezed: NDArray[np.float32] = np.clip(pixels, _LOWEST, _HIGHEST) + above - below
    return squeezed
