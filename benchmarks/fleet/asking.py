"""Callers that never try anything again, and count what fails."""

import asyncio
import random
import time
from collections import Counter

import grpc
from world import image

from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc, license_pb2, license_pb2_grpc

__all__ = ["Steady", "Usage"]

_CHANNEL = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]


class Steady:
    """Callers that ask once, at a pace, and count what fails.

    Attributes:
        outcomes: How calls ended.
        failures: Those that failed, in words.
        failed: When each of them began and ended, by the monotonic clock, in seconds.
        units: What the others cost.
    """

    def __init__(self, target: str, token: str | None, *, callers: int, pause_s: float, seed: int) -> None:
        """Make them; without a token they ask for decoys."""
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []
        self.failed: list[tuple[float, float]] = []
        self.units = 0
        self._target, self._metadata = target, () if token is None else (("authorization", f"Bearer {token}"),)
        self._callers, self._pause_s, self._seed = callers, pause_s, seed
        self._stopping = asyncio.Event()

    @property
    def failed_calls(self) -> int:
        """How many calls failed."""
        return sum(self.outcomes.values()) - self.outcomes["OK"]

    def stop(self) -> None:
        """Let the callers finish what they have begun."""
        self._stopping.set()

    async def run(self) -> None:
        """Call until told to stop."""
        await asyncio.gather(*(self._caller(number) for number in range(self._callers)))

    async def _caller(self, number: int) -> None:
        generator, place = random.Random(f"{self._seed}/{number}"), 0
        async with grpc.aio.insecure_channel(self._target, options=_CHANNEL) as channel:
            explain = explanation_pb2_grpc.ExplanationServiceStub(channel).Explain
            while not self._stopping.is_set():
                place += 1
                request = pb.ExplainRequest(request_id=f"s{number}-{place}", images=[image(number * 1000 + place % 50)])
                began = time.monotonic()
                try:
                    answer = await explain(request, timeout=20, metadata=self._metadata)
                except grpc.aio.AioRpcError as error:
                    self.outcomes[error.code().name] += 1
                    self.failed.append((began, time.monotonic()))
                    self.failures.append(f"{request.request_id}: {error.code().name}: {error.details()}"[:300])
                else:
                    self.outcomes["OK"] += 1
                    self.units += answer.usage.units
                await asyncio.sleep(self._pause_s * generator.uniform(0.5, 1.5))


class Usage:
    """Asks what a license has used, again and again, and notes when that fails and when it does not."""

    def __init__(self, target: str, token: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self.answered: list[float] = []
        self._target, self._metadata = target, (("authorization", f"Bearer {token}"),)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()

    async def run(self) -> None:
        """Ask until told to stop."""
        async with grpc.aio.insecure_channel(self._target, options=_CHANNEL) as channel:
            stub = license_pb2_grpc.LicenseServiceStub(channel)
            while not self._stopping.is_set():
                try:
                    await stub.GetUsage(license_pb2.GetUsageRequest(), timeout=20, metadata=self._metadata)
                except grpc.aio.AioRpcError as error:
                    self.outcomes[error.code().name] += 1
                else:
                    self.outcomes["OK"] += 1
                    self.answered.append(time.monotonic())
                await asyncio.sleep(0.05)
