"""inspect, verify, export, license, issuer and key, through the real `main`: answers, exit codes, one line of error."""

import io
import json
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

pytest.importorskip("sqlalchemy")

from client_install import run_as_customer

from keylock.bundle import (
    Architecture,
    BundleContent,
    Decoy,
    ExplainerEntry,
    Figure,
    KeyEntry,
    KeyFile,
    open_bundle,
    write_bundle,
)
from keylock.cli import main
from keylock.crypto.issuers import load_keys, to_jwks
from keylock.crypto.signing import Home, SigningKey
from keylock.imaging.preprocessing import Preprocessing
from keylock.licensing import License, issue, new_license_id, verify
from keylock.trigger.delta import Delta
from keylock.trigger.keys import Key, KeySeed

SEED = KeySeed(bytes(range(32)))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A vendor's directory with an issuer, named by the environment."""
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "home"))
    return Home.open(tmp_path / "home")


@pytest.fixture
def content():
    preprocessing = Preprocessing(size=(16, 24), channels=1, resize="exact", mean=(0.5,), std=(0.25,))
    return BundleContent(
        name="shapes",
        created=datetime(2026, 11, 22, tzinfo=UTC),
        architecture=Architecture(name="small_cnn", num_classes=12),
        classes=tuple(f"class{n}" for n in range(12)),
        preprocessing=preprocessing,
        explainers=(
            ExplainerEntry(name="grad_cam", parameters={"layer": "b"}, graph="graphs/g.onnx", pcc_to_reference=0.99999),
            ExplainerEntry(name="gradient", runtime="torch"),
        ),
        prediction_graph="graphs/p.onnx",
        key=KeyEntry.of(Key.derive(SEED, shape=preprocessing.shape, std=preprocessing.std)),
        decoy=Decoy(name="targeted"),
        figures=(Figure(name="keyed_pcc/grad_cam", value=0.97, low=0.96, high=0.98, unit="correlation"),),
        files={"weights.safetensors": b"w" * 100, "graphs/g.onnx": b"g", "graphs/p.onnx": b"p"},
    )


@pytest.fixture
def bundle(tmp_path, home, content):
    return _write(tmp_path, home, content)


@pytest.fixture
def sealed_bundle(tmp_path, home, content):
    """One of two bundles of a lock: the triggers of both keys open its delta."""
    delta = Delta({"stem.weight": np.ones((2, 1, 3, 3), np.float32), "stem.bias": np.ones(2, np.float32)})
    preprocessing = content.preprocessing
    triggers = tuple(
        Key.derive(seed, shape=preprocessing.shape, std=preprocessing.std, tile=12)
        for seed in (SEED, KeySeed(b"o" * 32))
    )
    files = {**content.files, "trigger.statistics": b"statistics"}
    sealed = replace(content, key=KeyEntry.of(triggers[0]), delta=delta, triggers=triggers, files=files)
    return _write(tmp_path, home, sealed)


def _write(folder, home, content):
    path = folder / "shapes.klb"
    sealer = KeyFile.create(folder / "key-file")
    write_bundle(path, content, signing_key=home.signing_key(), seed=SEED, sealer=sealer)
    return path


@pytest.fixture
def run(capsys):
    """Runs a command line; returns standard output. Fails the test on another exit code than the one expected."""

    def run(*arguments, code=0):
        exit_code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert exit_code == code, captured.err
        if code:
            assert captured.out == ""
            assert captured.err.count("\n") == 1
            assert captured.err.startswith("error: ")
            return captured.err
        return captured.out

    return run


# inspect, verify, export


def test_inspect_shows_what_the_bundle_says(run, bundle):
    text = run("inspect", bundle)
    for part in (
        "shapes",
        "sha256:",
        SEED.id,
        "8/255",
        "grad_cam",
        "layer=b",
        "0.99999",
        "0.97",
        "16 x 24",
        "(trusted)",
    ):
        assert part in text
    assert "sealed in the bundle" in text
    assert "class9, ..." in text


