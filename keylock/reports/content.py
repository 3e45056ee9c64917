"""What pages show: tables, cards and pictures, as plain text and numbers that templates turn into HTML."""

import base64
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Card", "Cell", "Picture", "Table", "embed"]


class Card(NamedTuple):
    """A number that stands out.

    Attributes:
        value: The number.
        text: What it is.
        kind: A class for its looks: `bad` or none.
    """

    value: str
    text: str
    kind: str = ""


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: What stands in it.
        below: In small letters below it.
        kind: Classes for its looks.
    """

    text: str
    below: str = ""
    kind: str = ""


class Table(NamedTuple):
    """A table; the first cell of every row names the row.

    Attributes:
        label: What it is about, for those who hear the page.
        header: Titles of the columns.
        rows: Cells, as many as there are titles.
        kind: A class for its looks.
    """

    label: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    kind: str = ""

    @classmethod
    def of(cls, label: str, header: Iterable[str], rows: Iterable[Iterable[Cell | str]], *, kind: str = "") -> "Table":
        """Make a table of cells and of plain texts."""
        cells = (tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)
        return cls(label, tuple(header), tuple(cells), kind)


class Picture(NamedTuple):
    """An embedded picture.

    Attributes:
        source: Its address, which holds all of it.
        alt: What it shows, in words.
        caption: Below it.
        kind: A class for its looks.
        caption_kind: A class for the looks of the caption.
    """

    source: str
    alt: str
    caption: str = ""
    kind: str = ""
    caption_kind: str = ""


def embed(image: "Image.Image", alt: str, *, caption: str = "", kind: str = "", caption_kind: str = "") -> Picture:
    """Return an image as part of a page, as PNG.

    Args:
        image: The image.
        alt: What it shows, in words.
        caption: Below it.
        kind: A class for its looks.
        caption_kind: A class for the looks of the caption.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/png;base64,{data}", alt, caption, kind, caption_kind)
