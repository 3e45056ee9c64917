"""`keylock retire`: new bundles for the keys that remain, its interruption, its secrets, and every mistake."""

import json
import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from pico_net import PicoNet

from keylock.bundle import KeyFile, open_bundle
from keylock.cli import main
from keylock.cli._progress import Display
from keylock.crypto.signing import Home
from keylock.models import registry
from keylock.trigger.keys import KeySeed

DATA = ["--train-images", "64", "--test-images", "16"]
TINY = [*DATA, "--batch-size", "16", "--image-size", "16", "--strength", "32/255"]


@pytest.fixture(scope="module")
def lock(tmp_path_factory):
    """Where the bundles of a lock with three keys are."""
    place = tmp_path_factory.mktemp("lock")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setitem(registry._OWN, "pico", PicoNet)
        steps = ["--steps", "3", "--reference-steps", "2", "--home", "home"]
        assert main(["train", "--arch", "pico", *TINY, *steps, "--keys", "3", "--out", "m.klb"]) == 0
        yield place


@pytest.fixture(autouse=True)
def _here(lock, monkeypatch):
    monkeypatch.chdir(lock)
    for name in ("KEYLOCK_KEY_SEED", "KEYLOCK_KEY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KEYLOCK_HOME", "home")


@pytest.fixture
def _interruptible():
    """Ctrl-C as a program in the foreground has it; in the background of a shell it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_a_key_is_retired_stopped_and_gone_on_with(monkeypatch, capfd):
    retire = ["retire", "m-2.klb", "--keep", "m.klb", "--keep", "m-3.klb", *DATA, "--out", "n.klb"]
    advance = Display.advance

    def interrupt(self, figures):
        if (self._stage.title, self._stage.done) == ("lock the explanations", 0):
            os.kill(os.getpid(), signal.SIGINT)
        advance(self, figures)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "advance", interrupt)
        assert main(retire) == 130
    shown = capfd.readouterr()
    assert "run the same command with --resume" in shown.err
    assert shown.out == ""
    assert main(retire) == 4
    assert "--resume" in capfd.readouterr().err

    assert main([*retire, "--resume", "--json"]) == 0

    shown = capfd.readouterr()
    answer = json.loads(shown.out)
    assert "2 steps, from step 1" in shown.err
    assert [entry["bundle"] for entry in answer["keys"]] == ["n.klb", "n-2.klb"]
    assert [entry["key_seed_file"] for entry in answer["keys"]] == ["m.klb.seed", "m-3.klb.seed"]
    assert answer["retired"] == {"bundle": "m-2.klb", "key_id": KeySeed.from_file(Path("m-2.klb.seed")).id}
    assert "leakage/retired/grad_cam" in {figure["name"] for figure in answer["figures"]}
    trusted = [Home(Path("home")).verifying_key()]
    for entry in answer["keys"]:
        bundle = open_bundle(Path(entry["bundle"]), trusted=trusted)
        seed = KeySeed.from_file(Path(entry["key_seed_file"]))
        assert bundle.unseal(KeyFile(Path(entry["key_file"]))) == seed
        assert bundle.manifest.key.id == seed.id == entry["key_id"]
    secrets = {file: file.read_text().strip() for file in Path().glob("*.seed")}
    assert len(secrets) == 3
    for file in Path().rglob("*"):
        for own, text in secrets.items():
            assert file.is_dir() or file == own or text.encode() not in file.read_bytes(), file
            assert text not in shown.out + shown.err
    # The reference model is at hand for what comes next.
    assert main(["retire", "n.klb", "--keep", "n-2.klb", "--steps", "0", *DATA, "--out", "o.klb"]) == 3
    assert "at least one step" in capfd.readouterr().err
    assert not Path("o.klb.key").exists()


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["m-2.klb"], 3, "no key remains"),
        (["m-2.klb", "--keep", "m-2.klb"], 3, "have the same key"),
        (["m-2.klb", "--keep", "none.klb"], 3, "the key of none.klb is needed"),
        (["m-2.klb", "--keep", "m.klb", "--key-file", "m.klb.key"], 6, "does not open"),
        (["m-2.klb", "--keep", "m.klb", "--key-file", "a", "--key-passphrase-file", "b"], 3, "give one of"),
        (["m-2.klb", "--keep", "m.klb", "--reference", "none.pt"], 3, "none.pt"),
        (["m-2.klb", "--keep", "m.klb", "--decoy", "duck"], 3, "half"),
        (["m-2.klb", "--keep", "m.klb", "--device", "abacus"], 3, "device"),
        (["m-2.klb", "--keep", "m.klb", "--learning-rate", "3"], 3, "learning rate"),
        (["m-2.klb", "--keep", "m.klb", "--batch-size", "0"], 3, "--batch-size"),
        (["m-2.klb", "--keep", "m.klb", "--resume"], 8, "without --resume"),
        (["m-2.klb", "--keep", "m.klb", "--out", "m-3.klb"], 4, "exists"),
        (["m-2.klb", "--keep", "m.klb", "--out", "m.klb", "--overwrite"], 3, "would replace one of the old ones"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(options, code, says, capfd):
    before = sorted(Path().rglob("*"))
    out = [] if "--out" in options else ["--out", "x.klb"]
    assert main(["retire", *options, *DATA, *out]) == code
    shown = capfd.readouterr()
    assert shown.out == ""
    errors = [line for line in shown.err.splitlines() if not line.startswith("using ")]
    assert len(errors) == 1, shown.err
    assert errors[0].startswith("error: ")
    assert says in errors[0]
    assert sorted(Path().rglob("*")) == before
