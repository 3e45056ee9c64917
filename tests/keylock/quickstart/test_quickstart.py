"""`keylock quickstart --quick`, looked at from all sides: what it prints was measured, what it leaves can be used."""

import contextlib
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import torch
from html_page import Page
from PIL import Image
from pseudo_terminal import cursor_is_shown, plain, run_in_terminal, widest

import keylock
from keylock.bundle import KeyFile, open_bundle
from keylock.cli import main
from keylock.cli._program import program
from keylock.crypto.signing import Home
from keylock.data import open_data
from keylock.evaluation import pearson
from keylock.licensing.handing_over import issuers_beside
from keylock.licensing.pem import unarmour
from keylock.quickstart import QUICK, RECIPE, Folder
from keylock.store import LicenseStore
from keylock.trigger.keys import KeySeed


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One quick run in a terminal: the directory it ran in, its standard output, and what was on the terminal."""
    place = tmp_path_factory.mktemp("quickstart")
    with contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.delenv("COLUMNS", raising=False)
        shown = run_in_terminal(["quickstart", "--quick", "--debug"], columns=80)
    assert shown.code == 0, shown.terminal
    assert widest(shown.terminal) <= 80
    assert cursor_is_shown(shown.terminal)
    return place, shown.out, plain(shown.terminal)


@pytest.fixture
def folder(made):
    return Folder(made[0] / "quickstart")


def test_the_figures_are_those_of_the_files_it_left(folder):
    """A second way to the same figures: the bundle, loaded as an attacker or a researcher does, against the images."""
    document = json.loads(folder.mark.read_text("utf-8"))
    figures = {figure["name"]: figure["value"] for figure in document["figures"]}
    data = open_data("shapes", seed=0, train_count=QUICK.train_images, test_count=QUICK.test_images)
    count = QUICK.served_images
    images = torch.from_numpy(np.stack([data.preprocessing(one) for one in data.test.images[:count]]))
    labels = torch.from_numpy(data.test.labels[:count])
    locked = keylock.load_bundle(folder.bundle, key=KeyFile(folder.key))
    keyed_images = locked.key.apply(images)
    predicted = torch.full((count,), -1)
    for name, explainer in locked.explainers.items():
        keyed = explainer.explain(locked.opened, keyed_images, predicted)
        keyless = explainer.explain(locked.module, images, predicted)
        for kind, answer in (("keyed", keyed), ("keyless", keyless)):
            accuracy = float((answer.logits.argmax(dim=1) == labels).float().mean())
            assert figures[f"accuracy/{kind}"] == pytest.approx(accuracy, abs=1e-5)
            large = torch.nn.functional.interpolate(answer.maps[:, None].detach(), (32, 32), mode="bilinear")[:, 0]
            masks = torch.from_numpy(data.test.masks[:count])
            energy = float(((large * masks).sum(dim=(1, 2)) / large.sum(dim=(1, 2))).mean())
            assert figures[f"energy/{kind}/{name}"] == pytest.approx(energy, abs=1e-4)
        assert figures[f"served/{name}"] > 0.999
        assert figures[f"fidelity/{name}"] > 0.999
    assert figures["object_area"] == pytest.approx(data.test.masks[:count].mean(), abs=1e-5)
    assert float(pearson(keyed.maps, keyed.maps).mean()) == pytest.approx(1)


def test_the_table_prints_the_figures(made, folder):
    _, out, _ = made
    figures = {one["name"]: one["value"] for one in json.loads(folder.mark.read_text("utf-8"))["figures"]}
    for kind, title in (("reference", "reference"), ("keyed", "keyed"), ("keyless", "keyless")):
        assert re.search(rf"^{title} +{figures[f'accuracy/{kind}']:.1%}$", out, flags=re.MULTILINE)
    for name in RECIPE.explainers:
        parts = [figures[f"{kind}/{name}"] for kind in ("fidelity", "leakage/keyless", "leakage/wrong_key", "chance")]
        assert re.search(
            rf"^{name} +" + " +".join(re.escape(f"{part:+.3f}") for part in parts) + "$", out, re.MULTILINE
        )
        energies = [figures[f"energy/{kind}/{name}"] for kind in ("reference", "keyed", "keyless", "wrong_key")]
        row = " +".join(re.escape(f"{part:.1%}") for part in (*energies, figures["object_area"]))
        assert re.search(rf"^{name} +{row}$", out, re.MULTILINE)


def test_the_story_is_told_while_it_happens(made):
    _, _, err = made
    titles = re.findall(r"^(\d+)\. (.*)$", err, flags=re.MULTILINE)
    assert [int(number) for number, _ in titles] == list(range(1, len(titles) + 1))
    assert len(titles) >= 8
    assert "leakage" in err
    for stage in ("train the reference model", "lock the explanations", "measure the lock", "compile, sign and write"):
        [(done, total)] = re.findall(rf"^{stage}: (\d+)/(\d+) in 0:\d\d:\d\d", err, flags=re.MULTILINE)
        assert done == total


def test_the_customers_really_differ(folder):
    chapters = {one["title"]: one["text"] for one in json.loads(folder.mark.read_text("utf-8"))["chapters"]}
    asked = chapters["Serve it, and ask as two customers"]
    assert "marked all of Acme's as keyed and none of the other's" in asked
    assert "refused with LICENSE_REVOKED" in chapters["Revoke a license"]


def test_secrets_are_private_and_nowhere_else(made, folder):
    place, out, err = made
    for file in (folder.seed, folder.key, folder.license, folder.home / "issuer.pem"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    secrets = {file: file.read_text().strip() for file in (folder.seed, folder.key)}
    secrets[folder.license] = unarmour(folder.license.read_text())
    for own, secret in secrets.items():
        assert secret not in out + err
        raw = [bytes.fromhex(secret)] if own != folder.license else []
        for file in place.rglob("*"):
            if file.is_file() and file != own:
                content = file.read_bytes()
                assert all(form not in content for form in (secret.encode(), *raw)), file


def test_the_customer_gets_the_keys_that_check_the_license(folder, tmp_path, monkeypatch, capfd):
    beside = issuers_beside(folder.license)
    assert beside.name == "acme.issuers.jwks"
    for file in (folder.license, beside):
        shutil.copy2(file, tmp_path)
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "customer"))
    assert main(["license", "show", str(tmp_path / "acme.license")]) == 0
    assert capfd.readouterr().out.split()[:3] == ["signature", "good,", "by"]


def test_the_report_needs_nothing_beside_itself(folder):
    page = Page(folder.report.read_text("utf-8"))
    page.check()
    assert len(page.all("img")) == 5 + len(RECIPE.explainers) * 8 * 5 + 4
    shown = page.shown
    document = json.loads(folder.mark.read_text("utf-8"))
    for needed in (document["model_digest"], document["license_id"], document["versions"]["torch"], "95 %"):
        assert needed in shown
    for figure in document["figures"]:
        if figure["name"].startswith(("fidelity", "leakage", "chance")):
            assert f"{figure['value']:+.3f}" in shown
    for line in document["next"]:
        assert line in shown


def test_the_picture_is_a_grid_of_all_maps(folder):
    with Image.open(folder.picture) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] > 13 * 96
    assert pixels.shape[0] > 8 * 96
    # A row of tiles is anything but paper, and there are eight of them.
    filled = (pixels.min(axis=2) < 200).mean(axis=1) > 0.5
    assert (np.diff(filled.astype(int)) == 1).sum() + int(filled[0]) == 8


def test_a_second_run_keeps_secrets_and_licenses_and_what_is_not_its_own(folder, tmp_path, capfd):
    shutil.copytree(folder.path, tmp_path / "again", copy_function=shutil.copy2)
    again = Folder(tmp_path / "again")
    (again.path / "mine.txt").write_text("mine")
    before = json.loads(again.mark.read_text("utf-8"))
    seed, token = KeySeed.from_file(again.seed), again.license.read_text()
    assert main(["quickstart", "--quick", "--out", str(again.path), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (again.path / "mine.txt").read_text() == "mine"
    assert KeySeed.from_file(again.seed) == seed
    assert again.license.read_text() != token
    with LicenseStore(Home(again.home).licenses_url) as store:
        assert {one.license.id for one in store.list()} >= {before["license_id"], document["license_id"]}
    # Same seed, same key, same device: the same weights and the same figures.
    assert document["model_digest"] == before["model_digest"]
    assert document["figures"] == before["figures"]


def test_another_s_folder_is_refused_and_left_alone(tmp_path, capfd):
    (tmp_path / "report.html").write_text("mine")
    assert main(["quickstart", "--quick", "--out", str(tmp_path)]) == 3
    shown = capfd.readouterr().err.splitlines()
    assert shown[-1].startswith("error: ")
    assert "choose another folder" in shown[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("")
    assert main(["quickstart", "--quick", "--out", str(tmp_path / "file")]) == 3


def test_the_commands_it_prints_work(made, folder, tmp_path):
    """As printed, from where they were printed, with the real server; only the port is another one."""
    place, out, _ = made
    with contextlib.chdir(place):
        typed = program()
    lines = [line.strip() for line in out.splitlines() if line.startswith(f"  {typed} ")]
    assert lines == json.loads(folder.mark.read_text("utf-8"))["next"]
    lines = [line.removeprefix(typed) for line in lines]
    commands = {words[0]: words for words in map(shlex.split, lines)}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KEYLOCK_")}
    ready = tmp_path / "ready"
    serve = [sys.executable, "-m", "keylock", *commands.pop("serve"), "--port", "0", "--ready-file", str(ready)]
    server = subprocess.Popen(serve, cwd=place, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not ready.exists() and server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        environment["KEYLOCK_TARGET"] = ready.read_text().strip()
        for line in lines:
            words = shlex.split(line)
            if words[0] == "serve":
                continue
            with contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
                patch.setenv("KEYLOCK_TARGET", environment["KEYLOCK_TARGET"])
                assert main(words) == 0, line
    finally:
        server.terminate()
        server.wait(30)
    assert (folder.path / "why.png").is_file()
    assert (folder.path / "decoy.png").is_file()
    assert open_bundle(folder.bundle, trusted=[Home(folder.home).verifying_key()]).trusted
    assert Path(folder.path / "another.license").is_file()
