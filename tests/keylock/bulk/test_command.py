"""What the command refuses before anything begins, each with its exit code and what to do. No Ray is started."""

import shutil
import socket
import sys

import pytest

pytest.importorskip("ray", reason="needs the extra ray")

from bulk_jobs import made_job

from keylock.cli import main
from keylock.errors import InputError, StorageError


def refused(capsys, arguments, *, code):
    assert main(["explain-many", *arguments]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert "Traceback" not in told.err
    return told.err


@pytest.fixture
def arguments(vendor, pictures, tmp_path):
    return vendor.arguments(pictures, tmp_path / "out", license=None)


def test_true_maps_without_a_license_need_a_word(arguments, capsys):
    arguments.remove("--no-charge")
    told = refused(capsys, arguments, code=5)
    assert "--license-file" in told
    assert "--no-charge" in told


def test_license_and_no_charge_exclude_each_other(arguments, vendor, capsys):
    told = refused(capsys, [*arguments, "--license-file", str(vendor.grant())], code=3)
    assert "--license-file and --no-charge exclude each other" in told


def test_license_is_checked_before_anything_is_listed(vendor, pictures, tmp_path, capsys):
    license = vendor.grant(explainers=("occlusion",))
    told = refused(capsys, vendor.arguments(tmp_path / "none", tmp_path / "out", license=license), code=5)
    assert "does not cover" in told or "explainer" in told


def test_license_needs_a_store(vendor, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = vendor.arguments(pictures, tmp_path / "out", license=vendor.grant())
    place = arguments.index("--license-store")
    del arguments[place : place + 2]
    assert "--license-store" in refused(capsys, arguments, code=3)


def test_block_is_no_larger_than_the_license_allows(vendor, pictures, tmp_path, capsys):
    arguments = vendor.arguments(pictures, tmp_path / "out", license=vendor.grant(max_images=4))
    assert "--block-size 4" in refused(capsys, arguments, code=3)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--explainer", "nothing"], "unknown explainer 'nothing'"),
        (["--target", "nobody"], "unknown class 'nobody'"),
        (["--target", "99"], "class 99 does not exist"),
        (["--map-dtype", "float8"], "--map-dtype"),
        (["--prediction", "secret"], "--prediction"),
        (["--column", "image"], "--column"),
        (["--data", "s3://name:word@bucket/x"], "password"),
        (["--offline-license", "x"], "--offline-license and --no-charge exclude each other"),
        (["--explain-if", "sure"], "'sure' is no condition for --explain-if: write 'probability < 0.8'"),
        (["--explain-if", "margin < 2"], "--explain-if compares the margin with 2: give a number above 0"),
        (["--explain-if", "margin < .2 and probability < .5"], "is no condition for --explain-if"),
        (["--explain-if", "class in cow"], "unknown class 'cow': choose one of a, b, c"),
        (["--explain-if", "class in 3"], "class 3 does not exist: the model has 3 classes, 0 to 2"),
        (["--explain-if", "class in a", "--prediction", "keyed"], "leave --prediction keyed out"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, capsys, more, told):
    assert told in refused(capsys, [*arguments, *more], code=3)


def test_condition_is_read_before_the_bundle_is_opened(arguments, capsys):
    missing = ["no-bundle.klb", *arguments[1:], "--explain-if", "sure"]
    assert "is no condition for --explain-if" in refused(capsys, missing, code=3)


def test_folder_with_something_else_is_left_alone(arguments, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert "is not empty and holds no job" in refused(capsys, arguments, code=3)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_what_an_offline_license_needs_is_named_by_its_options(arguments, capsys):
    arguments.remove("--no-charge")
    told = refused(capsys, [*arguments, "--offline-license", "x"], code=3)
    assert "--offline-license needs --key-provider, which opens its key, and no --sealed-key" in told


def test_a_file_is_no_folder_for_results(arguments, tmp_path, capsys):
    (tmp_path / "out").write_text("years of work")
    assert "out is not a folder: give --out a folder" in refused(capsys, arguments, code=3)
    assert (tmp_path / "out").read_text() == "years of work"


def test_no_way_to_the_key_is_told_before_a_job_is_begun(arguments, tmp_path, capsys):
    place = arguments.index("--key-file")
    missing = [*arguments[: place + 1], str(tmp_path / "none.key"), *arguments[place + 2 :]]
    assert "none.key, which is to open the key: there is no such file" in refused(capsys, missing, code=6)
    del arguments[place : place + 2]
    assert "is sealed: give --key-file, --key-passphrase-file, --key-provider" in refused(capsys, arguments, code=6)
    assert not (tmp_path / "out").exists()


def test_cluster_that_does_not_answer_is_named_at_once(arguments, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        told = refused(capsys, [*arguments, "--address", address], code=7)
    assert f"no Ray cluster answers at {address}" in told
    assert "0 of 4 blocks are finished" in told


def test_address_that_is_none_is_refused(arguments, capsys):
    assert "is no address of a Ray cluster" in refused(capsys, [*arguments, "--address", "nowhere"], code=7)


def test_passphrase_in_a_variable_does_not_reach_a_cluster(arguments, capsys, monkeypatch):
    monkeypatch.setenv("KEYLOCK_KEY_PASSPHRASE", "a long passphrase")
    place = arguments.index("--key-file")
    del arguments[place : place + 2]
    told = refused(capsys, [*arguments, "--address", "127.0.0.1:1"], code=3)
    assert "--key-passphrase-file" in told
    assert "a long passphrase" not in told


def test_missing_ray_names_the_extra(arguments, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "'.[ray]'" in refused(capsys, arguments, code=10)


@pytest.mark.parametrize("error", [InputError("stop"), KeyboardInterrupt()])
@pytest.mark.parametrize("gone", [True, False])
def test_going_on_is_promised_only_where_the_job_is_still_there(arguments, tmp_path, monkeypatch, capsys, error, gone):
    def ended(*_given, **_options):
        if gone:
            shutil.rmtree(tmp_path / "out")
        raise error

    monkeypatch.setattr("keylock.bulk.run.run_job", ended)
    assert main(["explain-many", *arguments]) == (3 if isinstance(error, InputError) else 130)
    told = capsys.readouterr().err
    assert f"0 of 4 blocks are finished in {tmp_path / 'out'}" in told
    assert ("begins a new one, which is charged by itself" in told) is gone
    assert ("go on" in told or "goes on" in told) is not gone


def test_result_that_cannot_be_put_away_is_no_loss_of_others(vendor, pictures, tmp_path):
    job = made_job(vendor, pictures, tmp_path / "out")
    shutil.rmtree(job.folder / "blocks")
    (job.unfinished / "one.parquet").write_bytes(b"rows")
    with pytest.raises(StorageError, match="the blocks that are finished stay; make room"):
        job.keep(0, "one.parquet", None)
