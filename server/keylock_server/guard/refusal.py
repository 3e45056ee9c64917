"""What a caller is told whose pictures are too many near copies of one another."""

from keylock.errors import ServiceError

__all__ = ["SimilarQueriesError"]


class SimilarQueriesError(ServiceError):
    """A picture is a near copy of others, and no more of these are answered for now.

    Attributes:
        row: Which image of the request it is, from 0.
        retry_after_s: When to come again, in seconds.
        labels_left: Whether the request would be answered if it asked for labels alone.
    """

    def __init__(self, *, row: int, retry_after_s: float, labels_left: bool) -> None:
        self.row, self.retry_after_s, self.labels_left = row, retry_after_s, labels_left
        ways = "ask for the output label alone, " if labels_left else ""
        super().__init__(
            f"images[{row}] is nearly the same as others that were asked about lately, and no more are answered: "
            f"{ways}come again in {_in_words(retry_after_s)}, or get a license for similar queries and "
            "send one as 'authorization: Bearer ...'"
        )

    def at(self, row: int) -> "SimilarQueriesError":
        """Returns the same about another image of the request."""
        return SimilarQueriesError(row=row, retry_after_s=self.retry_after_s, labels_left=self.labels_left)


def _in_words(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
