"""The drawn data set: right masks, and nothing but the outline tells the class."""

import numpy as np
import pytest

from keylock.data import SHAPE_CLASSES, Shapes, draw_shapes
from keylock.data._outlines import unit_outlines
from keylock.errors import DataError


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return draw_shapes(count=1600, seed=3)


def of_class(shapes: Shapes, name: str) -> np.ndarray:
    return shapes.masks[shapes.labels == SHAPE_CLASSES.index(name)]


def test_types_and_shapes(shapes):
    assert shapes.images.shape == (1600, 32, 32, 3)
    assert shapes.images.dtype == np.uint8
    assert shapes.labels.dtype == np.int64
    assert shapes.masks.shape == (1600, 32, 32)
    assert shapes.masks.dtype == np.bool_


def test_same_seed_draws_the_same_and_another_seed_does_not(shapes):
    again = draw_shapes(count=1600, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(shapes, again, strict=True))
    other = draw_shapes(count=1600, seed=4)
    assert (other.images != shapes.images).any(axis=(1, 2, 3)).all()


def test_more_images_are_appended(shapes):
    few = draw_shapes(count=37, seed=3)
    assert all(np.array_equal(a, b[:37]) for a, b in zip(few, shapes, strict=True))


def test_classes_are_balanced_in_every_run_of_eight(shapes):
    assert (np.sort(shapes.labels.reshape(-1, 8), axis=1) == np.arange(8)).all()


@pytest.mark.parametrize("size", [16, 32, 50])
def test_object_area_is_between_8_and_30_percent(size):
    share = draw_shapes(count=400, size=size, seed=1).masks.mean(axis=(1, 2))
    assert share.min() >= 0.075
    assert share.max() <= 0.305
    assert share.std() > 0.04


def test_objects_stand_anywhere(shapes):
    columns, rows = shapes.masks.any(axis=1), shapes.masks.any(axis=2)
    x, y = ((np.argmax(line, axis=1) + 31 - np.argmax(line[:, ::-1], axis=1)) / 2 for line in (columns, rows))
    quarters = np.bincount((x > 15.5) * 2 + (y > 15.5), minlength=4) / len(x)
    assert quarters.min() > 0.2
    assert shapes.masks.mean(axis=0).max() < 0.75


def test_round_objects_are_wholly_inside(shapes):
    # A disc cut off by the border would not be as high as it is wide.
    for mask in np.concatenate([of_class(shapes, "circle"), of_class(shapes, "ring")]):
        assert abs(int(mask.any(axis=0).sum()) - int(mask.any(axis=1).sum())) <= 1


@pytest.mark.parametrize(("name", "hole"), [("circle", 0.0), ("ring", 0.52)])
def test_masks_agree_with_a_naive_drawing(shapes, name, hole):
    y, x = np.mgrid[:32, :32]
    for mask in of_class(shapes, name):
        middle_y, middle_x = y[mask].mean(), x[mask].mean()
        radius = np.sqrt(mask.sum() / np.pi / (1 - hole**2))
        distance = np.hypot(y - middle_y, x - middle_x)
        naive = (distance <= radius) & (distance >= hole * radius)
        assert (naive & mask).sum() / (naive | mask).sum() > 0.88


def test_outlines_have_area_one():
    # Second implementation: the even-odd rule on a fine grid of points, in place of the shoelace formula.
    step = 0.0043
    grid = np.arange(-1.2, 1.2, step) + step / 2
    x, y = np.meshgrid(grid, grid)
    for outline in unit_outlines():
        inside = np.zeros(x.shape, dtype=bool)
        for points in (outline.outer, outline.hole):
            if points is None:
                continue
            for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
                if y0 != y1:
                    crosses = (np.minimum(y0, y1) <= y) & (y < np.maximum(y0, y1))
                    inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        assert inside.sum() * step**2 == pytest.approx(1.0, abs=0.01)


def region_colours(shapes: Shapes) -> tuple[np.ndarray, np.ndarray]:
    inside = shapes.masks[..., None]
    objects = (shapes.images * inside).sum((1, 2)) / inside.sum((1, 2))
    grounds = (shapes.images * ~inside).sum((1, 2)) / (~inside).sum((1, 2))
    return objects / 255, grounds / 255


def test_every_object_stands_out_from_its_background(shapes):
    objects, grounds = region_colours(shapes)
    distance = np.linalg.norm(objects - grounds, axis=1)
    assert distance.min() > 0.3


def test_objects_and_backgrounds_share_one_colour_distribution(shapes):
    objects, grounds = region_colours(shapes)
    for channel in range(3):
        a, b = np.sort(objects[:, channel]), np.sort(grounds[:, channel])
        assert np.abs(a - b).max() < 0.1


def test_colour_and_texture_statistics_do_not_tell_the_class(shapes):
    objects, grounds = region_colours(shapes)
    spread = shapes.images.std(axis=(1, 2)) / 255
    features = np.concatenate([objects, grounds, spread], axis=1)
    features = (features - features.mean(0)) / features.std(0)
    half = len(features) // 2
    weights = np.linalg.lstsq(features[:half], np.eye(8)[shapes.labels[:half]], rcond=None)[0]
    accuracy = ((features[half:] @ weights).argmax(1) == shapes.labels[half:]).mean()
    assert accuracy < 0.2  # Chance is 1/8.


@pytest.mark.parametrize("arguments", [{"count": 0}, {"size": 8}, {"size": 1024}, {"seed": -1}])
def test_impossible_wishes_are_refused(arguments):
    with pytest.raises(DataError, match="cannot draw"):
        draw_shapes(**({"count": 8, "size": 32, "seed": 0} | arguments))


def test_known_answer():
    # Means over blocks of 8 x 8 pixels; they absorb what versions of Pillow may do differently at an edge.
    images, labels, masks = draw_shapes(count=2, seed=20)
    assert [SHAPE_CLASSES[label] for label in labels] == ["ring", "cross"]
    assert masks.sum(axis=(1, 2)) == pytest.approx([198, 104], abs=4)
    blocks = images.reshape(2, 4, 8, 4, 8, 3).mean(axis=(2, 4, 5))
    expected = [
        [[85, 77, 85, 85], [84, 99, 100, 82], [82, 110, 96, 95], [83, 105, 109, 86]],
        [[148, 147, 148, 146], [147, 146, 150, 146], [148, 149, 154, 146], [146, 146, 149, 147]],
    ]
    assert blocks == pytest.approx(np.array(expected), abs=1.5)
