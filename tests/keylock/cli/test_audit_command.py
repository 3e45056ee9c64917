"""`keylock audit` and `verify-audit` on a bundle that was not even trained: report, signature, resuming, options."""

import json

import pytest

pytest.importorskip("torch")

from client_install import run_as_customer

from keylock.cli import main
from keylock.crypto.signing import Home

FEW = ("--suite", "quick", "--only", "keyless,quantise,batch_norm/base")


@pytest.fixture(autouse=True)
def _no_secrets_in_the_environment(monkeypatch):
    for name in ("KEYLOCK_KEY_SEED", "KEYLOCK_KEY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(untrained_bundle, capfd, tmp_path):
    """Run the command on the bundle and its data; returns exit code, output and errors."""

    def start(*arguments):
        line = ["audit", untrained_bundle.bundle, "--data", untrained_bundle.data, "--out", tmp_path / "report"]
        code = main([str(part) for part in (*line, "--home", tmp_path / "home", *arguments)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return start


def test_a_report_is_written_signed_and_verified(run, tmp_path, capfd):
    home = Home.open(tmp_path / "home")
    code, out, err = run(*FEW, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [one["finding"]["attack"] for one in document["judged"]][-1] == "batch_norm/base"
    assert document["signed"]
    assert document["lock"] in {"trained trigger", "sealed delta"}

    figures, issuer = tmp_path / "report" / "audit.json", home.verifying_key_path
    assert main(["verify-audit", str(figures), "--issuer", str(issuer)]) == 0
    shown = capfd.readouterr().out
    assert "(trusted)" in shown
    assert "as signed" in shown
    as_customer = run_as_customer("verify-audit", figures, "--issuer", issuer, "--json", folder=tmp_path)
    assert as_customer.returncode == 0, as_customer.stderr
    assert json.loads(as_customer.stdout)["issuer_trusted"]
    page = tmp_path / "report" / "report.html"
    page.write_text(page.read_text().replace("Audit of", "Praise of"))
    assert main(["verify-audit", str(figures)]) == 6
    assert "not the page" in capfd.readouterr().err


def test_it_goes_on_where_it_was_and_says_what_it_found(run, tmp_path):
    code, out, err = run(*FEW)
    assert code == 0, err
    assert "not signed" in out
    assert "quantise/fp16" in out
    first = (tmp_path / "report" / "outcomes" / "keyless.json").read_bytes()
    assert run(*FEW, "--oracle", "onnx")[0] == 0
    # The outcome is the one of the first run: its duration is still the same.
    assert (tmp_path / "report" / "outcomes" / "keyless.json").read_bytes() == first


def test_figures_do_not_depend_on_the_number_of_workers(run, tmp_path):
    found = []
    for workers in ("1", "2"):
        code, out, err = run(*FEW, "--workers", workers, "--out", tmp_path / f"report-{workers}", "--json")
        assert code == 0, err
        judged = json.loads(out)["judged"]
        for one in judged:
            one["finding"]["cost"].pop("seconds", None)
        found.append(judged)
    assert found[0] == found[1]


def test_strict_ends_with_an_exit_code_of_its_own(run, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text("[t0]\nmax_pcc = -1\n")
    code, out, err = run("--suite", "quick", "--only", "keyless", "--policy", policy, "--strict")
    assert code == 12, err
    assert "fail" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--suite", "slow"), "unknown suite 'slow'"),
        (("--only", "nothing"), "unknown attack 'nothing'"),
        (("--baseline", "good"), "unknown baseline 'good'"),
        (("--oracle", "delphi"), "unknown oracle 'delphi'"),
        (("--workers", "2", "--oracle", "onnx"), "--workers 2 needs Linux, and --oracle torch"),
        (("--policy", "missing.toml"), "cannot read the policy"),
    ],
)
def test_a_bad_option_is_one_line(run, arguments, said):
    code, out, err = run(*arguments)
    assert code == 3, err
    assert out == ""
    assert said in err.splitlines()[-1]