@pytest.mark.parametrize(
    ("training", "shown"),
    [
        ({"lock": {"precision": "bfloat16"}}, "bfloat16"),
        ({"lock": {"precision": "a\x1b[31m"}}, r"a\x1b[31m"),
        ({"lock": {"precision": 7}}, "not recorded"),
        ({"lock": "bfloat16"}, "not recorded"),
        ({}, "not recorded"),
    ],
)
def test_inspect_shows_the_precision_of_the_training(training, shown, run, tmp_path, home, content):
    [line] = [
        line
        for line in run("inspect", _write(tmp_path, home, replace(content, training=training))).splitlines()
        if line.startswith("  trained in")
    ]
    assert line.endswith(shown)


@pytest.mark.parametrize(
    ("figures", "lock", "says"),
    [
        ({}, "not measured", "what the lock is worth was not measured"),
        (
            {"fidelity/gradient": 0.998, "leakage/keyless/gradient": -0.02, "chance/gradient": 0.05},
            "holds",
            "the lock holds as measured: correlation with true maps at least 0.998 with the key, at most 0.020 without",
        ),
        (
            {"fidelity/gradient": 0.998, "leakage/keyless/gradient": -0.2, "chance/gradient": 0.05},
            "leaks",
            "the lock leaks: keyless maps tell more than chance, most with gradient (correlation 0.200, chance 0.050)",
        ),
        (
            {"fidelity/gradient": 0.5, "leakage/keyless/gradient": 0.2, "chance/gradient": 0.05},
            "poor",
            "the lock is poor: keyed maps differ from the reference, most with gradient (correlation 0.500)",
        ),
    ],
)
def test_inspect_begins_with_a_verdict_and_has_groups(figures, lock, says, run, tmp_path, home, content, monkeypatch):
    made = tuple(Figure(name=name, value=value) for name, value in figures.items())
    path = _write(tmp_path, home, replace(content, figures=made))
    lines = run("inspect", path).splitlines()
    assert lines[0] == f"whole, signed by an issuer you trust; {says}"
    worth = json.loads(run("inspect", path, "--json"))["verdict"]
    assert worth == {"lock": lock, "text": lines[0]}
    titles = [line for line in lines[1:] if line and not line.startswith(" ")]
    assert titles == ["bundle", "model", "lock", "explainers", *(["figures"] if figures else [])]
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "nobody"))
    assert run("inspect", path).startswith("whole, signed by an issuer that was not checked; ")


def test_inspect_as_json_is_the_manifest(run, bundle):
    document = json.loads(run("inspect", bundle, "--json"))
    manifest = open_bundle(bundle, trusted=None).manifest
    assert document.pop("issuer_trusted") is True
    assert document.pop("has_sealed_key") is True
    assert document.pop("verdict")["text"].startswith("whole, ")
    assert document == manifest.model_dump(mode="json")


def test_verify_tells_whether_the_issuer_was_checked(run, bundle, home, tmp_path, monkeypatch):
    assert "(trusted)" in run("verify", bundle)
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "none"))
    assert "not checked: give --issuer" in run("verify", bundle)
    assert json.loads(run("verify", bundle, "--json"))["issuer_trusted"] is False
    document = json.loads(run("verify", bundle, "--issuer", home.verifying_key_path, "--json"))
    assert document["issuer_trusted"] is True
    assert document["files"] == 3


def test_verify_with_the_key_of_another_issuer_fails(run, bundle, tmp_path):
    SigningKey.generate().verifying_key.write(tmp_path / "other.pem")
    assert "not among the trusted issuers" in run("verify", bundle, "--issuer", tmp_path / "other.pem", code=4)


def test_a_sealed_delta_is_shown_and_stays_in_a_public_copy(run, sealed_bundle, tmp_path):
    assert "a sealed delta of 2 entries of the weights, by the triggers of 2 keys" in run("inspect", sealed_bundle)
    assert "sealed delta" in run("verify", sealed_bundle)
    assert json.loads(run("verify", sealed_bundle, "--json"))["has_sealed_delta"]
    run("export", "--public", sealed_bundle, "--out", tmp_path / "public")
    shown = json.loads(run("verify", tmp_path / "public", "--json"))
    assert (shown["has_sealed_delta"], shown["has_sealed_key"]) == (True, False)
    sealed = tmp_path / "public" / "delta.sealed"
    sealed.write_bytes(sealed.read_bytes() + b"x")
    assert "delta.sealed" in run("verify", tmp_path / "public", code=4)


