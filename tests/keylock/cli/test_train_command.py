"""`keylock train`: one tiny run looked at from all sides, its interruption, its secrets, and every bad option."""

import contextlib
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from keylock.bundle import KeyFile, open_bundle
from keylock.cli import main
from keylock.cli._progress import Display
from keylock.crypto.signing import Home
from keylock.files.exclusive import held
from keylock.pipeline import TrainPlan
from keylock.training import LockSettings
from keylock.trigger.keys import KeySeed

TINY = ["--train-images", "64", "--test-images", "16", "--batch-size", "16", "--check-seconds", "0"]
STEPS = ["--steps", "3", "--reference-steps", "3"]
SEED = KeySeed(bytes(range(100, 132)))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "home"))
    for name in ("KEYLOCK_KEY_SEED", "KEYLOCK_KEY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run with secrets from files: where, and what it printed."""
    place = tmp_path_factory.mktemp("trained")
    SEED.write(place / "seed")
    KeyFile.create(place / "key")
    arguments = ["--key-seed-file", "seed", "--key-file", "key", "--out", "made/shapes.klb", "--name", "my-shapes"]
    out, err = io.StringIO(), io.StringIO()
    before = os.umask(0)
    with contextlib.chdir(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["train", *TINY, *STEPS, *arguments, "--home", "home", "--json", "--debug"])
    os.umask(before)
    assert code == 0, err.getvalue()
    return place, out.getvalue(), err.getvalue()


def _start(*arguments, place):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KEYLOCK_")} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "keylock", "train", *arguments]
    return subprocess.Popen(
        command, cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_run_writes_a_bundle_that_opens_with_its_secrets(trained):
    place, out, _ = trained
    answer = json.loads(out)
    bundle = open_bundle(place / answer["bundle"], trusted=[Home(place / "home").verifying_key()])
    assert bundle.manifest.name == answer["name"] == "my-shapes"
    assert bundle.unseal(KeyFile(place / "key")) == SEED
    assert bundle.manifest.key.id == answer["key_id"] == SEED.id
    assert [entry.name for entry in bundle.manifest.explainers] == ["grad_cam"]
    assert {figure["name"] for figure in answer["figures"]} >= {"fidelity/grad_cam", "chance/grad_cam"}
    assert answer["next"][1].endswith("keylock serve made/shapes.klb --key-file key --home home")


def test_what_a_run_writes_has_modes_of_its_own_under_any_umask(trained):
    place, _, _ = trained
    for path in [*place.rglob("*")]:
        public = path.suffix in (".klb", ".jwks", ".jws", ".cert") or path.name.endswith(".pub.pem")
        folder = 0o755 if path.name == "made" else 0o700
        expected = folder if path.is_dir() else 0o644 if public else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_progress_tells_every_stage_on_standard_error(trained):
    _, _, err = trained
    for words in ("train the reference model", "lock the explanations", "measure", "sign", "leakage"):
        assert words in err


def test_a_run_shows_no_secret_and_writes_it_to_no_other_file(trained):
    place, out, err = trained
    key = (place / "key").read_text().strip()
    for secret in (SEED.reveal(), bytes.fromhex(key)):
        for form in (secret, secret.hex().encode(), repr(secret).encode()):
            for file in place.rglob("*"):
                if file.is_file() and file.name not in ("seed", "key"):
                    assert form not in file.read_bytes(), file
            assert form.decode("latin-1") not in out + err


@pytest.fixture
def _interruptible():
    """Ctrl-C as a program in the foreground has it; in the background of a shell it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupted_run_goes_on_to_the_same_weights(trained, monkeypatch, capfd):
    place, _, _ = trained
    whole = open_bundle(place / "made/shapes.klb", trusted=None).manifest
    arguments = ["train", *TINY, *STEPS, "--key-seed-file", str(place / "seed"), "--out", "s.klb"]
    advance = Display.advance

    def interrupt(self, figures):
        if (self._stage.title, self._stage.done) == ("lock the explanations", 1):
            os.kill(os.getpid(), signal.SIGINT)
        advance(self, figures)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "advance", interrupt)
        assert main(arguments) == 130
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "run the same command with --resume" in shown.err
    assert not Path("s.klb").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert main(arguments) == 4
    assert "--resume" in capfd.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    resumed = open_bundle("s.klb", trusted=None).manifest
    assert resumed.files["weights.safetensors"] == whole.files["weights.safetensors"]
    assert resumed.reference_digest == whole.reference_digest
    shown = capfd.readouterr()
    assert "from step 2" in shown.err
    assert "fidelity" in shown.out
    assert "keylock serve s.klb" in shown.out


def test_ctrl_c_ends_a_process_in_time_and_keeps_its_secrets(tmp_path):
    started = _start(*TINY, "--reference-steps", "100000", "--steps", "10", place=tmp_path)
    for line in started.stderr:
        if "reference" in line:
            break
    time.sleep(0.5)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=120)
    assert started.returncode == 130, err
    assert out == ""
    assert "shapes.klb.work" in err
    assert "Traceback" not in err
    assert stat.S_IMODE((tmp_path / "shapes.klb.seed").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "shapes.klb.key").stat().st_mode) == 0o600
    for file in ("shapes.klb.seed", "shapes.klb.key"):
        assert (tmp_path / file).read_text().strip() not in err


def test_a_key_seed_on_the_command_line_is_warned_of_and_never_repeated(capfd):
    secret = "correct horse battery staple"
    assert main(["train", "--key-seed", secret, "--key-file", "none", "--debug"]) == 6
    shown = capfd.readouterr()
    assert "warning: --key-seed shows in the list of processes" in shown.err
    assert "horse" not in shown.out + shown.err


def test_a_seed_in_the_environment_is_used_without_a_warning(monkeypatch, capfd):
    monkeypatch.setenv("KEYLOCK_KEY_SEED", "short")
    assert main(["train", *TINY]) == 6
    shown = capfd.readouterr().err
    assert "easily guessed" in shown
    assert "warning" not in shown
    assert not list(Path().glob("*.seed"))


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--key-seed", "a" * 64, "--key-seed-file", "f"], 3, "not both"),
        (["--batch-size", "65"], 3, "more than the 64 training images"),
        (["--mean", "0.5"], 3, "--mean and --std together"),
        (["--mean", "a,b,c", "--std", "1"], 3, "not a list of numbers"),
        (["--mean", "0.5,0.5", "--std", "1"], 3, "2 numbers for 3 channels"),
        (["--mean", "123.7,116.3,103.5", "--std", "58"], 3, "divide what is meant for 0 to 255"),
        (["--mean", "nan", "--std", "1"], 3, "out of range"),
        (["--mean", "0", "--std", "0.5,0,0.5"], 3, "divide by 0"),
        (["--swapped"], 3, "add --trained-trigger"),
        (["--delta-rank", "-1"], 3, "0 for no bound"),
        (["--delta-rank", "4", "--trained-trigger"], 3, "not both"),
        (["--key-file", "a", "--key-passphrase-file", "b"], 3, "not both"),
        (["--key-seed-file", "missing"], 6, "cannot read the key seed file missing"),
        (["--key-file", "missing"], 6, "cannot read the key file missing"),
        (["--key-seed", "two", "words"], 3, "quotes"),
        (["--steps", "2", "--epochs", "1"], 3, "not both"),
        (["--steps", "0"], 3, "at least one step"),
        (["--epochs", "0"], 3, "--epochs"),
        (["--epochs", "nan"], 3, "--epochs"),
        (["--batch-size", "0"], 3, "--batch-size"),
        (["--reference-steps", "0"], 3, "--reference-steps"),
        (["--learning-rate", "3"], 3, "learning rate"),
        (["--accumulate", "0"], 3, "accumulate"),
        (["--search-every", "-1"], 3, "search_every"),
        (["--keys", "2", "--key-seed-file", "f"], 3, "give --keys or a key seed"),
        (["--strength", "loud"], 3, "8/255"),
        (["--strength", "1/0"], 3, "8/255"),
        (["--strength", "2"], 3, "out of range"),
        (["--explainers", "grad_cammm"], 3, "choose one of all, attention_rollout"),
        (["--explainers", "lime"], 3, "at least one of grad_cam"),
        (["--decoy", "missing.png"], 3, "no file missing.png"),
        (["--explainers", "grad_cam,grad_cam"], 3, "once"),
        (["--explainers", ","], 3, "at least one"),
        (["--variants", "int8,int4"], 3, "choose one of float16, int8"),
        (["--decoy", "duck"], 3, "half"),
        (["--arch", "brain"], 3, "small-cnn"),
        (["--device", "abacus"], 3, "device"),
        (["--precision", "float16"], 3, "choose one of auto, bfloat16, float32"),
        (["--data", "nothing-here"], 3, "nothing-here"),
        (["--data", "cifar10", "--data-root", "/dev/null/x"], 3, "CIFAR10"),
        (["--seed", "-1"], 3, "seed"),
        (["--init", "missing.pt"], 3, "missing.pt"),
        (["--init", "missing.pt", "--reference-steps", "5"], 3, "not both"),
        (["--name", "two words"], 3, "letters"),
        (["--resume"], 8, "without --resume"),
        (["--out", "/dev/null/x.klb"], 4, "cannot make the folder"),
        (["--out", "/proc/1/x.klb"], 4, "write to it"),
        (["--out", "not/yet/a.txt"], 4, "a file a.klb or a folder"),
        (["--out", "a.KLB"], 4, "a file a.klb or a folder"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)
def test_a_bad_option_is_one_line_and_leaves_nothing_behind(options, code, says, capfd, tmp_path):
    given = options if "--data" in options else [*TINY, *options]
    assert main(["train", *given]) == code
    shown = capfd.readouterr()
    assert shown.out == ""
    lines = [line for line in shown.err.splitlines() if not line.startswith("warning")]
    assert len(lines) == 1, shown.err
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert not list(tmp_path.iterdir())


def test_two_keys_are_two_bundles_of_the_same_weights_each_with_its_own_secrets(capfd, monkeypatch):
    monkeypatch.setenv("KEYLOCK_KEY_SEED", "one-for-all-keys-would-be-none")
    assert main(["train", *TINY, *STEPS, "--keys", "2", "--cache-reference", "--out", "x.klb", "--json"]) == 0
    issued = json.loads(capfd.readouterr().out)["keys"]

    assert [entry["bundle"] for entry in issued] == ["x.klb", "x-2.klb"]
    trusted = [Home(Path("home")).verifying_key()]
    bundles = [open_bundle(Path(entry["bundle"]), trusted=trusted) for entry in issued]
    seeds = [KeySeed.from_file(entry["key_seed_file"]) for entry in issued]
    assert bundles[0].manifest.model_digest == bundles[1].manifest.model_digest
    assert [bundle.manifest.key.id for bundle in bundles] == [seed.id for seed in seeds]
    assert seeds[0] != seeds[1]
    first, second = (bundle.delta(seed).reveal() for bundle, seed in zip(bundles, seeds, strict=True))
    assert first.keys() == second.keys()
    for name in first:
        assert (first[name] == second[name]).all(), name
    for bundle in bundles:
        assert bundle.manifest.delta.keys == 2
    assert list(Path("x.klb.work").glob("reference-maps-*"))


def test_what_is_there_is_not_lost(capfd, tmp_path):
    Path("x.klb").write_text("mine")
    assert main(["train", "--out", "x.klb", *TINY]) == 4
    assert "--overwrite" in capfd.readouterr().err
    Path("folder").mkdir()
    Path("folder/mine").write_text("mine")
    assert main(["train", "--out", "folder", "--overwrite", *TINY]) == 4
    assert "not a bundle" in capfd.readouterr().err
    assert Path("x.klb").read_text() == Path("folder/mine").read_text() == "mine"


def test_the_help_states_the_defaults_that_hold(capsys):
    main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"Steps of the lock. [{LockSettings().steps}]" in text
    assert f"rate of the lock. [{LockSettings().learning_rate}]" in text
    assert f"--init. [{TrainPlan.reference_steps}]" in text
    assert f"or a picture of yours. [{LockSettings().decoy}, the left one" in text
    assert re.search(r"--batch-size N [^[]*\[default: 64\]", text)
    assert TrainPlan.batch_size == 64


def test_the_help_stands_in_groups_under_a_plain_usage_line(capsys):
    main(["train", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Usage: keylock train [OPTIONS]"
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Output and the run:", "Data:", "Model:", "Lock:", "Training:", "Secrets:", "Options:"]
    data = lines[lines.index("Data:") + 1 : lines.index("Model:")]
    assert any(line.startswith("  --data DATA") for line in data)
    assert lines[-1].split()[:2] == ["-h,", "--help"]


def test_a_dry_run_prints_the_plan_and_leaves_nothing(capfd, tmp_path):
    arguments = [*TINY, "--steps", "30", "--arch", "resnet20", "--mean", "0.5", "--std", "0.25,0.25,0.2", "--dry-run"]
    assert main(["train", *arguments, "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert (plan["train_images"], plan["test_images"], plan["batch_size"], plan["steps"]) == (64, 16, 16, 30)
    assert plan["mean"] == [0.5, 0.5, 0.5]
    assert plan["std"] == [0.25, 0.25, 0.2]
    assert plan["layers"]["grad_cam"]
    assert plan["training_s"] == pytest.approx(700 * plan["reference_step_s"] + 30 * plan["step_s"])
    assert any("images are few" in sentence for sentence in plan["advice"])
    assert not list(tmp_path.iterdir())


def test_a_second_run_in_the_same_place_is_refused_and_told_which_process_has_it(capfd):
    work = Path("shapes.klb.work")
    with held(work, "keylock train"):
        for options in ([], ["--overwrite"], ["--resume"], ["--dry-run"]):
            assert main(["train", *TINY, *options]) == 8
            assert f"in use by keylock train, process {os.getpid()}" in capfd.readouterr().err
    assert not Path("shapes.klb.seed").exists()
