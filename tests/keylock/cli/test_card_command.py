"""`keylock card`: what it writes is read by the Hub's own library, and says what the bundle says."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keylock.bundle import ExplainerEntry, Figure, KeyFile, open_bundle, write_bundle
from keylock.cli import main
from keylock.crypto.signing import Home
from keylock.trigger.keys import KeySeed

ABOUT = "24 test images of shapes"
FIGURES = (
    Figure(name="accuracy/reference", value=0.97, low=0.9, high=0.99, unit="fraction", about=ABOUT),
    Figure(name="accuracy/keyless", value=0.95, low=0.88, high=0.98, unit="fraction", about=ABOUT),
)

MAPS = (
    Figure(name="fidelity/grad_cam", value=0.9912, low=0.98, high=0.995, about=ABOUT),
    Figure(name="leakage/keyless/grad_cam", value=-0.31, low=-0.4, high=-0.2, about=ABOUT),
    Figure(name="chance/grad_cam", value=0.11, low=0.1, high=0.12, about=ABOUT),
)
GRAD_CAM = ExplainerEntry(name="grad_cam", graph="graphs/predict.onnx")


@pytest.fixture
def hub(monkeypatch):
    """The Hub's library, which is to ask nobody."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    return pytest.importorskip("huggingface_hub", reason="pip install '.[dev]' brings huggingface-hub")