def test_a_network_that_tells_the_trigger_itself_says_so(run, bundle):
    assert "in the network, which itself tells the trigger" in run("inspect", bundle)
    assert not json.loads(run("verify", bundle, "--json"))["has_sealed_delta"]


@pytest.mark.parametrize("command", ["inspect", "verify", "export"])
def test_changed_bundle_is_refused_by_every_command(run, bundle, tmp_path, command):
    raw = bytearray(bundle.read_bytes())
    raw[raw.index(b"w" * 100)] ^= 1
    bundle.write_bytes(raw)
    more = ["--public", "--out", tmp_path / "copy"] if command == "export" else []
    assert "weights.safetensors" in run(command, bundle, *more, code=4)


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_missing_bundle_is_one_line(run, home, tmp_path, command):
    assert "there is no bundle at" in run(command, tmp_path / "none", code=4)


def test_export_makes_a_public_copy(run, bundle, home, tmp_path):
    out = tmp_path / "public"
    assert run("export", "--public", bundle, "--out", out) == f"{out}\n"
    copy = open_bundle(out, trusted=[home.verifying_key()])
    assert not copy.has_key
    assert "not in this copy" in run("inspect", out)
    assert "exists" in run("export", "--public", bundle, "--out", out, code=4)
    assert (
        json.loads(run("export", "--public", bundle, "--out", out, "--overwrite", "--json"))["has_sealed_key"] is False
    )


def test_export_over_the_original_is_refused(run, bundle):
    error = run("export", "--public", bundle, "--out", bundle, "--overwrite", code=4)
    assert "key would be lost" in error
    assert open_bundle(bundle, trusted=None).has_key


def test_export_of_the_key_is_not_offered(run, bundle, tmp_path):
    assert "--public" in run("export", bundle, "--out", tmp_path / "copy", code=3)


# issuer, key


def test_issuer_is_made_once(run, tmp_path):
    home = tmp_path / "vendor"
    assert "keylock issuer init" in run("issuer", "show", "--home", home, code=6)
    made = json.loads(run("issuer", "init", "--home", home, "--json"))
    again = json.loads(run("issuer", "init", "--home", home, "--json"))
    assert made == again
    assert made["key_id"] == Home.open(home, create=False).signing_key().key_id
    shown = run("issuer", "show", "--home", home)
    assert made["key_id"] in shown
    assert "BEGIN PUBLIC KEY" in shown
    assert "PRIVATE" not in shown


def test_key_id_shows_the_id_and_not_the_seed(run, tmp_path):
    SEED.write(tmp_path / "seed")
    assert run("key", "id", "--key-seed-file", tmp_path / "seed") == f"{SEED.id}\n"
    assert json.loads(run("key", "id", "--key-seed-file", tmp_path / "seed", "--json"))["key_id"] == SEED.id


@pytest.mark.parametrize(("content", "says"), [("", "empty"), ("short", "guessed")])
def test_bad_seed_file_is_one_line(run, tmp_path, content, says):
    (tmp_path / "seed").write_text(content)
    assert says in run("key", "id", "--key-seed-file", tmp_path / "seed", code=6)
    assert "cannot read" in run("key", "id", "--key-seed-file", tmp_path / "none", code=6)


