"""Reports as one HTML page that needs nothing beside itself: the frame, tables and pictures that reports share."""

import base64
import io
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["cell", "definitions", "page", "picture", "table"]


def page(title: str, sections: Iterable[str], *, css: str = "") -> str:
    """Return a whole page.

    Args:
        title: In plain text.
        sections: HTML, one below the other.
        css: Added to the style that all reports share.
    """
    shared = files("keylock").joinpath("pages.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{shared}{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def cell(text: str, *, below: str = "", kind: str = "") -> str:
    """Return a cell of a table, with small text below it and a class."""
    small = f"<small>{escape(below)}</small>" if below else ""
    shown = f' class="{kind}"' if kind else ""
    return f"<td{shown}>{escape(text)}{small}</td>"


def table(header: Iterable[str], rows: Iterable[Iterable[str]], *, kind: str = "") -> str:
    """Return a table.

    Args:
        header: Plain text.
        rows: Cells: those that `cell` made, or plain text.
        kind: A class for the table.
    """
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    body = "".join(
        "<tr>" + "".join(one if one.startswith("<td") else f"<td>{escape(one)}</td>" for one in row) + "</tr>"
        for row in rows
    )
    shown = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{shown}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    """Return names with their values; those without one are left out."""
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows if text)
    return f"<dl>{listed}</dl>"


def picture(image: "Image.Image", text: str, kind: str = "") -> str:
    """Return an image with what it shows in words, embedded as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    shown = f' class="{kind}"' if kind else ""
    return f'<img{shown} alt="{escape(text)}" src="data:image/png;base64,{data}">'
