"""Explanations are frozen, show themselves briefly, draw themselves on their images and save themselves."""

import base64
import dataclasses
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from keylock.errors import InputError, UnknownNameError
from keylock_client import Client


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 255, (8, 14, 3), dtype=np.uint8)


@pytest.fixture
def explanation(server, picture, token):
    with Client(server.target, license=token) as client:
        return client.explain(picture)


def test_a_repr_says_what_matters_on_one_line(server, explanation, picture):
    assert repr(explanation) == "<Explanation 'star' (0.7500) by grad_cam, keyed map 2x3>"
    with Client(server.target) as client:
        assert "decoy map 2x3" in repr(client.explain(picture))
        assert repr(client.predict(picture)) == "Prediction('square', 0.8438)"
        assert repr(client.predict(picture).top[2]) == "ClassScore('circle', 0.0420)"


def test_results_are_frozen(explanation):
    for value, name in ((explanation, "keyed"), (explanation.prediction, "label"), (explanation.model, "digest")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, "other")
    with pytest.raises(ValueError, match="read-only"):
        explanation.map[0, 0] = 1


def test_an_explanation_can_be_pickled(explanation):
    again = pickle.loads(pickle.dumps(explanation))  # noqa: S301 - our own
    np.testing.assert_array_equal(again.map, explanation.map)
    assert again.prediction == explanation.prediction
    assert again.overlay(scale=1).size == (14, 8)


def test_an_overlay_colours_what_the_model_saw_of_the_image(explanation, picture):
    shown = explanation.overlay(scale=1)
    assert (shown.mode, shown.size) == ("RGB", (14, 8))
    changed = (np.asarray(shown) != picture).any(axis=2)
    # The model sees the middle square, and the map is hottest at its lower right.
    assert not changed[:, :3].any()
    assert not changed[:, 11:].any()
    assert changed[7, 10]


def test_an_overlay_can_be_drawn_on_another_copy_of_the_image(explanation, picture):
    large = Image.fromarray(picture).resize((140, 80))
    assert explanation.overlay(large).size == (280, 160)
    assert explanation.overlay(large, scale=1, colormap="grey", opacity=0).tobytes() == large.tobytes()
    with pytest.raises(UnknownNameError, match="ember"):
        explanation.overlay(colormap="jet")


def test_an_image_that_is_changed_later_does_not_change_the_overlay(explanation, picture):
    before = explanation.overlay().tobytes()
    picture[:] = 0
    assert explanation.overlay().tobytes() == before


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg", ".webp", ".bmp"])
def test_an_explanation_is_saved_as_a_picture(explanation, tmp_path, suffix):
    for scale, size in ((None, (266, 152)), (1, (14, 8)), (3, (42, 24))):
        path = explanation.save(tmp_path / f"why{suffix}", scale=scale)
        with Image.open(path) as image:
            assert image.size == size


def test_an_explanation_is_saved_as_an_array_and_as_json(explanation, tmp_path):
    np.testing.assert_array_equal(np.load(explanation.save(str(tmp_path / "why.npy"))), explanation.map)
    document = json.loads(explanation.save(tmp_path / "why.json").read_text("utf-8"))
    assert document == explanation.to_dict()
    values = np.frombuffer(base64.b64decode(document["map"]["base64"]), "<f4").reshape(document["map"]["shape"])
    np.testing.assert_array_equal(values, explanation.map)
    assert document["keyed"] is True
    assert document["prediction"]["label"] == "star"


def test_saving_what_or_where_cannot_be_is_one_sentence(explanation, tmp_path):
    with pytest.raises(InputError, match=r"end the name with one of \.png, .*\.json"):
        explanation.save(tmp_path / "why.txt")
    for name in ("gone/why.png", "gone/why.npy", "gone/why.json"):
        with pytest.raises(InputError, match=r"cannot write .*No such file or directory"):
            explanation.save(tmp_path / name)
