"""A worker and what it is given, without Ray."""

import os
import re
import socket
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the extra ray")

from bulk_jobs import draw, made_job, order_for

from keylock.bulk.handover import handed_over, take_over
from keylock.bulk.job import begin_try
from keylock.bulk.parts import (
    Explained,
    Predicted,
    Row,
    explained_in,
    failures_of,
    read_charged,
    read_maps,
    rows_of,
    write_part,
)
from keylock.bulk.worker import BlockResult, Worker
from keylock.errors import InputError, UnsealError
from keylock.licensing.charges import AnswerDigests

ROOT = Path(__file__).parents[3]


SEEN = Predicted("a", 0, 0.5, np.zeros(3, np.float32))


def explained(saliency):
    return Explained(saliency, None, "b", 1, 0.25, True)


@pytest.fixture
def job(vendor, tmp_path):
    return made_job(vendor, draw(tmp_path / "data", 5, broken=1), tmp_path / "out")


def test_result_survives_its_journey():
    answer = AnswerDigests(maps=("a",), scalings=(None,), predictions=("b",), targets=("c",))
    result = BlockResult(number=3, images=2, written="x", image_digests=("d",), answer=answer, cpu_s=0.5)
    assert BlockResult.of_text(result.to_text()) == result
    failed = BlockResult(number=3, images=2, error=("UnsealError", "no"), fatal=True)
    assert BlockResult.of_text(failed.to_text()) == failed


def test_worker_says_what_is_wrong_with_the_key_in_every_answer(vendor, job):
    settings = {"bundle": str(vendor.bundle.path), "key_file": "/no/such/key"}
    worker = Worker(order_for(vendor, job, settings=settings))
    result = worker.explain(0, 4, 0)
    assert result.fatal
    assert result.error is not None
    assert result.error[0] == "UnsealError"
    assert "/no/such/key" in result.error[1]


def test_worker_that_does_not_see_the_folder_says_so(vendor, job, tmp_path):
    worker = Worker(order_for(vendor, job, folder=str(tmp_path / "elsewhere")))
    assert "a folder that all of them share" in worker.explain(0, 4, 0).error[1]


def test_image_beyond_the_license_is_reported_and_the_others_are_explained(vendor, job):
    worker = Worker(order_for(vendor, job, max_pixels=399))
    result = worker.explain(0, 4, 0)
    assert (result.error, result.image_digests) == (None, ())
    assert "at most 399 are accepted" in failures_of(job.unfinished / result.written)[0]["error"]


def test_block_is_explained_in_the_order_of_the_plan(vendor, job):
    worker = Worker(order_for(vendor, job))
    placed = job.blocks[1]
    result = worker.explain(placed.number, placed.count, placed.offset)
    assert result.error is None
    maps = read_maps(job.unfinished / result.written)
    assert [one is None for _, one in maps] == [False, True]
    assert tuple(image for image, one in maps if one is not None) == result.image_digests


def test_block_that_ends_every_worker_is_given_up(tmp_path):
    for _ in range(5):
        begin_try(tmp_path, 7, most=5)
    with pytest.raises(InputError, match="5 workers ended"):
        begin_try(tmp_path, 7, most=5)
    assert begin_try(tmp_path, 8, most=5) != begin_try(tmp_path, 8, most=5)


def test_file_of_a_block_keeps_maps_and_says_why_there_is_none(tmp_path):
    path = tmp_path / "part.parquet"
    saliency = np.arange(6, dtype=np.float32).reshape(2, 3)
    rows = [
        Row(0, "a.png", "d0", SEEN, explained(saliency)),
        Row(1, "b.png", "d1", error="damaged"),
        Row(2, "c.png", "d2", SEEN),
    ]
    write_part(path, rows, {"job": "x"}, blank=np.zeros_like(saliency))
    (first, one), (second, other), (third, skipped) = read_maps(path)
    assert (first, second, other, third, skipped) == ("d0", "d1", None, "d2", None)
    np.testing.assert_array_equal(one, saliency)
    assert [digest for digest, _ in read_charged(path)] == ["d0", "d2"]
    assert failures_of(path) == [{"index": 1, "path": "b.png", "error": "damaged"}]
    assert (rows_of(path), explained_in(path)) == (3, 1)
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes()[:-20])
    assert rows_of(path) is None


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_maps_of_every_type_are_read_as_they_were_written(tmp_path, dtype):
    saliency = np.arange(6).reshape(2, 3).astype(dtype)
    write_part(tmp_path / "part", [Row(0, "a.png", "d0", SEEN, explained(saliency))], {}, blank=saliency)
    [(_, found)] = read_maps(tmp_path / "part")
    assert found.dtype == saliency.dtype
    np.testing.assert_array_equal(found, saliency)


def test_secrets_are_handed_to_whoever_asks_and_lie_nowhere(tmp_path):
    secrets = {"VAULT_TOKEN": "hvs.secret"}
    with handed_over(secrets, tmp_path) as place:
        assert place is not None
        assert place.stat().st_mode & 0o777 == 0o600
        found = []
        threads = [threading.Thread(target=lambda: found.append(take_over(place))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [secrets] * 8
        assert [path for path in tmp_path.iterdir() if path.is_file()] == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnsealError, match="does not answer any more"):
        take_over(place)


def test_one_that_asks_and_goes_away_holds_up_nobody(tmp_path):
    with handed_over({"NAME": "x" * 100_000}, tmp_path) as place:
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(os.fspath(place))
        assert take_over(place) == {"NAME": "x" * 100_000}


def test_without_secrets_nothing_listens(tmp_path):
    with handed_over({}, tmp_path) as place:
        assert place is None
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_the_program_of_the_documentation_reads_maps_where_an_image_has_none(tmp_path, monkeypatch, dtype):
    saliency = np.arange(6).reshape(2, 3).astype(dtype)
    blocks = tmp_path / "maps" / "blocks"
    blocks.mkdir(parents=True)
    # The first block that is read has no map at all.
    for number, rows in enumerate(
        (
            [Row(0, "a.png", "d0", error="damaged"), Row(1, "b.png", "d1", SEEN)],
            [Row(2, "c.png", "d2", SEEN), Row(3, "d.png", "d3", SEEN, explained(saliency))],
        )
    ):
        write_part(blocks / f"part-{number:06}.parquet", rows, {}, blank=np.zeros_like(saliency))
    [program] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "bulk.md").read_text("utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(program, found)  # noqa: S102 - our own page
    assert found["table"].column("path").to_pylist() == ["d.png"]
    np.testing.assert_array_equal(found["maps"], saliency[None])
