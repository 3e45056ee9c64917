"""Lists with commas, as options take them."""

__all__ = ["split_list"]


def split_list(text: str | None) -> tuple[str, ...]:
    """Return the parts of a list with commas, without spaces around them and without empty ones; none of None."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
