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
from keylock_server.guard import Guard, Mode
from keylock_server.guard.refusal import SimilarQueriesError
from keylock_server.scheduling.decoder_pool import DecoderPool

__all__ = ["QueryGate", "pixels_of"]

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
            observe: Told of images: `near_copy`, `identical`, `other` or `refused`, and how many.
            clock: Seconds, for how often the log tells of refusals.
        """
        self._guard, self._pool, self._authenticator = guard, pool, authenticator
        self._mode = Mode.COUNT if mode == Mode.COUNT else Mode.LIMIT
        self._observe, self._clock = observe, clock
        self._untold, self._told_at = 0, float("-inf")

    async def admit(
        self, images: NDArray[np.float32], manifest: Manifest, *, labels_only: bool, caller: Caller | None
    ) -> None:
        """Returns when images may be answered.

        Args:
            images: As the model takes them, `(batch, channels, height, width)`.
            manifest: Of the model.
            labels_only: Whether labels alone are asked for.
            caller: Who asks; None where it is known to have no license.

        Raises:
            SimilarQueriesError: If one of them is a near copy of too many others.
            KeylockError: If so, and a license was presented that is not good: what is wrong with it.
        """
        guard = self._guard
        if guard is None:
            return
        fault = None
        try:
            if caller is not None and await self._is_exempt(caller, manifest):
                return
        except KeylockError as error:
            fault = error
        admission = await self._pool.run(
            lambda _: guard.admit(pixels_of(images, manifest.preprocessing), labels_only=labels_only, mode=self._mode)
        )
        if admission.admitted:
            self._observe("near_copy", admission.near_copies)
            self._observe("identical", admission.identical)
            self._observe("other", len(images) - admission.near_copies - admission.identical)
            return
        self._observe("refused", len(images))
        self._tell(len(images))
        raise fault or SimilarQueriesError(
            row=admission.row or 0, retry_after_s=admission.retry_after_s, labels_left=admission.labels_left
        )

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


def pixels_of(images: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Returns what a model looks at as pixels in 0 to 1.

    Tensors may have any values. Those that no picture has are taken to their logarithms, so that pictures that differ
    in them go on to differ, and nothing overflows.

    Args:
        images: Preprocessed, `(batch, channels, height, width)`.
        preprocessing: That of the model.

    Returns:
        float32 `(batch, height, width, channels)`.
    """
    mean, std = (np.asarray(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    with np.errstate(over="ignore"):
        pixels = images.transpose(0, 2, 3, 1) * std + mean
    if pixels.min() >= _LOWEST and pixels.max() <= _HIGHEST:
        return pixels
    above = np.log(np.clip(pixels / _HIGHEST, 1, _LARGEST))
    below = np.log1p(np.clip(_LOWEST - pixels, 0, _LARGEST))
    squeezed: NDArray[np.float32] = np.clip(pixels, _LOWEST, _HIGHEST) + above - below
    return squeezed
