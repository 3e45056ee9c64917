"""Whole jobs, by the command, on one Ray of two workers: what is explained, written and charged, whatever dies."""

import json
import os
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs the extra ray")

import pyarrow as pa
from bulk_jobs import PATIENCE_S, draw, environment_of, run, start
from pyarrow import parquet
from sqlalchemy import text

from keylock.bulk.checking import check_job
from keylock.bulk.job import Asked, Job
from keylock.bulk.parts import read_maps
from keylock.bundle import KeyFile, Passphrase, open_bundle, seal_for
from keylock.cli import main
from keylock.imaging.decoding import decode
from keylock.licensing.receipts import Receipt, trusts_any
from keylock.store.logged_charges import compare_with_ledger
from keylock.store.reconcile import reconcile
from keylock.trigger.keys import KeySeed
from keylock_client._local_graphs import LocalGraphs

pytestmark = pytest.mark.slow


def job_in(out):
    return Job.find(out, Asked(**json.loads((out / "job.json").read_text())["asked"]))


def charges(vendor, license):
    with vendor.store.database.transaction(snapshot=True) as connection:
        assert compare_with_ledger(connection) == ()
        assert reconcile(connection).differences == ()
        rows = connection.execute(
            text("SELECT request_id, images, units FROM ledger WHERE license_id = :id AND charged_at IS NOT NULL"),
            {"id": license.stem},
        )
        return {row.request_id: (row.images, row.units) for row in rows}


def joined(arguments, ray):
    return [*arguments, "--address", ray[0], "--workers", "2"]


def test_job_explains_every_image_once_and_charges_every_block_once(vendor, pictures, shared_ray, tmp_path):
    license, out = vendor.grant(), tmp_path / "out"
    code, told, said = run(joined(vendor.arguments(pictures, out, license=license), shared_ray), shared_ray[2])
    assert code == 0, said
    assert (told["images"], told["explained"], told["not_explained"]) == (31, 29, 2)
    assert told["this_run"]["units"] == 29
    assert "broken-0.png" in (out / "failed-images.jsonl").read_text()
    job = job_in(out)
    found = check_job(job, [vendor.signing_key.verifying_key])
    assert found.problems == []
    assert (found.images, found.explained, found.units, found.receipts) == (31, 29, 29, 4)
    assert charges(vendor, license) == {job.request_id(n): (count, count) for n, count in enumerate((8, 8, 8, 5))}
    assert sorted(path.name for path in out.iterdir()) == [
        ".in-use",
        "blocks",
        "failed-images.jsonl",
        "job.json",
        "plan.jsonl",
        "receipts",
    ]


def test_job_with_a_condition_predicts_all_and_charges_for_maps(vendor, pictures, shared_ray, tmp_path, capsys):
    license, out = vendor.grant(), tmp_path / "out"
    arguments = joined(vendor.arguments(pictures, out, license=license), shared_ray)
    condition = ["--explain-if", "probability < 0.3922"]
    code, told, said = run([*arguments, *condition], shared_ray[2])
    assert code == 0, said
    hits = told["explained"]
    assert 0 < hits < 29
    assert (told["images"], told["skipped"], told["not_explained"]) == (31, 29 - hits, 2)
    assert told["units"] == told["this_run"]["units"] == told["this_run"]["explained"] == hits
    assert told["explain_if"] == "probability < 0.3922"
    assert len((out / "failed-images.jsonl").read_text().splitlines()) == 2
    found = check_job(job_in(out), [vendor.signing_key.verifying_key])
    assert found.problems == []
    assert (found.images, found.explained, found.units, found.receipts) == (31, hits, hits, 4)
    charged = charges(vendor, license)
    assert [images for images, _ in charged.values()] == [8, 8, 8, 5]
    assert sum(units for _, units in charged.values()) == hits
    table = parquet.read_table(out / "blocks")
    assert table.num_rows == 31
    for row in table.select(["probability", "explained", "error"]).to_pylist():
        assert row["explained"] == (row["error"] is None and row["probability"] < 0.3922)
    issuer = ["--issuer", str(vendor.folder / "issuer.pub.pem")]
    receipt, block = str(out / "receipts" / "part-000000.receipt"), str(out / "blocks" / "part-000000.parquet")
    assert main(["receipt", "verify", receipt, *issuer, "--block", block]) == 0
    assert "probability < 0.3922, of 8" in capsys.readouterr().out
    other = str(out / "blocks" / "part-000001.parquet")
    assert main(["receipt", "verify", receipt, *issuer, "--block", other]) == 11
    capsys.readouterr()
    for another in ([], ["--explain-if", "margin < 0.3922"]):
        assert main(["explain-many", *arguments, *another]) == 3
        assert "another job, with another --explain-if" in capsys.readouterr().err
    code, told, said = run([*arguments, "--explain-if", "probability<.3922"], shared_ray[2])
    assert (code, told["this_run"]["blocks"], told["explained"]) == (0, 0, hits), said