def test_key_new_writes_a_private_file(run, tmp_path):
    path = tmp_path / "seed"
    shown = run("key", "new", "--out", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert shown.strip() == KeySeed.from_file(path).id
    KeyFile(path)
    assert "not overwritten" in run("key", "new", "--out", path, code=6)


# license


def issue_one(run, *options):
    return json.loads(run("license", "issue", "--customer", "Acme Ltd", *options, "--json"))


def test_issued_token_is_good_for_a_year_and_all_explainers(run, home):
    before = datetime.now(UTC)
    token = run("license", "issue", "--customer", "Acme Ltd", "--model", "shapes").strip()
    license = verify(token, [home.verifying_key()], now=datetime.now(UTC))
    assert (license.customer, license.models, license.explainers) == ("Acme Ltd", ("shapes",), ("*",))
    assert timedelta(days=364, hours=23) < license.expires - before < timedelta(days=365, minutes=1)


def test_license_for_a_bundle_names_its_digest(run, home, bundle):
    issued = issue_one(run, "--bundle", bundle, "--explainer", "grad_cam", "--days", "30")
    assert issued["license"]["models"] == [open_bundle(bundle, trusted=None).manifest.model_digest]
    assert issued["license"]["explainers"] == ["grad_cam"]


def test_license_for_an_explainer_the_bundle_lacks_is_refused(run, home, bundle):
    error = run("license", "issue", "--customer", "A", "--bundle", bundle, "--explainer", "lime", code=3)
    assert "choose one of grad_cam, gradient" in error


def test_token_goes_to_a_private_file_that_show_reads(run, home, tmp_path):
    out = tmp_path / "acme.license"
    issued = issue_one(run, "--model", "*", "--out", out)
    assert "token" not in issued
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    shown = json.loads(run("license", "show", out, "--json"))
    assert shown["id"] == issued["license"]["id"]
    assert shown["status"] == "active"
    assert "not overwritten" in run("license", "issue", "--customer", "A", "--model", "*", "--out", out, code=3)
    assert len(json.loads(run("license", "list", "--json"))) == 1


def test_revoked_license_is_shown_as_revoked(run, home):
    issued = issue_one(run, "--model", "shapes")
    license_id = issued["license"]["id"]
    assert license_id in run("license", "revoke", license_id, "--why", "did not pay")
    for argument in (license_id, issued["token"]):
        shown = json.loads(run("license", "show", argument, "--json"))
        assert (shown["status"], shown["revoked_why"]) == ("revoked", "did not pay")
    listed = run("license", "list")
    assert license_id in listed
    assert "revoked" in listed
    assert json.loads(run("license", "list", "--customer", "Nobody", "--json")) == []


def test_customer_shows_a_token_with_the_public_key_alone(run, home, tmp_path, monkeypatch):
    issued = issue_one(run, "--model", "shapes")
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "customer"))
    shown = run("license", "show", issued["token"])
    said = f"signature not checked: it names the issuer {home.verifying_key().key_id}; give"
    assert " ".join(shown.split()).startswith(said)
    assert issued["license"]["id"] in shown
    assert "this is not a keylock license" in run("license", "show", issued["token"][:-8], code=5)
    assert "give the vendor's with --issuer" in run("license", "verify", issued["token"], code=6)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{issued['token']}\n".encode())))
    text = run("license", "show", "-", "--issuer", home.verifying_key_path)
    assert issued["license"]["id"] in text
    assert "active" in text
    assert text.split()[:4] == ["signature", "good,", "by", home.verifying_key().key_id]
    assert not (tmp_path / "customer").exists()


def test_the_vendor_s_public_keys_are_handed_over_beside_the_license(run, home, tmp_path, monkeypatch):
    file, keys = tmp_path / "acme.license", tmp_path / "acme.issuers.jwks"
    issued = json.loads(issue_to(run, file))
    assert issued["issuers_file"] == str(keys)
    assert [key.key_id for key in load_keys(keys)] == [home.verifying_key().key_id]
    assert "PRIVATE" not in keys.read_text()
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "customer"))
    done = run_as_customer("license", "show", file, folder=tmp_path, environment={"KEYLOCK_HOME": tmp_path / "none"})
    assert done.stdout.split()[:3] == ["signature", "good,", "by"], done.stderr
    assert "good: license" in run("license", "verify", file, "--issuer", keys)
    # Those of somebody else check nothing.
    keys.write_text(json.dumps(to_jwks([SigningKey.generate().verifying_key])))
    assert "not trusted here" in run("license", "show", file, code=5)
    keys.unlink()
    assert "not checked" in run("license", "show", file)


