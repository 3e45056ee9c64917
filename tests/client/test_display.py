"""Results show themselves: as arrays to NumPy, as pictures and pages to notebooks, in a window or a file elsewhere."""

import base64
import io
import re
import sys
import types
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageShow

from keylock.errors import KeylockError
from keylock_client import Client

LABEL = '<script>alert("x")</script>\x1b[2J'


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
def explanation(server, picture, token):
    with Client(server.target, license=token) as client:
        return client.explain(picture)


@pytest.fixture
def no_display(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


class _Page(HTMLParser):
    """Collects the tags of a fragment, and what they refer to; refuses tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self._open = [], [], "", []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *one) for one in attributes]
        if tag not in ("img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def images(self):
        sources = [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]
        return [Image.open(io.BytesIO(base64.b64decode(one.removeprefix("data:image/png;base64,")))) for one in sources]


def test_numpy_takes_an_explanation_for_its_map(explanation):
    assert np.asarray(explanation) is explanation.map
    copied = np.array(explanation)
    copied[0, 0] = 7
    assert explanation.map[0, 0] != 7
    np.testing.assert_array_equal(np.asarray(explanation, dtype=np.float64), explanation.map.astype(np.float64))
    assert np.asarray(explanation, dtype="float16").dtype == np.float16
    assert np.stack([explanation, explanation]).shape == (2, 2, 3)
    assert np.max(explanation) == 5


def test_copying_is_as_numpy_asks_for_it(explanation):
    assert explanation.__array__(copy=False) is explanation.map
    assert explanation.__array__() is explanation.map
    assert explanation.__array__(np.float32, copy=True) is not explanation.map
    assert explanation.__array__(copy=True).flags.writeable
    with pytest.raises(ValueError, match="float64 without a copy"):
        explanation.__array__(np.float64, copy=False)
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        with pytest.raises(ValueError, match="without a copy"):
            np.asarray(explanation, dtype=np.int8, copy=False)


def test_a_small_image_becomes_a_picture_that_can_be_seen(explanation):
    picture = Image.open(io.BytesIO(explanation._repr_png_()))
    assert picture.size == explanation.overlay().size == (256, 256)
    assert explanation.overlay(scale=1).size == (32, 32)


def test_a_large_image_becomes_a_picture_that_fits_a_notebook(server, token, png):
    with Client(server.target, license=token) as client:
        explanation = client.explain(png(2000, 1000))
    assert Image.open(io.BytesIO(explanation._repr_png_())).size == (768, 384)
    assert explanation.overlay().size == (2000, 1000)


def test_a_page_shows_image_overlay_and_prediction(explanation):
    page = _Page(explanation._repr_html_())
    image, hot = page.images()
    assert image.size == hot.size == (256, 256)
    assert image.tobytes() != hot.tobytes()
    for said in ("keyed map", "star", "grad_cam", "shapes"):
        assert said in page.text


def test_a_page_needs_nothing_from_outside_and_runs_nothing(explanation):
    page = _Page(explanation._repr_html_())
    assert not {"script", "style", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?:|url\(|@import|\bon\w+=", explanation._repr_html_().replace("base64,", ""))
    assert all(value.startswith("data:image/png") for _, name, value in page.attributes if name in ("src", "href"))


def test_a_page_says_that_a_decoy_explains_nothing(server, picture):
    with Client(server.target) as client:
        page = _Page(client.explain(picture)._repr_html_())
    assert "decoy" in page.text
    assert "explains nothing" in page.text


def test_labels_of_a_server_are_shown_and_do_nothing(server, picture, toolbox):
    plain = server.answers["Explain"]

    def explain(request, context):
        answer = plain(request, context)
        for score in (answer.results[0].prediction, answer.results[0].prediction.top[0], answer.results[0].target):
            score.label = LABEL
        answer.results[0].explainer.name = LABEL
        answer.model.name = LABEL
        return answer

    described = server.answers["GetModel"]

    def describe(request, context):
        answer = described(request, context)
        answer.classes[2] = LABEL
        return answer

    server.answers["Explain"], server.answers["GetModel"] = explain, describe
    with Client(server.target) as client:
        result = client.explain(picture)
    for html in (result._repr_html_(), result.prediction._repr_html_()):
        page = _Page(html)
        assert "script" not in page.tags
        assert r'<script>alert("x")</script>\x1b[2J' in page.text
        assert "\x1b" not in html
    assert "\x1b" not in repr(result) + repr(result.prediction)


def test_predictions_show_their_classes(server, picture):
    with Client(server.target) as client:
        page = _Page(client.predict(picture)._repr_html_())
        assert "square" in page.text
        assert "84.4%" in page.text
        assert repr(client.model()) == (
            "<ModelInfo 'shapes' sha256:0123456789ab, 3 classes, grad_cam, keyed maps with a license>"
        )


def test_an_image_that_cannot_be_read_here_is_shown_by_its_map_alone(server):
    with Client(server.target) as client:
        result = client.explain(b"the server could read it, this machine cannot")
    assert len(_Page(result._repr_html_()).images()) == 1
    assert Image.open(io.BytesIO(result._repr_png_())).size == (192, 128)


def test_without_a_display_the_picture_is_in_a_file_that_is_named(explanation, no_display, tmp_path, capsys):
    path = explanation.show()
    assert path.parent == tmp_path
    assert str(path) in capsys.readouterr().err
    with Image.open(path) as picture:
        assert picture.size == (256, 256)


def test_without_a_display_and_a_place_to_write_there_is_one_sentence(explanation, no_display, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(KeylockError, match=r"no display .* write it where you want with save"):
        explanation.show()


def test_with_a_display_the_viewer_of_the_system_shows_it(explanation, monkeypatch, capsys):
    shown = []

    class Viewer(ImageShow.Viewer):
        def show(self, image, **options):
            shown.append(image)
            return 1

    monkeypatch.setattr(ImageShow, "_viewers", [Viewer()])
    monkeypatch.setenv("DISPLAY", ":0")
    assert explanation.show() is None
    assert shown[0].size == (256, 256)
    assert capsys.readouterr().err == ""


def test_a_notebook_shows_the_explanation_itself(explanation, monkeypatch):
    shown = []
    notebook, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    notebook.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    display.display = shown.append
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    assert explanation.show() is None
    assert shown == [explanation]


def test_results_of_both_clients_show_themselves(connect, server, picture, token):
    result = connect(server.target, license=token).explain([picture, picture])[1]
    assert np.asarray(result).shape == (2, 3)
    assert len(_Page(result._repr_html_()).images()) == 2


def test_a_failed_image_of_a_stream_shows_why(server, picture, token):
    from keylock.errors import ImageError
    from keylock_client import Explained, Progress

    failed = Explained(3, "cat<1>.jpg", ImageError("it is <damaged>"), Progress(4, 1, None), None)
    assert failed._repr_png_() is None
    page = _Page(failed._repr_html_())
    assert "cat<1>.jpg" in page.text
    assert "it is <damaged>" in page.text
    with pytest.raises(ImageError):
        np.asarray(failed)
    with pytest.raises(ImageError):
        failed.show()
    with Client(server.target, license=token) as client:
        explanation = client.explain(picture)
    good = Explained(0, "cat.jpg", None, Progress(1, 0, None), explanation)
    assert np.asarray(good) is explanation.map
    assert good._repr_html_() == explanation._repr_html_()
    assert good._repr_png_() == explanation._repr_png_()