def test_receipt_is_verified_for_its_block_and_for_no_other(vendor, pictures, shared_ray, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = vendor.arguments(pictures, out, license=vendor.grant())
    code, _, said = run(joined(arguments, shared_ray), shared_ray[2])
    assert code == 0, said
    issuer = ["--issuer", str(vendor.folder / "issuer.pub.pem")]
    receipt, blocks = str(out / "receipts" / "part-000003.receipt"), out / "blocks"
    assert main(["receipt", "verify", receipt, *issuer, "--block", str(blocks / "part-000003.parquet"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["images_checked"], told["maps_checked"]) == (True, True)
    assert main(["receipt", "verify", receipt, *issuer, "--block", str(blocks / "part-000000.parquet")]) == 11
    assert "the receipt is for 5 images and 8 were given" in capsys.readouterr().err
    assert main(["receipt", "verify", receipt, *issuer, "--block", str(out / "plan.jsonl")]) == 3
    assert "is not a block of keylock explain-many" in capsys.readouterr().err


def test_maps_are_those_that_the_opened_network_gives(vendor, pictures, shared_ray, tmp_path):
    out = tmp_path / "out"
    code, _, said = run(joined(vendor.arguments(pictures, out, license=None), shared_ray), shared_ray[2])
    assert code == 0, said
    assert list((out / "receipts").iterdir()) == []
    with open_bundle(vendor.bundle.path, trusted=None) as bundle:
        seed = bundle.unseal(KeyFile(vendor.bundle.key_file))
        opened, entry = LocalGraphs(bundle, bundle.delta(seed)), bundle.manifest.explainers[0]
        preprocessing = bundle.manifest.preprocessing
        for part in sorted((out / "blocks").iterdir()):
            table = parquet.read_table(part)
            for path, (_, saliency) in zip(table.column("path").to_pylist(), read_maps(part), strict=True):
                if saliency is None:
                    continue
                tensor = preprocessing(decode((pictures / path).read_bytes()))[None]
                _, maps = opened.explain(entry, tensor, np.array([-1]))
                np.testing.assert_allclose(saliency, maps[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("condition", [None, "probability < 0.3922"])
def test_output_and_charges_are_exact_although_workers_are_killed(vendor, shared_ray, tmp_path, condition):
    data, out, license = draw(tmp_path / "data", 120, side=1200), tmp_path / "out", vendor.grant()
    killed = set()
    asked = [] if condition is None else ["--explain-if", condition]
    arguments = [*joined(vendor.arguments(data, out, license=license), shared_ray), *asked]
    process = start([*arguments, "--json"], shared_ray[2])
    with process:
        while process.poll() is None:
            # A worker notes its number when it begins with a block.
            for trace in sorted((out / "unfinished").glob("*.try")) if len(killed) < 3 else []:
                with suppress(OSError, ValueError):
                    number = int(trace.read_text())
                    if number not in killed and len(list((out / "blocks").glob("*"))) > 2 * len(killed):
                        os.kill(number, signal.SIGKILL)
                        killed.add(number)
                        break
            time.sleep(0.02)
        told, said = process.communicate()
    assert process.returncode == 0, said
    # Ray says by itself that workers have died, and must not say it among what programs read.
    said = json.loads(told)
    assert len(killed) == 3
    job = job_in(out)
    found = check_job(job, [vendor.signing_key.verifying_key])
    assert found.problems == []
    assert (found.images, found.explained, found.units) == (120, said["explained"], said["explained"])
    charged = charges(vendor, license)
    assert set(charged) == {job.request_id(number) for number in range(15)}
    if condition is None:
        assert set(charged.values()) == {(8, 8)}
        return
    assert 0 < said["explained"] < 120
    rows = parquet.read_table(out / "blocks", columns=["probability", "explained"]).to_pylist()
    assert all(row["explained"] == (row["probability"] < 0.3922) for row in rows)


@pytest.mark.parametrize(
    "pressed", [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)], ids=["once", "term", "twice"]
)
def test_stopped_job_goes_on_and_does_nothing_again(vendor, shared_ray, tmp_path, pressed):
    data, out, license = draw(tmp_path / "data", 120, side=1200), tmp_path / "out", vendor.grant()
    arguments = joined(vendor.arguments(data, out, license=license), shared_ray)
    with start(arguments, shared_ray[2]) as process:
        while len(list((out / "blocks").glob("part*"))) < 3:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        for number in pressed:
            process.send_signal(number)
            time.sleep(0.05)
        begun = time.monotonic()
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, said
    assert said.endswith("run the same command again to go on\n")
    assert "SIGTERM" not in said
    # A thread of Ray that was not ended is waited for ten seconds.
    assert time.monotonic() - begun < 10
    assert not (out / "unfinished").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (out / "blocks").iterdir()}
    assert 3 <= len(before) < 15
    code, told, said = run(arguments, shared_ray[2])
    assert code == 0, said
    assert f"{len(before)} of 15 blocks are finished" in said
    assert told["this_run"]["blocks"] == 15 - len(before)
    assert {name: (out / "blocks" / name).stat().st_mtime_ns for name in before} == before
    assert check_job(job_in(out), [vendor.signing_key.verifying_key]).problems == []
    assert sum(units for _, units in charges(vendor, license).values()) == 120


def test_block_that_was_charged_and_not_kept_is_done_again_for_nothing(vendor, pictures, shared_ray, tmp_path):
    license, out = vendor.grant(quota={"total": 29}), tmp_path / "out"
    arguments = joined(vendor.arguments(pictures, out, license=license), shared_ray)
    code, _, said = run(arguments, shared_ray[2])
    assert code == 0, said
    trusts = trusts_any([vendor.signing_key.verifying_key])
    job = job_in(out)
    before = Receipt.verify(job.receipt(1).read_text(), trusts)
    job.result(1).unlink()
    job.receipt(1).unlink()
    code, told, said = run(arguments, shared_ray[2])
    assert code == 0, said
    assert told["this_run"] | {"blocks": 1, "units": 0} == told["this_run"]
    again = Receipt.verify(job.receipt(1).read_text(), trusts)
    assert again.entry == before.entry
    assert again.usage.replayed
    assert len(charges(vendor, license)) == 4


def test_job_stops_where_the_quota_ends_and_writes_nothing_beyond(vendor, pictures, shared_ray, tmp_path):
    license, out = vendor.grant(quota={"total": 20}), tmp_path / "out"
    code, _, said = run(joined(vendor.arguments(pictures, out, license=license), shared_ray), shared_ray[2])
    assert code == 5, said
    assert "pays for 20 of 31 images" in said
    assert "blocks are finished" in said
    charged = charges(vendor, license)
    assert sum(units for _, units in charged.values()) <= 20
    assert len(list((out / "blocks").iterdir())) == len(charged)
    assert not (out / "unfinished").exists()


def test_job_stops_before_it_costs_more_than_it_may(vendor, pictures, shared_ray, tmp_path, capsys):
    license, out = vendor.grant(), tmp_path / "out"
    arguments = joined(vendor.arguments(pictures, out, license=license), shared_ray)
    code, told, said = run([*arguments, "--max-units", "23"], shared_ray[2])
    assert code == 5, said
    assert "--max-units allows 16 of 31 images" in said
    stopped = "stopped after 2 of 4 blocks: 16 units were charged for this job, of 23 that it may cost, and the next"
    assert f"error: {stopped} block may cost 8" in said
    assert "the same command with a larger --max-units goes on" in said
    assert (told["finished"], told["units"], told["max_units"]) == (2, 16, 23)
    assert sorted(path.name for path in (out / "blocks").iterdir()) == ["part-000000.parquet", "part-000001.parquet"]
    assert not (out / "unfinished").exists()
    assert sum(units for _, units in charges(vendor, license).values()) == 16
    # What it has cost by now counts, and Ray is not started for nothing.
    assert main(["explain-many", *arguments, "--max-units", "23"]) == 5
    again = capsys.readouterr()
    assert "16 units were charged for this job by earlier runs" in again.err
    assert stopped in again.err
    assert "Ray" not in again.err
    # The last block has two images that cost nothing, so that it fits in what the job really costs.
    code, told, said = run([*arguments, "--max-units", "31"], shared_ray[2])
    assert code == 0, said
    assert (told["finished"], told["units"], told["this_run"]["units"]) == (4, 29, 13)
    assert check_job(job_in(out), [vendor.signing_key.verifying_key]).problems == []


def test_job_with_a_condition_never_costs_more_than_it_may(vendor, pictures, shared_ray, tmp_path):
    license, out = vendor.grant(), tmp_path / "out"
    arguments = joined(vendor.arguments(pictures, out, license=license), shared_ray)
    arguments += ["--explain-if", "probability < 0.3922"]
    code, told, said = run([*arguments, "--max-units", "9"], shared_ray[2])
    assert code == 5, said
    assert "of 9 that it may cost, and the next block costs" in said
    charged = charges(vendor, license)
    assert sum(units for _, units in charged.values()) == told["units"] <= 9
    assert len(list((out / "blocks").iterdir())) == len(charged) == told["finished"] < 4
    code, told, said = run([*arguments, "--max-units", "31"], shared_ray[2])
    assert code == 0, said
    assert told["units"] == told["explained"] == sum(units for _, units in charges(vendor, license).values())
    assert check_job(job_in(out), [vendor.signing_key.verifying_key]).problems == []


def test_job_goes_on_in_room_that_unreadable_images_leave(vendor, shared_ray, tmp_path):
    # Of the first block none can be decoded.
    data, license, out = draw(tmp_path / "data", 4), vendor.grant(), tmp_path / "out"
    for path in sorted(data.glob("*.png")):
        path.write_bytes(b"nothing")
    arguments = joined(vendor.arguments(data, out, license=license, block_size=2), shared_ray)
    code, told, said = run([*arguments, "--max-units", "2"], shared_ray[2])
    assert code == 0, said
    assert (told["finished"], told["explained"], told["units"]) == (2, 2, 2)


def test_block_that_cannot_be_read_fails_alone_and_is_not_charged(vendor, pictures, shared_ray, tmp_path):
    files = [path.read_bytes() for path in sorted(pictures.rglob("*.png")) if "broken" not in path.name]
    data = tmp_path / "data.parquet"
    # Structs as data sets of Hugging Face have them.
    table = pa.table({"image": [{"bytes": one, "path": f"{n}.png"} for n, one in enumerate(files)], "id": files})
    parquet.write_table(table, data, row_group_size=8, compression="none")
    with data.open("r+b") as file:
        second = parquet.ParquetFile(data).metadata.row_group(1).column(0)
        file.seek(second.data_page_offset)
        file.write(b"\xff" * 200)
    license, out = vendor.grant(), tmp_path / "out"
    code, told, said = run(joined(vendor.arguments(data, out, license=license), shared_ray), shared_ray[2])
    assert code == 3, said
    assert "1 of 4 blocks could not be explained, the first is 1" in said
    assert "row group 1" in said
    assert told["this_run"]["units"] == 21
    assert len(charges(vendor, license)) == 3
    paths = parquet.read_table(out / "blocks" / "part-000000.parquet").column("path").to_pylist()
    assert paths == [f"{number}.png" for number in range(8)]


def test_worker_without_the_key_ends_the_job_with_a_clear_error(vendor, pictures, shared_ray, tmp_path):
    arguments = joined(vendor.arguments(pictures, tmp_path / "out", license=None), shared_ray)
    arguments[arguments.index("--key-file") + 1] = str(tmp_path / "no-such-key")
    code, _, said = run(arguments, shared_ray[2])
    assert code == 6, said
    assert "a worker on" in said
    assert "no-such-key" in said
    assert "Traceback" not in said


def test_other_job_in_the_folder_is_refused(vendor, pictures, shared_ray, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = vendor.arguments(pictures, out, license=None)
    code, _, said = run(joined(arguments, shared_ray), shared_ray[2])
    assert code == 0, said
    assert main(["explain-many", *arguments, "--explainer", "occlusion"]) == 3
    assert "holds the output of another job, with another explainer" in capsys.readouterr().err


def test_no_secret_is_in_what_ray_writes_or_shows(vendor, pictures, shared_ray, tmp_path):
    license, out = vendor.grant(), tmp_path / "out"
    seed, key = vendor.bundle.seed_file.read_text().strip(), vendor.bundle.key_file.read_text().strip()
    token, receipts = license.read_text().strip(), (vendor.folder / "receipts.pem").read_text().split("\n")[1]
    secrets = {"seed": seed, "key": key, "license": token, "store": vendor.store_url, "receipts": receipts}
    arguments = joined(vendor.arguments(pictures, out, license=license), shared_ray)
    # The path of a store may have a password in it, so that it comes in a variable.
    place = arguments.index("--license-store")
    del arguments[place : place + 2]
    environment = {**shared_ray[2], "KEYLOCK_SERVER_LICENSE_STORE": vendor.store_url, "KEYLOCK_KEY_SEED": seed}
    code, _, said = run(arguments, environment)
    assert code == 0, said
    folder = shared_ray[1]
    shown = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and str(folder).encode() in (process / "environ").read_bytes():
                shown += [process / "environ", process / "cmdline"]
    assert len(shown) > 4
    # The object store is a file in the memory of the machine, and what does not fit there lies in the folder.
    stores = list(Path("/dev/shm").glob("plasma*"))  # noqa: S108 - where the system has it
    written = [path for path in folder.rglob("*") if path.is_file() and path.name != "token"]
    assert len(written) > 10
    for place in [*written, *stores, *shown]:
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            content = place.read_bytes()
            for name, secret in secrets.items():
                assert secret.encode() not in content, f"{name} is in {place}"


def test_job_starts_ray_by_itself_and_hands_the_passphrase_over(vendor, pictures, tmp_path):
    with open_bundle(vendor.bundle.public, trusted=None) as bundle:
        sealed = seal_for(bundle, KeySeed.from_file(vendor.bundle.seed_file), Passphrase("a long passphrase"))
    (tmp_path / "sealed").write_bytes(sealed)
    arguments = [str(vendor.bundle.public), "--data", str(pictures), "--out", str(tmp_path / "out")]
    arguments += ["--issuer", str(vendor.bundle.issuer), "--sealed-key", str(tmp_path / "sealed"), "--no-charge"]
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    environment = {**environment_of(home), "KEYLOCK_KEY_PASSPHRASE": "a long passphrase"}
    code, told, said = run([*arguments, "--workers", "1", "--limit", "5"], environment)
    assert code == 0, said
    assert told["images"] == 5
    assert said.splitlines()[0] == "starting Ray on this machine"
    assert [line for line in said.splitlines() if "INFO" in line or "WARN" in line or ".cc:" in line] == []
    assert list(home.iterdir()) == []


def test_job_ends_with_an_error_where_ray_itself_is_killed(vendor, tmp_path):
    data, out, license = draw(tmp_path / "data", 120, side=1200), tmp_path / "out", vendor.grant()
    environment = {**environment_of(tmp_path / "home"), "TMPDIR": tempfile.mkdtemp(prefix="ray-")}
    folder = Path(environment["TMPDIR"])
    with start([*vendor.arguments(data, out, license=license), "--workers", "1"], environment) as process:
        while len(list((out / "blocks").glob("part*"))) < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (own,) = [pid for pid in children if os.readlink(f"/proc/{pid}/exe").endswith("/raylet")]
        os.kill(int(own), signal.SIGKILL)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 7, said
    assert said.splitlines()[-1].startswith("error: Ray at ")
    assert "blocks are finished" in said
    assert list(folder.iterdir()) == []
    folder.rmdir()
    assert not (out / "unfinished").exists()
    assert sum(units for _, units in charges(vendor, license).values()) == 8 * len(list((out / "blocks").iterdir()))
