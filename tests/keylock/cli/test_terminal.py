"""Every command that shows progress, in a terminal: what it draws, Ctrl-C half-way, and going on after it."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from copied_processes import copies_take_gradients
from pico_net import PicoNet
from pseudo_terminal import cursor_is_shown, plain, run_in_terminal, start_in_terminal, widest

from keylock.bundle import open_bundle
from keylock.models import registry

DATA = ["--train-images", "64", "--test-images", "16"]
TRAIN = ["train", "--arch", "pico", *DATA, "--batch-size", "16", "--image-size", "16", "--strength", "32/255"]
FEW = ["--images", "8", "--faithfulness-images", "2", "--gate-images", "2"]
# As `python -m keylock`, with the small network among those that have a name.
PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from pico_net import PicoNet
from keylock.cli import main
from keylock.models import registry
registry._OWN["pico"] = PicoNet
sys.exit(main())
"""


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


@pytest.fixture(scope="module")
def trained(place):
    """A lock with two keys, and what its training showed on 60 columns."""
    steps = ["--steps", "2", "--reference-steps", "2", "--keys", "2", "--out", "m.klb", "--json"]
    return run_in_terminal([*TRAIN, *steps], columns=60)


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


def test_train_draws_every_stage_and_prints_its_answer_elsewhere(trained):
    stages = ("train the reference model", "lock the explanations", "measure the lock", "compile, sign and write")
    assert_whole(trained, 60, *stages)
    assert [entry["bundle"] for entry in json.loads(trained.out)["keys"]] == ["m.klb", "m-2.klb"]
    assert "leakage" in trained.terminal


def test_retire_draws_every_stage(trained):
    assert trained.code == 0, trained.terminal
    retire = ["retire", "m-2.klb", "--keep", "m.klb", *DATA, "--out", "n.klb", "--json"]
    shown = run_in_terminal(retire, columns=200)
    assert_whole(shown, 200, "lock the explanations", "measure the lock", "compile, sign and write")
    assert json.loads(shown.out)["keys"][0]["bundle"] == "n.klb"


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
    several = ["--workers", "2"] if sys.platform == "linux" and copies_take_gradients() else []
    shown = run_in_terminal(
        ["audit", str(untrained_bundle.bundle), "--data", str(untrained_bundle.data), *only, *several], columns=columns
    )
    assert shown.code == 0, shown.terminal
    assert cursor_is_shown(shown.terminal)
    if several:
        assert re.search(r"attack the lock: 3/3 in \d+:\d\d:\d\d", plain(shown.terminal))
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


@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
def test_ctrl_c_ends_all_processes_of_an_audit_with_one_sentence(untrained_bundle, place):
    program = PROGRAM.format(tests=os.path.dirname(sys.modules["pico_net"].__file__))
    options = ["--suite", "quick", "--only", "keyless,key_climb,predictions", "--workers", "2", "--out", "stopped"]
    command = ["audit", str(untrained_bundle.bundle), "--data", str(untrained_bundle.data), *options]
    process, terminal = start_in_terminal([sys.executable, "-c", program, *command], columns=100, cwd=place)
    terminal.wait_for(r"attack the lock .* [1-9]\d*/", timeout_s=120)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    terminal.type(b"\x03")
    assert process.wait(timeout=600) == 130, terminal.text
    terminal.close()
    stopped = "stopped; what was found is kept in stopped: run the same command to go on"
    assert plain(terminal.text).strip().endswith(stopped)
    assert "Traceback" not in terminal.text
    assert cursor_is_shown(terminal.text)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_ctrl_c_ends_an_evaluation_with_one_sentence(untrained_bundle, place):
    program = PROGRAM.format(tests=os.path.dirname(sys.modules["pico_net"].__file__))
    bundle = ["evaluate", str(untrained_bundle.bundle), "--data", str(untrained_bundle.data), "--unseen", "--out", "e"]
    process, terminal = start_in_terminal([sys.executable, "-c", program, *bundle], columns=100, cwd=place)
    terminal.wait_for(r"compare maps .* [1-9]\d*/", timeout_s=120)
    terminal.type(b"\x03")
    assert process.wait(timeout=600) == 130, terminal.text
    terminal.close()
    stopped = "stopped; nothing was written: run the same command again to start anew"
    assert plain(terminal.text).strip().endswith(stopped)
    assert cursor_is_shown(terminal.text)
    assert not list((place / "e").iterdir())


def test_ctrl_c_half_way_keeps_what_was_reached_and_resume_goes_on(place):
    """In a process of its own in the foreground of a terminal, whose window changes meanwhile."""
    program = PROGRAM.format(tests=os.path.dirname(sys.modules["pico_net"].__file__))
    command = [sys.executable, "-c", program, *TRAIN, "--steps", "400", "--reference-steps", "2", "--out", "c.klb"]

    process, terminal = start_in_terminal(command, columns=200, cwd=place)
    terminal.wait_for(r"lock the explanations .* [1-9]\d*/400 ", timeout_s=120)
    for columns in (60, 120):
        terminal.resize(columns)
    terminal.type(b"\x03")
    assert process.wait(timeout=600) == 130, terminal.text
    terminal.close()
    kept = "stopped; what was reached is kept in c.klb.work: run the same command with --resume to go on"
    assert plain(terminal.text).strip().endswith(kept)
    reached = re.search(r"lock the explanations: (\d+)/400 in ", plain(terminal.text))
    assert 0 < int(reached[1]) < 400
    assert cursor_is_shown(terminal.text)
    assert not (place / "c.klb").exists()

    process, terminal = start_in_terminal([*command, "--resume"], columns=60, cwd=place)
    assert process.wait(timeout=600) == 0, terminal.text[-2000:]
    terminal.close()
    text = plain(terminal.text)
    first = re.search(r"lock the explanations .*?(\d+)/400 ", text)
    assert int(first[1]) >= int(reached[1])
    assert "lock the explanations: 400/400 in " in text
    assert "train the reference model" not in text
    assert open_bundle(place / "c.klb", trusted=None).manifest.training["lock"]["steps"] == 400
