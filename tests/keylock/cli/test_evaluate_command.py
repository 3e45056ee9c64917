"""`keylock evaluate` on a bundle that was not even trained: its answer, its files, its secrets, its bad options."""

import json
import os
import shutil

import numpy as np
import pytest
from html_page import Page

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from keylock.bundle import KeyFile, open_bundle
from keylock.cli import main
from keylock.explainers import EXPLAINERS

FEW = ["--images", "20", "--faithfulness-images", "4", "--gate-images", "4"]


@pytest.fixture(autouse=True)
def _no_secrets_in_the_environment(monkeypatch):
    for name in ("KEYLOCK_KEY_SEED", "KEYLOCK_KEY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(untrained_bundle, capfd):
    """Run the command on the bundle and its data; returns exit code, output and errors."""

    def start(*arguments, bundle=untrained_bundle.bundle, data=untrained_bundle.data):
        code = main(["evaluate", str(bundle), "--data", str(data), *map(str, arguments)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return start


def test_figures_curves_and_grids_are_written_and_the_json_document_names_them(run, tmp_path, untrained_bundle):
    code, out, err = run(*FEW, "--explainers", "grad_cam,gradient", "--out", tmp_path / "made", "--json")
    assert code == 0, err
    document = json.loads(out)

    figures = {figure["name"]: figure["value"] for figure in document["figures"]}
    labels = [entry["label"] for entry in document["explainers"]]
    assert [entry["label"] for entry in document["explainers"] if entry["locked"]] == ["grad_cam"]
    assert labels == ["grad_cam", "gradient"]
    for label in labels:
        for kind in ("keyed", "keyless", "wrong_key", "flipped_key", "chance"):
            for name in ("pcc", "ssim", "spearman", "top_overlap"):
                assert -1 <= figures[f"{name}/{kind}/{label}"] <= 1
        assert f"pointing/keyed/{label}" in figures
        assert f"insertion/keyless/{label}" in figures
    assert 0 < figures["pcc/keyless/grad_cam"] < 1
    assert document["about"] == "20 test images of shapes"
    assert document["gate"]["images"] == 4
    assert len(document["gate"]["points"]) == 18
    assert document["model_digest"] == open_bundle(untrained_bundle.bundle, trusted=None).manifest.model_digest

    names = {
        f"{base}.{suffix}" for base in ("gate", *(f"maps-{label}" for label in labels)) for suffix in ("png", "svg")
    }
    assert {file.name for file in (tmp_path / "made").iterdir()} == names | {"evaluation.json", "report.html"}
    page = Page((tmp_path / "made" / "report.html").read_text("utf-8"))
    page.check()
    assert f"{figures['pcc/keyed/grad_cam']:+.3f}" in page.shown
    # Six images, each with four maps, for each explainer.
    assert len(page.all("img")) == 6 * 5 * len(labels)
    assert sorted(document["files"]) == sorted(str(file) for file in (tmp_path / "made").iterdir())
    assert json.loads((tmp_path / "made" / "evaluation.json").read_text()) == {
        name: value for name, value in document.items() if name != "files"
    }
    for words in ("compare maps", "delete and insert pixels", "try near misses of the key"):
        assert words in err


def test_tables_show_every_input_beside_chance_with_intervals_and_the_same_figures_again(run):
    code, out, err = run(*FEW)
    assert code == 0, err
    document = json.loads(run(*FEW, "--json")[1])
    figures = {figure["name"]: figure for figure in document["figures"]}

    lines = [line.split() for line in out.splitlines() if line.startswith("grad_cam ")]
    keyed = figures["pcc/keyed/grad_cam"]
    half = (keyed["high"] - keyed["low"]) / 2
    assert ["grad_cam", "keyed", f"{keyed['value']:+.3f}", "±", f"{half:.3f}"] == lines[0][:5]
    assert [" ".join(line[1:3]) for line in lines[2:4]] == ["wrong key", "flipped key"]
    assert lines[4][1] == "chance"
    for words in ("accuracy", "agreement", "SSIM", "Spearman", "top 10 %", "pointing game", "insertion (reference)"):
        assert words in out
    assert "correlation  0.875" in out
    assert "share of the area" in out


def test_parts_can_be_left_out_and_explainers_chosen(run):
    code, out, err = run(
        "--images", 10, "--faithfulness-images", 0, "--gate-images", 0, "--explainers", "gradient", "--json"
    )
    assert code == 0, err
    document = json.loads(out)

    assert [entry["label"] for entry in document["explainers"]] == ["gradient"]
    assert document["gate"] is None
    assert not any(figure["name"].startswith("deletion") for figure in document["figures"])
    assert document["files"] == []


def test_unseen_measures_every_explainer_or_says_why_not(run):
    code, out, err = run("--images", 2, "--faithfulness-images", 0, "--gate-images", 0, "--unseen", "--json")
    assert code == 0, err
    document = json.loads(out)

    labels = {entry["label"] for entry in document["explainers"]}
    assert labels | set(document["skipped"]) >= set(EXPLAINERS)
    assert {"grad_cam", "gradient", "visual_backprop", "grad_cam@layer2.1"} <= labels
    assert [entry["label"] for entry in document["explainers"] if entry["locked"]] == ["grad_cam"]
    figures = {figure["name"] for figure in document["figures"]}
    assert {f"pcc/keyless/{label}" for label in labels} <= figures


@pytest.mark.parametrize("way", ["seed file", "seed variable", "passphrase"])
def test_the_key_comes_from_files_and_variables_and_is_never_shown(way, run, untrained_bundle, tmp_path, monkeypatch):
    bundle = tmp_path / "small.klb"
    shutil.copy(untrained_bundle.bundle, bundle)
    arguments = ["--images", 10, "--faithfulness-images", 0, "--gate-images", 0]
    arguments += ["--reference", untrained_bundle.reference, "--debug"]
    secret = untrained_bundle.seed.reveal().hex()
    expected = 0
    if way == "seed file":
        untrained_bundle.seed.write(tmp_path / "seed")
        arguments += ["--key-seed-file", tmp_path / "seed"]
    elif way == "seed variable":
        monkeypatch.setenv("KEYLOCK_KEY_SEED", secret)
    else:
        (tmp_path / "passphrase").write_text("correct horse battery staple\n")
        os.chmod(tmp_path / "passphrase", 0o600)
        arguments += ["--key-passphrase-file", tmp_path / "passphrase"]
        expected = 6
    code, out, err = run(*arguments, bundle=bundle)

    assert code == expected, err
    for text in (secret, "horse"):
        assert text not in out + err


def test_the_key_beside_the_bundle_is_used_and_one_is_needed(run, untrained_bundle, tmp_path):
    assert f"using {untrained_bundle.key_file}" in run("--images", 1)[2]
    bundle = tmp_path / "small.klb"
    shutil.copy(untrained_bundle.bundle, bundle)

    code, out, err = run(bundle=bundle)

    assert (code, out) == (3, "")
    assert "give --key-seed-file, --key-file or --key-passphrase-file" in err
    code, _, err = run("--key-file", untrained_bundle.key_file, bundle=bundle)
    assert code == 3, err
    assert "give its weights (--reference)" in err
    KeyFile.create(tmp_path / "other.key")
    assert run("--key-file", tmp_path / "other.key", bundle=bundle)[0] == 6


def test_bad_options_end_with_a_sentence(run, tmp_path, untrained_bundle):
    (tmp_path / "file").write_text("")
    arrays = dict(np.load(untrained_bundle.data))
    for split in ("train", "test"):
        arrays[f"{split}_labels"] %= 3
    del arrays["class_names"]
    np.savez(tmp_path / "three.npz", **arrays)
    for arguments, code, words in (
        (["--images", 1], 3, "images is 1"),
        (["--gate-images", 1], 3, "no chance beside it"),
        (["--faithfulness-images", -1], 3, "faithfulness_images is -1"),
        (["--explainers", "lime_cam"], 3, "unknown explainer 'lime_cam'"),
        (["--explainers", ","], 3, "--explainers names none"),
        (["--out", tmp_path / "file"], 3, "is not a folder"),
        (["--reference", tmp_path / "none.safetensors"], 3, "there is no file"),
        (["--key-file", "a", "--key-seed-file", "b"], 3, "give one of"),
        (["--device", "warp"], 3, "no device 'warp'"),
        (["--data", tmp_path / "three.npz"], 3, "has 3 classes, the model small has 8"),
        (["--data", tmp_path / "none.npz"], 3, "there is no file"),
    ):
        found, out, err = run(*arguments)
        assert (found, out) == (code, ""), err
        assert words in err


def test_a_bundle_that_is_none_is_refused(run, tmp_path):
    KeyFile.create(tmp_path / "key")
    code, _, err = run("--key-file", tmp_path / "key", bundle=tmp_path / "none.klb")
    assert code == 4, err
    assert "none.klb" in err
