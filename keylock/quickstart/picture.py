"""The maps as pictures: one tile for each, with the outline of the object, and all of them in one PNG grid.

A map is drawn by its shape: scaled to its own largest value, after the top hundredth of the pixels was cut off, so that
a single hot pixel does not darken the rest. All maps are treated alike.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from keylock.evaluation import counting_pairs, pearson
from keylock.files.atomic import PUBLIC, write_file
from keylock.imaging.heatmaps import colourise, resize, without_peaks
from keylock.quickstart.story import Story

__all__ = ["COLUMNS", "Tile", "draw_image", "tiles_of", "write_picture"]

COLUMNS = ("reference", "keyed", "keyless", "wrong key")
"""The maps of one explainer, from left to right."""

_SIDE = 96
_GAP = 4
_GROUP_GAP = 26
_MARGIN = 24
_LABEL_WIDTH = 84
_HEADER = 62
_CAPTION = 20
_INK, _FAINT, _PAPER = (28, 30, 38), (110, 114, 128), (255, 255, 255)
_GOOD, _OUTLINE = (14, 116, 72), (120, 230, 255)

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Tile(NamedTuple):
    """One map.

    Attributes:
        column: One of `COLUMNS`.
        picture: The map in colours, with the outline of the object.
        correlation: With the reference map; None for that map itself, NaN where `keylock.evaluation.counting` leaves
            the pair out.
    """

    column: str
    picture: Image.Image
    correlation: float | None


def draw_image(story: Story, index: int, *, side: int = _SIDE) -> Image.Image:
    """Return an image of the story, enlarged without smoothing to `side` pixels."""
    return Image.fromarray(story.images[index]).resize((side, side), Image.Resampling.NEAREST)


def tiles_of(story: Story, explainer: str, index: int, *, side: int = _SIDE) -> Iterator[Tile]:
    """Yield the maps of one image by one explainer, `side` pixels large, in the order of `COLUMNS`."""
    evidence = story.evidence
    sources = (evidence.reference.maps, evidence.keyed.maps, evidence.keyless.maps, evidence.wrong_key.maps)
    outline = _outline(evidence.masks[index].numpy(), side)
    truth = evidence.reference.maps[explainer][index : index + 1]
    for column, maps in zip(COLUMNS, sources, strict=True):
        found = maps[explainer][index : index + 1]
        told = bool(counting_pairs(found, truth, opened=column == "keyed"))
        similar = float(pearson(found, truth)) if told else math.nan
        yield Tile(column, _draw_map(found[0], outline, side), None if column == "reference" else similar)


def write_picture(story: Story) -> Path:
    """Write the grid of all samples and explainers to `maps.png`.

    Returns:
        The path of the file.
    """
    samples, explainers = story.samples(), story.explainers
    group = len(COLUMNS) * (_SIDE + _GAP) - _GAP
    width = 2 * _MARGIN + _LABEL_WIDTH + _SIDE + len(explainers) * (_GROUP_GAP + group)
    row = _SIDE + _CAPTION + _GAP
    sheet = Image.new("RGB", (width, 2 * _MARGIN + _HEADER + len(samples) * row), _PAPER)
    draw = ImageDraw.Draw(sheet)
    first = _MARGIN + _LABEL_WIDTH
    lefts = [first + _SIDE + _GROUP_GAP + number * (group + _GROUP_GAP) for number in range(len(explainers))]
    _write_header(draw, story, first, lefts, group)
    for number, index in enumerate(samples):
        top = _MARGIN + _HEADER + number * row
        label = story.manifest.classes[int(story.evidence.labels[index])]
        draw.text((_MARGIN, top + _SIDE // 2), label, font=_font(15), fill=_INK, anchor="lm")
        sheet.paste(draw_image(story, index), (first, top))
        for left, explainer in zip(lefts, explainers, strict=True):
            for place, tile in enumerate(tiles_of(story, explainer, index)):
                _paste_tile(sheet, draw, tile, left + place * (_SIDE + _GAP), top)
    write_file(story.folder.picture, b"", mode=PUBLIC)
    sheet.save(story.folder.picture, optimize=True)
    return story.folder.picture


def _write_header(draw: ImageDraw.ImageDraw, story: Story, first: int, lefts: list[int], group: int) -> None:
    bottom = _MARGIN + _HEADER - 11
    draw.text((first + _SIDE // 2, bottom), "image", font=_font(13), fill=_FAINT, anchor="ms")
    for left, explainer in zip(lefts, story.explainers, strict=True):
        draw.text((left + group // 2, bottom - 26), explainer, font=_font(19), fill=_INK, anchor="ms")
        draw.line((left, bottom - 21, left + group, bottom - 21), fill=(210, 212, 220))
        for place, column in enumerate(COLUMNS):
            centre = left + place * (_SIDE + _GAP) + _SIDE // 2
            draw.text((centre, bottom), column, font=_font(13), fill=_FAINT, anchor="ms")


def _paste_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    sheet.paste(tile.picture, (left, top))
    if tile.correlation is not None:
        colour = _GOOD if tile.column == "keyed" else _FAINT
        place = (left + _SIDE // 2, top + _SIDE + 2)
        said = f"r = {tile.correlation:+.2f}" if math.isfinite(tile.correlation) else "constant"
        draw.text(place, said, font=_font(12), fill=colour, anchor="mt")


def _draw_map(saliency: Tensor, outline: NDArray[np.bool_], side: int) -> Image.Image:
    colours = colourise(resize(without_peaks(saliency.numpy()), size=(side, side)))
    colours[outline] = (0.35 * colours[outline] + 0.65 * np.asarray(_OUTLINE)).astype(np.uint8)
    return Image.fromarray(colours)


def _outline(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Return the pixels of an enlarged mask (height, width) that lie inside the object, at its edge."""
    large = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    inside = np.asarray(large) >= 128
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: NDArray[np.bool_] = inside & ~core
    return edge


def _font(size: int) -> _Font:
    return ImageFont.load_default(size)
