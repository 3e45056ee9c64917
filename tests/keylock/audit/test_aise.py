"""AISE: its search divides rectangles as DIRECT does, and its map shows where the evidence is."""

import numpy as np
import torch
from toys import Toy, draw

from keylock.audit.attacks.aise import AISE, smallest
from keylock.evaluation import pearson
from keylock.explainers import GradCAM


def test_the_search_closes_in_on_the_smallest_value():
    wanted = np.array([0.72, 0.31])
    places, values = smallest(lambda places: ((places - wanted) ** 2).sum(axis=1), 80)
    assert places.shape == (80, 2)
    assert np.abs(places[values.argmin()] - wanted).max() < 0.03
    # Half of the tries are nearer than chance would have them.
    assert np.median(values) < 0.1


def test_the_first_division_is_into_thirds_along_both_sides():
    places, _ = smallest(lambda places: np.ones(len(places)), 5)
    assert sorted(map(tuple, np.round(places, 6))) == sorted(
        [(0.5, 0.5), (0.833333, 0.5), (0.166667, 0.5), (0.5, 0.833333), (0.5, 0.166667)]
    )


def test_the_map_shows_the_evidence_whatever_order_images_come_in():
    model, (images, labels) = Toy().eval(), draw(4, 0)
    asked = AISE(iterations=30)
    found = asked.explain(model, images, labels)
    true = GradCAM("mix").explain(model, images, labels).maps
    small = torch.nn.functional.adaptive_avg_pool2d(found.maps.unsqueeze(1), 8).squeeze(1)
    assert float(pearson(small, true).mean()) > 0.6
    assert asked.passes((3, 16, 16)) == 180
    backwards = asked.explain(model, images.flip(0), labels.flip(0)).maps.flip(0)
    torch.testing.assert_close(found.maps, backwards)
