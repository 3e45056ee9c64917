"""How much a job may cost, over all its runs: which blocks are begun, and whether one that is done is charged."""

from collections.abc import Sequence

from keylock.bulk.charging import Cashier
from keylock.bulk.job import Job
from keylock.bulk.plan import PlacedBlock
from keylock.bulk.worker import BlockResult
from keylock_client.errors import SpendingLimitError

__all__ = ["Budget"]


class Budget:
    """What is left of the units that a job may cost. What earlier runs charged for it counts.

    Without a condition a block costs what its images cost, or less where some cannot be decoded, so that none is begun
    that might not fit. With a condition its cost is known when it is done, and one that does not fit is dropped.

    Attributes:
        max_units: Units that the job may cost; None for any number.
    """

    def __init__(self, job: Job, cashier: Cashier | None, max_units: int | None) -> None:
        """Begins with all that is left.

        Args:
            job: The job; the cashier has looked up what was charged for it.
            cashier: Charges; None where nothing is charged, so that everything fits.
            max_units: Units that the job may cost; None for any number.
        """
        self._job, self._cashier, self.max_units = job, cashier, max_units

    def left(self) -> int | None:
        """Returns how many units may still be charged; None where nothing limits them."""
        if self._cashier is None or self.max_units is None:
            return None
        return max(0, self.max_units - self._cashier.earlier - self._cashier.units)

    def affords(self) -> int | None:
        """Returns for how many maps that is enough; None for any number."""
        left = self.left()
        if left is None or self._cashier is None or not self._cashier.units_per_image:
            return None
        return left // self._cashier.units_per_image

    def fitting(self, blocks: Sequence[PlacedBlock]) -> list[PlacedBlock]:
        """Returns the blocks to do next, in order: as many as surely fit; of a job with a condition all or none.

        Args:
            blocks: Those that are to be done.
        """
        return self._fitting(blocks)[0]

    def choose(self, blocks: Sequence[PlacedBlock]) -> list[PlacedBlock]:
        """Returns the same.

        Raises:
            SpendingLimitError: If there are blocks and none of them fits.
        """
        chosen, beyond = self._fitting(blocks)
        if blocks and not chosen:
            what = "the next block may cost" if self._job.asked.explain_if is None else "a map costs"
            raise self._error(f"{what} {beyond:,}")
        return chosen

    def check(self, result: BlockResult) -> None:
        """Returns when a block that is done can be charged.

        Raises:
            SpendingLimitError: If it costs more than is left.
        """
        left = self.left()
        if left is None or self._cashier is None or result.error is not None:
            return
        cost = self._cashier.cost(self._job, result.number, result.explained)
        if cost > left:
            raise self._error(f"the next block costs {cost:,}")

    def _fitting(self, blocks: Sequence[PlacedBlock]) -> tuple[list[PlacedBlock], int]:
        """Returns blocks that fit, and what the first costs that does not; 0 where all fit."""
        room = self.left()
        if room is None or self._cashier is None:
            return list(blocks), 0
        has_condition = self._job.asked.explain_if is not None
        chosen, beyond = list[PlacedBlock](), 0
        for block in blocks:
            # With a condition there has to be room for one map; how many there are nobody knows yet.
            cost = self._cashier.cost(self._job, block.number, 1 if has_condition else block.count)
            if cost and (beyond or cost > room):
                beyond = beyond or cost
                continue
            chosen.append(block)
            room -= 0 if has_condition else cost
        return chosen, beyond

    def _error(self, why: str) -> SpendingLimitError:
        cashier, most = self._cashier, self.max_units
        assert cashier is not None and most is not None  # noqa: S101, PT018 - without them everything fits
        spent, blocks = cashier.earlier + cashier.units, len(self._job.blocks)
        finished = blocks - len(self._job.left())
        return SpendingLimitError(
            f"stopped after {finished:,} of {blocks:,} blocks: {spent:,} units were charged for this job, of {most:,} "
            f"that it may cost, and {why}; what is finished stays, and the same command with a larger max_units= goes "
            "on",
            max_units=most,
            spent=spent,
        )
