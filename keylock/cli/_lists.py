"""Lists with commas, as options take them."""

__all__ = ["split_list"]


def split_list(text: str | None) -> tuple[str, ...]:
    """Return the parts of a list with commas, each once, without spaces around them; none of None or empty ones."""
    return tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))
