"""How results show themselves to a person: as HTML and PNG in a notebook, in a window elsewhere.

The HTML is a fragment without anything from outside. It takes its colours from the page that it stands on, so that it
fits light and dark ones, and is styled in place, because notebooks remove style sheets from what they do not trust.
"""

import base64
import io
import os
import sys
import tempfile
from collections.abc import Iterable
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from keylock.errors import InputError
from keylock.text.printable import printable

if TYPE_CHECKING:
    from keylock_client.explanations import Explanation
    from keylock_client.results import Prediction

__all__ = ["explanation_html", "failure_html", "fitted", "png", "prediction_html", "show", "unexplained_html"]

# The longer side of a picture in a notebook, in pixels.
_LONGEST = 768
_SHOWN = 240
_FRAME = "display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start;font-size:14px;line-height:1.5;color:inherit"
_FAINT = "opacity:.72"
_BADGE = "display:inline-block;padding:0 8px;border-radius:9px;color:#fff;font-weight:600"
# Either is read well under white letters, and seen well on white and on black.
_GOOD, _WARNING = "#1a7f4b", "#a8480f"


def fitted(picture: Image.Image) -> Image.Image:
    """Return a picture, made smaller where it is larger than a notebook shows it."""
    if max(picture.size) > _LONGEST:
        picture = picture.copy()
        picture.thumbnail((_LONGEST, _LONGEST))
    return picture


def png(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def prediction_html(prediction: "Prediction") -> str:
    """Return the most probable classes as bars."""
    return f'<div class="keylock" style="{_FRAME}">{_bars(prediction)}</div>'


def explanation_html(explanation: "Explanation", pictures: Iterable[tuple[Image.Image, str]]) -> str:
    """Return pictures of an explanation beside what it says.

    Args:
        explanation: What is shown.
        pictures: Each with what it shows, in words.
    """
    shown = "".join(_picture(picture, text) for picture, text in pictures)
    said = _badge("keyed map", _GOOD) if explanation.keyed else _badge("decoy", _WARNING)
    remark = "" if explanation.keyed else f'<div style="{_FAINT}">It explains nothing: true maps take a license.</div>'
    height, width = explanation.map.shape
    facts = (
        f"{_text(explanation.explainer.name)}, {height} × {width}, for {_text(explanation.target.label)}"
        f"<br>model {_text(explanation.model.name)}"
    )
    return (
        f'<div class="keylock" style="{_FRAME}">{shown}<div style="min-width:220px">{said}{remark}'
        f'<div style="{_FAINT};margin:2px 0 8px">{facts}</div>{_bars(explanation.prediction)}</div></div>'
    )


def unexplained_html(prediction: "Prediction") -> str:
    """Return a prediction that met no condition, so that there is no map."""
    said = f'{_badge("not explained", _GOOD)}<div style="{_FAINT}">The prediction does not meet explain_if.</div>'
    return f'<div class="keylock" style="{_FRAME}"><div style="min-width:220px">{said}{_bars(prediction)}</div></div>'


def failure_html(name: str, why: str) -> str:
    """Return which image was not explained, and why."""
    return (
        f'<div class="keylock" style="{_FRAME}"><div>{_badge("not explained", _WARNING)} <b>{_text(name)}</b>'
        f'<div style="{_FAINT}">{_text(why)}</div></div></div>'
    )


def show(picture: Image.Image, result: object) -> Path | None:
    """Show a result in a notebook, or its picture in the viewer of the system.

    Args:
        picture: Of the result.
        result: What a notebook shows.

    Returns:
        The file that the picture was written to, where there is nothing to show it on; None elsewhere.

    Raises:
        InputError: There is no display, and the temporary file cannot be written either.
    """
    if _in_notebook():
        import_module("IPython.display").display(result)
        return None
    if _has_display():
        # It looks for viewers, and for IPython, when it is imported.
        from PIL import ImageShow

        if ImageShow.show(picture):
            return None
    try:
        handle, name = tempfile.mkstemp(prefix="keylock-", suffix=".png")
        with os.fdopen(handle, "wb") as file:
            picture.save(file, "PNG")
    except OSError as error:
        raise InputError(
            f"there is no display to show the picture on, and no temporary file can be written "
            f"({error.strerror or error}): write it where you want with save"
        ) from None
    print(f"no display here: the picture is in {name}", file=sys.stderr)  # noqa: T201 - asked for by a person
    return Path(name)


def _in_notebook() -> bool:
    """Whether a notebook runs this; the shell of IPython in a terminal has no kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _has_display() -> bool:
    if sys.platform in ("darwin", "win32"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _bars(prediction: "Prediction") -> str:
    rows = "".join(_bar(one.label, one.probability, first=not place) for place, one in enumerate(prediction.top))
    grid = "display:grid;grid-template-columns:fit-content(160px) 96px max-content;gap:2px 10px;align-items:center"
    return f'<div style="{grid}">{rows}</div>'


def _bar(label: str, probability: float, *, first: bool) -> str:
    weight = "font-weight:600" if first else "font-weight:400"
    filled = f"width:{100 * min(1.0, max(0.0, probability)):.1f}%;height:8px;border-radius:4px;background:currentColor"
    return (
        f'<span style="{weight};overflow-wrap:anywhere">{_text(label)}</span>'
        f'<span style="opacity:{".8" if first else ".45"}"><span style="display:block;{filled}"></span></span>'
        f'<span style="{weight};text-align:right;font-variant-numeric:tabular-nums">{probability:.1%}</span>'
    )


def _badge(text: str, colour: str) -> str:
    return f'<span style="{_BADGE};background:{colour}">{text}</span>'


def _picture(picture: Image.Image, text: str) -> str:
    data = base64.b64encode(png(picture)).decode("ascii")
    # Made smaller by the page and never larger; the whole picture is there for a page that is enlarged.
    style = f"display:block;max-width:min(100%,{_SHOWN}px);max-height:{_SHOWN}px;margin:0;border-radius:4px"
    words = _text(text)
    return f'<img style="{style}" alt="{words}" title="{words}" src="data:image/png;base64,{data}">'


def _text(text: str) -> str:
    return escape(printable(text))
