"""Every command that shows progress, in a terminal: what it draws, Ctrl-C half-way, and going on after it."""

import json
import re

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from pico_net import PicoNet
from pseudo_terminal import cursor_is_shown, plain, run_in_terminal, widest

from keylock.models import registry

DATA = ["--train-images", "64", "--test-images", "16"]
TRAIN = ["train", "--arch", "pico", *DATA, "--batch-size", "16", "--image-size", "16", "--strength", "32/255"]
FEW = ["--images", "8", "--faithfulness-images", "2", "--gate-images", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where all of it happens."""
    made = tmp_path_factory.mktemp("terminal")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.setitem(registry._OWN, "pico", PicoNet)
        patch.setenv("KEYLOCK_HOME", "home")
        patch.setenv("TERM", "xterm-256color")
        for name in ("KEYLOCK_KEY_SEED", "KEYLOCK_KEY_PASSPHRASE", "COLUMNS", "NO_COLOR"):
            patch.delenv(name, raising=False)
        yield made


def assert_whole(shown, columns, *stages):
    """Everything went well, every stage came to its end, no line wrapped, and the terminal is as it was."""
    assert shown.code == 0, shown.terminal
    text = plain(shown.terminal)
    for stage in stages:
        ends = re.findall(rf"{stage}: (\d+)/(\d+) in \d+:\d\d:\d\d", text)
        assert ends, f"{stage} has no end in {text}"
        assert all(done == total for done, total in ends), ends
    assert widest(shown.terminal) <= columns
    assert cursor_is_shown(shown.terminal)
    assert "━" not in text.splitlines()[-1]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("columns", [60, 200])
def test_evaluate_draws_every_stage(untrained_bundle, columns):
    command = ["evaluate", str(untrained_bundle.bundle), "--data", str(untrained_bundle.data), *FEW, "--json"]
    shown = run_in_terminal(command, columns=columns)
    assert_whole(shown, columns, "compare maps", "delete and insert pixels", "try near misses of the key")
    assert json.loads(shown.out)["about"] == "8 test images of shapes"


@pytest.mark.parametrize(("columns", "colours"), [(60, True), (200, False)])
def test_audit_says_what_every_attack_found(untrained_bundle, place, monkeypatch, columns, colours):
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    only = ["--suite", "quick", "--only", "keyless,quantise", "--out", str(place / f"audit-{columns}"), "--json"]
    shown = run_in_terminal(
        ["audit", str(untrained_bundle.bundle), "--data", str(untrained_bundle.data), *only], columns=columns
    )
    assert shown.code == 0, shown.terminal
    assert cursor_is_shown(shown.terminal)
    assert ("\x1b[3" in shown.terminal) == colours
    text = plain(shown.terminal)
    for judged in json.loads(shown.out)["judged"]:
        assert re.search(rf"^{judged['verdict']} +{judged['finding']['attack']}: ", text, re.MULTILINE)


@pytest.mark.usefixtures("place")
def test_a_dumb_terminal_gets_lines(untrained_bundle, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    command = ["evaluate", str(untrained_bundle.bundle), "--data", str(untrained_bundle.data), *FEW]
    shown = run_in_terminal(command, columns=60)
    assert_whole(shown, 1000, "compare maps", "delete and insert pixels", "try near misses of the key")
    assert "\x1b" not in shown.terminal