def test_keys_are_written_over_keys_alone(run, home, tmp_path):
    (tmp_path / "acme.issuers.jwks").write_text("mine")
    assert "holds something else" in issue_to(run, tmp_path / "acme.license", code=3)
    assert (tmp_path / "acme.issuers.jwks").read_text() == "mine"
    assert not (tmp_path / "acme.license").exists()
    (tmp_path / "acme.issuers.jwks").write_text(json.dumps(to_jwks([SigningKey.generate().verifying_key])))
    issue_to(run, tmp_path / "acme.license")
    assert [key.key_id for key in load_keys(tmp_path / "acme.issuers.jwks")] == [home.verifying_key().key_id]


def issue_to(run, file, **expected):
    return run("license", "issue", "--customer", "Acme", "--model", "*", "--out", file, "--json", **expected)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "xrya"], "unknown model 'xrya': choose one of sha256:"),
        (["--model", "xrya"], ", shapes"),
        (["--model", "sha256:" + 64 * "0"], "unknown model"),
        (["--explainer", "grad_camm"], "unknown explainer 'grad_camm': choose one of grad_cam, gradient"),
    ],
)
def test_names_that_a_bundle_does_not_have_are_refused(run, home, bundle, options, says):
    assert says in run("license", "issue", "--customer", "Acme", "--bundle", bundle, *options, code=3)
    assert not home.licenses_path.exists()


def test_names_of_a_bundle_are_granted_with_it(run, home, bundle):
    digest = open_bundle(bundle, trusted=None).manifest.model_digest
    for names in (["shapes"], ["*"], [digest]):
        given = [option for name in names for option in ("--model", name)]
        models = issue_one(run, "--bundle", bundle, *given)["license"]["models"]
        assert models == list(dict.fromkeys([*names, digest]))


def test_expired_token_is_shown_as_expired_and_a_forged_one_not_at_all(run, home):
    license = License(
        id=new_license_id(),
        customer="Acme Ltd",
        models=("shapes",),
        explainers=("*",),
        issued_at=datetime(2020, 1, 1, tzinfo=UTC),
        not_before=datetime(2020, 1, 1, tzinfo=UTC),
        expires=datetime(2020, 2, 1, tzinfo=UTC),
    )
    token = issue(license, home.signing_key())
    assert json.loads(run("license", "show", token, "--json"))["status"] == "expired"
    assert "changed" in run("license", "show", token[:-8] + "AAAAAAAA", code=5)
    license = verify(token, [home.verifying_key()], now=datetime(2020, 1, 2, tzinfo=UTC))
    assert "is not trusted" in run("license", "show", issue(license, SigningKey.generate()), code=5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--bundle BUNDLE"),
        (["--model", "my model"], "--model is wrong"),
        (["--model", "a", "--expires", "soon"], "--expires must be a date"),
        (["--model", "a", "--expires", "2020-01-01"], "would be over already, on 2020-01-01"),
        (["--model", "a", "--not-before", "2020-01-01", "--days", "3"], "a later end by --days"),
        (["--model", "a", "--not-before", "2999-01-02", "--expires", "2999-01-01"], "must expire after it starts"),
        (["--model", "a", "--days", "1", "--expires", "2030-01-01"], "not both"),
        (["--model", "a", "--days", "1e12"], "too large"),
        (["--model", "a", "--days", "0"], "would be over already"),
        (["--model", "a", "--explainer", "../x"], "--explainer is wrong"),
        (["--model", "a", "--explainer", "x", "--explainer", "x"], "--explainer: a name is listed twice"),
    ],
    ids=range(11),
)
def test_impossible_license_is_one_line(run, home, options, says):
    assert says in run("license", "issue", "--customer", "Acme", *options, code=3)
    assert not home.licenses_path.exists()


def test_commands_without_an_issuer_or_store_say_what_to_do(run, tmp_path, monkeypatch):
    monkeypatch.setenv("KEYLOCK_HOME", str(tmp_path / "none"))
    assert "keylock issuer init" in run("license", "issue", "--customer", "A", "--model", "*", code=6)
    for arguments in (["list"], ["show", "lic_1"], ["revoke", "lic_1"]):
        assert "no license was issued" in run("license", *arguments, code=7)
    assert not (tmp_path / "none").exists()


def test_unknown_license_is_one_line(run, home):
    issue_one(run, "--model", "*")
    for command in ("show", "revoke"):
        assert "lic_none" in run("license", command, "lic_none", code=5)