@pytest.fixture
def vendor(tmp_path, monkeypatch, smallest_content):
    """A directory with an issuer; gives the function that writes a bundle there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "home"))
    home, seed = Home.open(tmp_path / "home"), KeySeed.generate()

    def write(path, **changes):
        content = smallest_content(seed)
        content = content.__class__(**{**vars(content), **changes})
        sealer = KeyFile.create(f"{path}.key")
        write_bundle(path, content, signing_key=home.signing_key(), seed=seed, sealer=sealer)

    return write


@pytest.fixture
def run(capsys):
    def call(line, *, code=0):
        assert main(line.split()) == code
        return capsys.readouterr()

    return call


def page():
    return Path("card/README.md").read_text("utf-8")


def test_the_hub_reads_the_header(vendor, run, hub):
    vendor("m.klb", figures=(*FIGURES, *MAPS), explainers=(GRAD_CAM,))
    run("card m.klb --license apache-2.0")
    card, figures = hub.ModelCard.load("card/README.md"), {figure.name: figure for figure in (*FIGURES, *MAPS)}
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "keylock", "image-classification")
    assert (data.model_name, data.metrics) == ("tiny", ["accuracy", "pearsonr"])
    assert {"onnx", "saliency", "grad_cam"} < set(data.tags)
    told = {(result.metric_type, result.metric_name): result.metric_value for result in data.eval_results}
    assert told == {
        ("accuracy", "accuracy, as everybody gets it"): figures["accuracy/keyless"].value,
        ("accuracy", "accuracy before locking"): figures["accuracy/reference"].value,
        ("pearsonr", "grad_cam: correlation of licensed maps with the true ones"): figures["fidelity/grad_cam"].value,
        (
            "pearsonr",
            "grad_cam: correlation of maps without a license with the true ones",
        ): figures["leakage/keyless/grad_cam"].value,
        (
            "pearsonr",
            "grad_cam: correlation of true maps of different images, for comparison",
        ): figures["chance/grad_cam"].value,
    }
    assert {(one.dataset_type, one.dataset_name, one.task_type) for one in data.eval_results} == {
        ("shapes", ABOUT, "image-classification")
    }
    # What the library makes of it again is what was read.
    assert hub.ModelCardData(**data.to_dict()).to_dict() == data.to_dict()
    assert card.text.lstrip().startswith("# tiny\n")


def test_figures_terms_and_limits_are_on_the_page(vendor, run):
    vendor("m.klb", figures=(*FIGURES, *MAPS), explainers=(GRAD_CAM,), classes=("a|b", "<script>"))
    said = run(
        "card m.klb --license other --license-name Acme --license-link https://acme.example/l --contact x@acme.example"
    )
    assert said.out == "card/README.md\n"
    text = page()
    for part in (
        "| as everybody gets it | 95.0% | 88.0% to 98.0% | 24 test images of shapes |",
        "| `grad_cam` | 0.991 (0.980 to 0.995) | -0.310 (-0.400 to -0.200) |  | 0.110 (0.100 to 0.120) |",
        "Here those of `grad_cam` do.",
        "Acme ([text](https://acme.example/l))",
        "a license from x@acme.example",
        "## Limits",
        r"Classes: a\|b, \<script\>.",
        'license: "other"\nlicense_name: "Acme"',
        "keylock verify tiny.klb --issuer issuer.pub.pem\n",
    ):
        assert part in text
    run("sign m.klb --oms")
    run("card m.klb --license mit --overwrite")
    assert "--oms-key oms.pub.pem" in page()


def test_without_figures_it_is_said(vendor, run, hub):
    vendor("m.klb")
    said = run("card m.klb --license mit", code=3)
    assert "nothing was measured of the lock of tiny" in said.err
    assert "say --without-figures" in said.err
    assert not os.path.exists("card")
    run("card m.klb --license mit --without-figures")
    card = hub.ModelCard.load("card/README.md")
    assert card.data.eval_results is None
    assert "Accuracy was not measured." in card.text


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("card m.klb", 2, "--license"),
        ("card m.klb --license Apache2!", 3, "is no license as the Hugging Face Hub writes it"),
        ("card m.klb --license other", 3, "goes with a name and a link"),
        ("card m.klb --license mit --license-name x --license-link y", 3, "goes with a name and a link"),
        ("card m.klb --license mit --key-file m.klb.key", 3, "give them by --image"),
        ("card none.klb --license mit", 4, "there is no bundle"),
        ("card m.klb --license mit --image none.png", 3, "no compiled explainers"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(vendor, run, line, code, says):
    pytest.importorskip("onnxruntime")
    vendor("m.klb", figures=FIGURES)
    assert says in run(line, code=code).err
    assert not os.path.exists("card")


def test_a_card_that_is_there_is_replaced_when_it_is_said(vendor, run):
    vendor("m.klb", figures=FIGURES)
    answer = json.loads(run("card m.klb --license mit --json").out)
    assert answer["files"] == ["card/README.md"]
    assert "card/README.md exists" in run("card m.klb --license mit", code=3).err
    run("card m.klb --license bsd-3-clause --overwrite")
    assert 'license: "bsd-3-clause"' in page()


def test_pictures_show_decoys_and_true_maps_only_with_the_key(vendor, run, sealed_bundle):
    pytest.importorskip("onnxruntime")
    noise = np.random.default_rng(0).integers(90, 160, (40, 40, 3), np.uint8)
    Image.fromarray(noise).resize((8, 8)).resize((40, 40)).save("one.png")
    common = f"card {sealed_bundle.path} --license mit --without-figures --overwrite --image one.png"
    run(common)
    public = np.asarray(Image.open("card/maps.png").convert("RGB"))
    said = run(f"{common} --key-file {sealed_bundle.key_file}")
    assert "the picture shows true maps" in said.err
    both = np.asarray(Image.open("card/maps.png").convert("RGB"))
    names = [one.name for one in open_bundle(sealed_bundle.path, trusted=None).manifest.explainers]
    assert public.shape[1] == (1 + len(names)) * 168 - 8
    assert both.shape[1] == (1 + 2 * len(names)) * 168 - 8
    # Every second map is the public one, the others are the true ones and differ.
    for place in range(len(names)):
        decoy = public[26:, (1 + place) * 168 :][:, :160]
        np.testing.assert_array_equal(both[26:, (1 + 2 * place) * 168 :][:, :160], decoy)
        assert np.abs(both[26:, (2 + 2 * place) * 168 :][:, :160].astype(int) - decoy).mean() > 1
    text = page()
    assert re.search(r"!\[Pictures, and what maps of them show without and with a license\]\(maps\.png\)", text)
    assert "cannot read the image none.png" in run(common.replace("one.png", "none.png"), code=3).err
    Path("text.png").write_text("no picture")
    said = run(common.replace("one.png", "text.png"), code=3).err
    assert "text.png: the bytes are not an image file" in said
    many = " --image one.png" * 9
    assert (
        "8 pictures at most"
        in run(f"card {sealed_bundle.path} --license mit --without-figures --overwrite{many}", code=3).err
    )
