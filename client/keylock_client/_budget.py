"""How much a caller lets a call spend, at most. What is asked for counts as if all of it were charged."""

from keylock.errors import InputError
from keylock_client.charges import Usage
from keylock_client.errors import SpendingLimitError

__all__ = ["Budget", "check_max_units"]


def check_max_units(max_units: int | None) -> int | None:
    """Return how many units may be spent, or raise `InputError`."""
    if max_units is None or (isinstance(max_units, int) and not isinstance(max_units, bool) and max_units >= 0):
        return max_units
    raise InputError(f"max_units is a number of units, 0 or more, not {max_units!r}")


class Budget:
    """What is left of the units that may be spent. One thread may ask while another counts: numbers are assigned whole.

    Attributes:
        spent: Units that were charged, repeats left out.
        exhausted: Whether an image was left out, because it might not have fitted.
    """

    def __init__(self, max_units: int, units_per_image: int) -> None:
        """Begins with all of it.

        Args:
            max_units: How much may be spent.
            units_per_image: What an image costs.
        """
        self._max, self._each = max_units, units_per_image
        self.spent, self.exhausted = 0, False

    def check(self, images: int) -> None:
        """Return when a call about some images cannot be too much.

        Raises:
            SpendingLimitError: It may be.
        """
        if images * self._each > self._max:
            raise SpendingLimitError(
                f"{_number(images, 'image')} may cost {_number(images * self._each, 'unit')}, and at most {self._max} "
                "may be spent: nothing was asked; give fewer images, or allow more units (max_units=)",
                max_units=self._max,
                spent=0,
            )

    def has_room(self, under_way: int) -> bool | None:
        """Tell whether another image can be asked about; None where that is not known before others are answered.

        Args:
            under_way: Images that are asked about and not answered yet.
        """
        if self.spent + (under_way + 1) * self._each <= self._max:
            return True
        return None if under_way else False

    def count(self, usage: Usage, *, again: bool) -> None:
        """Count what an answer about one image has cost.

        Args:
            usage: What the answer says.
            again: Whether the image was sent before: what was charged then is a repeat now.
        """
        if usage.replayed and not again:
            return
        self.spent += usage.units
        # The price of the server may have been changed meanwhile.
        self._each = max(self._each, usage.units)

    def error(self, answered: int) -> SpendingLimitError:
        """Return the error for images that were left out, after some were answered."""
        left = max(0, self._max - self.spent)
        return SpendingLimitError(
            f"stopped after {_number(answered, 'image')}: {self.spent} of {_number(self._max, 'unit')} spent, {left} "
            f"left, and the next may cost {self._each}; what was answered stays, allow more (max_units=) to go on",
            max_units=self._max,
            spent=self.spent,
        )


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
