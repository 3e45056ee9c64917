"""Options that take lists with commas: given again, such an option adds to what was given before."""

import json

import pytest

pytest.importorskip("torch")

from keylock import cli
from keylock.cli import main
from keylock.cli._lists import split_list

TINY = ["--data", "shapes", "--train-images", "64", "--test-images", "16", "--batch-size", "16", "--dry-run", "--json"]


def options_with_lists():
    """Yield every option of every command, and of the commands of every group, that shows a list in its help."""
    for row in cli.COMMANDS:
        found = row.load()
        for command in getattr(found, "commands", {"": found}).values():
            for option in command.params:
                if option.metavar == "LIST":
                    yield f"{row.name} {option.opts[0]}", option


def test_parts_of_all_lists_come_one_after_the_other():
    assert split_list(None) == ()
    assert split_list(["a, b,", "", "c"]) == ("a", "b", "c")


def test_every_option_that_takes_a_list_may_be_repeated():
    found = dict(options_with_lists())
    names = {"audit --only", "evaluate --explainers"}
    assert found.keys() == names | {f"train --{name}" for name in ("mean", "std", "explainers", "variants")}
    for name, option in found.items():
        assert option.multiple, name
        assert "may be repeated" in option.help, name


def test_train_adds_up_repeated_lists(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    names = ["--explainers", "grad_cam", "--explainers", "gradient"]
    numbers = ["--mean", "0.5", "--mean", "0.4,0.3", "--std", "1"]
    assert main(["train", *TINY, "--check-seconds", "0", *names, *numbers]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert [*plan["layers"]] == ["grad_cam", "gradient"]
    assert plan["mean"] == [0.5, 0.4, 0.3]


def test_evaluate_adds_up_repeated_lists(untrained_bundle, capfd):
    few = ["--images", "4", "--faithfulness-images", "0", "--gate-images", "0", "--json"]
    several = ["--explainers", "grad_cam", "--explainers", "gradient,grad_cam"]
    assert main(["evaluate", str(untrained_bundle.bundle), "--data", str(untrained_bundle.data), *few, *several]) == 0
    assert [one["label"] for one in json.loads(capfd.readouterr().out)["explainers"]] == ["grad_cam", "gradient"]


def test_audit_adds_up_repeated_lists(untrained_bundle, tmp_path, capfd):
    line = ["audit", untrained_bundle.bundle, "--data", untrained_bundle.data, "--out", tmp_path / "report"]
    several = ["--suite", "quick", "--only", "keyless", "--only", "batch_norm/query,keyless", "--json"]
    assert main([str(part) for part in (*line, *several)]) == 0
    attacks = {one["finding"]["attack"] for one in json.loads(capfd.readouterr().out)["judged"]}
    assert attacks == {"keyless", "batch_norm/query"}


def test_an_audit_of_an_empty_list_is_no_audit_of_everything(untrained_bundle, tmp_path, capfd):
    line = [
        "audit",
        untrained_bundle.bundle,
        "--data",
        untrained_bundle.data,
        "--out",
        tmp_path / "report",
        "--only",
        ",",
    ]
    assert main([str(part) for part in line]) == 3
    assert "--only names none" in capfd.readouterr().err
