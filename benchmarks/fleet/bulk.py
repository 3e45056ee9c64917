"""Bulk explanations by workers of Ray: what an image costs, what killed workers change, and how far it goes.

    python benchmarks/fleet/bulk.py cost --images 1536 --rounds 2
    python benchmarks/fleet/bulk.py cost --images 1536 --rounds 2 --variant auto
    python benchmarks/fleet/bulk.py cost --thin
    python benchmarks/fleet/bulk.py kills --seconds 120
    python benchmarks/fleet/bulk.py store

*cost*: processor time of an image by `keylock explain-many`, with one worker and with two, beside that of the same
files over `ExplainStream` through `keylock serve`, both licensed, charged and with receipts. The start is left out of
both, and blocks are as large as they are unless told otherwise. Everything else counts: the workers, the process that
was started and Ray's own, which use some time in every second whatever is done; of the other way the server and its
client.
*kills*: a worker is killed without warning every 20 seconds; then all results, receipts and books are compared.
*store*: what the process that charges, the store and the log bear, on SQLite and on PostgreSQL, and from all figures on
paper what 100 workers would ask of them and of the network.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks" / "licensing"), str(ROOT / "benchmarks" / "serving"), str(ROOT / "tests")]

import numpy as np
from material import Material, prepare
from PIL import Image
from processes import ServerProcess, _family, _worked, free_port
from sqlalchemy import text
from world import postgresql, record

from keylock.bulk.charging import Cashier
from keylock.bulk.checking import check_job
from keylock.bulk.job import Asked, Job
from keylock.bulk.worker import BlockResult
from keylock.bundle import open_bundle
from keylock.crypto.issuers import home_keys
from keylock.crypto.signing import Home
from keylock.data.shapes import draw_shapes
from keylock.licensing import License, issue, new_license_id
from keylock.licensing.charges import AnswerDigests
from keylock.licensing.receipt_keys import ReceiptKey
from keylock.store import LicenseStore
from keylock.store.logged_charges import compare_with_ledger
from keylock.store.reconcile import reconcile
from keylock_server import ServerSettings

RESULTS = ROOT / "benchmarks" / "results" / "fleet"
_EXPLAINER = "grad_cam"
_DRAWN = 64
_MOST_DRAWN = 512
_KILL_EVERY_S = 20.0
_BLOCKS_CHARGED = 60
_ONE_BLOCK = 256

_CLIENT = """
import resource, sys
from pathlib import Path
from keylock_client import Client
target, token, explainer, *files = sys.argv[1:]
with Client(target, license=Path(token).read_text().strip()) as client:
    def ask(files):
        for found in client.explain_many([Path(file) for file in files], explainer=explainer):
            assert found.error is None, found.error
            assert found.explanation.keyed and found.explanation.receipt is not None
    ask(files[:8])
    print("warm", flush=True)
    sys.stdin.readline()
    before = resource.getrusage(resource.RUSAGE_SELF)
    ask(files[8:])
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, flush=True)
    sys.stdin.readline()
"""


def draw(folder: Path, count: int, *, side: int) -> Path:
    """Draw JPEG files with noise, as photographs have it, somewhat larger than the network looks at."""
    folder.mkdir(parents=True)
    drawn = draw_shapes(count=_DRAWN, size=min(side, _MOST_DRAWN), seed=1).images
    pixels = [np.asarray(Image.fromarray(one).resize((side, side))) for one in drawn]
    generator = np.random.default_rng(1)
    for number in range(count):
        noise = generator.normal(scale=12, size=(side, side, 3))
        shown = np.clip(pixels[number % _DRAWN] + noise, 0, 255).astype(np.uint8)
        Image.fromarray(shown).save(folder / f"{number:05}.jpg", quality=90)
    return folder


class Weighed:
    """Runs a job and notes the processor time of everything that it starts: its workers, itself, and Ray's own."""

    def __init__(self, command: list[str], environment: dict[str, str], *, blocks: Path, warm: int = 0) -> None:
        """Start it.

        Args:
            command: The job.
            environment: Its variables.
            blocks: Folder of its results.
            warm: How many blocks are finished when its start does not weigh any more.
        """
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self._blocks, self._warm = blocks, warm
        self._used: dict[int, tuple[str, float]] = {}
        self._marks: list[tuple[int, float, dict[str, float]]] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            # Processes come and go while they are looked for.
            with contextlib.suppress(OSError):
                for pid in _family(self.process.pid):
                    told = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
                    kind = "workers" if "ray::Map" in told else "job" if pid == self.process.pid else "ray"
                    self._used[pid] = kind, _worked(pid)
                count = len(list(self._blocks.glob("part*"))) if self._blocks.is_dir() else 0
                if count >= self._warm and (not self._marks or count > self._marks[-1][0]):
                    self._marks.append((count, time.monotonic(), self._sums()))
            time.sleep(0.1)

    def _sums(self) -> dict[str, float]:
        sums = dict.fromkeys(("workers", "job", "ray"), 0.0)
        for kind, seconds in self._used.values():
            sums[kind] += seconds
        return sums

    def finish(self) -> dict[str, Any]:
        """Wait for it and return the document that it prints."""
        told, _ = self.process.communicate()
        self._thread.join()
        if self.process.returncode:
            raise RuntimeError(f"{self.process.args} ended with {self.process.returncode}")
        found: dict[str, Any] = json.loads(told)
        return found

    def between(self, block: int) -> dict[str, float]:
        """Return what was used between two finished blocks: images, seconds, and processor time by kind.

        Args:
            block: Images in each block.
        """
        (first, began, before), (last, ended, after) = self._marks[0], self._marks[-1]
        used = {kind: after[kind] - before[kind] for kind in after}
        return {"images": (last - first) * block, "seconds": ended - began, **used, "start": sum(before.values())}


def numbers_of(variant: str) -> list[str]:
    """Return the options that say what to compute in; OpenVINO is left out where nothing is chosen."""
    return ["--variant", variant, "--runtime", "auto" if variant == "auto" else "onnxruntime"]


def job_command(
    material: Material, data: Path, out: Path, *, workers: int, block: int | None = None, variant: str = "float32"
) -> list[str]:
    """Return the command of a job; blocks are as large as they are by default where no size is given."""
    command = [sys.executable, "-m", "keylock", "explain-many", str(material.bundle), "--data", str(data), "--json"]
    command += ["--out", str(out), "--key-file", str(material.key_file), "--home", str(material.home)]
    command += ["--license-file", str(material.token), "--explainer", _EXPLAINER]
    command += numbers_of(variant)
    return [*command, "--workers", str(workers), *([] if block is None else ["--block-size", str(block)])]


def environment() -> dict[str, str]:
    """Return the variables of what is measured: one thread for each computation."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def check(material: Material, out: Path) -> dict[str, Any]:
    """Read all that a job has written, and what was charged; raise where anything does not agree."""
    asked = Asked(**json.loads((out / "job.json").read_text())["asked"])
    job = Job.find(out, asked)
    assert job is not None
    home = Home(material.home)
    found = check_job(job, list(home_keys(home)))
    with LicenseStore(home.licenses_url) as store, store.database.transaction(snapshot=True) as connection:
        rows = connection.execute(
            text("SELECT count(*), sum(units) FROM ledger WHERE charged_at IS NOT NULL AND request_id LIKE :ids"),
            {"ids": f"bulk-{job.id}-%"},
        ).one()
        differences = len(reconcile(connection).differences) + len(compare_with_ledger(connection))
    return {
        "blocks": len(job.blocks),
        "images_in_the_output": found.images,
        "images_explained": found.explained,
        "receipts_that_hold": found.receipts,
        "units_by_receipts": found.units,
        "blocks_charged": rows[0],
        "units_charged": rows[1],
        "problems": found.problems,
        "books_differ": differences,
    }


def over_a_server(material: Material, files: list[Path], variant: str) -> dict[str, float]:
    """Ask a server for the same files over a stream; return the processor time that each image takes."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "keylock",
        "serve",
        str(material.bundle),
        "--port",
        str(port),
        "--log-level",
        "error",
    ]
    command += ["--key-file", str(material.key_file), "--home", str(material.home), *numbers_of(variant)]
    server = ServerProcess(command, material.folder / "server.log", environment={"KEYLOCK_SERVER_THREADS": "1"})
    try:
        limit = time.monotonic() + 300
        while time.monotonic() < limit:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        asking = [sys.executable, "-c", _CLIENT, f"127.0.0.1:{port}", str(material.token), _EXPLAINER, *map(str, files)]
        with subprocess.Popen(
            asking, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            if client.stdout.readline().strip() != "warm":
                raise RuntimeError("the client failed")
            before, began = server.cpu_s, time.monotonic()
            client.stdin.write("\n")
            client.stdin.flush()
            client_s = float(client.stdout.readline())
            count, server_s, took = len(files) - 8, server.cpu_s - before, time.monotonic() - began
            client.stdin.write("\n")
    finally:
        server.stop()
    return {
        "images": count,
        "server_cpu_ms": round(server_s / count * 1000, 3),
        "client_cpu_ms": round(client_s / count * 1000, 3),
        "cpu_ms_per_image": round((server_s + client_s) / count * 1000, 3),
        "images_per_s": round(count / took, 2),
    }


def cost(material: Material, *, images: int, rounds: int, block: int | None, variant: str) -> dict[str, Any]:
    """Compare both ways, with one worker and with two; rounds take turns, and the cheapest of each counts."""
    with tempfile.TemporaryDirectory() as folder:
        data = draw(Path(folder) / "data", images, side=material.side + material.side // 4)
        files = sorted(data.iterdir())
        size = round(sum(file.stat().st_size for file in files) / len(files))
        servers: list[dict[str, float]] = []
        jobs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
        for number in range(rounds):
            servers.append(over_a_server(material, files, variant))
            for workers, found in jobs.items():
                out = Path(folder) / f"out-{number}-{workers}"
                found.append(_by_workers(material, data, out, workers=workers, block=block, variant=variant))
                print(number, servers[-1], workers, found[-1], file=sys.stderr, flush=True)
    server = min(servers, key=lambda one: one["cpu_ms_per_image"])
    best = {workers: min(found, key=lambda one: one["cpu_ms_per_image"]) for workers, found in jobs.items()}
    return {
        "network": material.about()["architecture"],
        "side": material.side,
        "explainer": _EXPLAINER,
        "variant": variant,
        "file_bytes": size,
        "rounds": rounds,
        "explain_stream": server,
        "explain_many": {str(workers): found for workers, found in best.items()},
        "cpu_ratio": round(best[1]["cpu_ms_per_image"] / server["cpu_ms_per_image"], 3),
        "cpu_ratio_with_two_workers": round(best[2]["cpu_ms_per_image"] / server["cpu_ms_per_image"], 3),
        "images_in_a_second_of_two_workers_over_one": round(2 * best[1]["worker_cpu_ms"] / best[2]["worker_cpu_ms"], 3),
        "images_per_s_of_two_workers_over_one": round(best[2]["images_per_s"] / best[1]["images_per_s"], 3),
    }


def _by_workers(
    material: Material, data: Path, out: Path, *, workers: int, block: int | None, variant: str
) -> dict[str, Any]:
    """Run a job; what it uses between its first blocks and its last is that of images, and no start."""
    command = job_command(material, data, out, workers=workers, block=block, variant=variant)
    weighed = Weighed(command, environment(), blocks=out / "blocks", warm=workers + 1)
    told = weighed.finish()["this_run"]
    found = check(material, out)
    assert not found["problems"], found
    block = json.loads((out / "job.json").read_text())["asked"]["block_size"]
    used = weighed.between(block)
    size = sum(part.stat().st_size for part in (out / "blocks").iterdir())
    shutil.rmtree(out)
    each = {kind: round(used[kind] / used["images"] * 1000, 3) for kind in ("workers", "job", "ray")}
    # Of two workers one is always within a block when the other has finished one; each block tells what it took.
    if workers > 1:
        each["workers"] = max(each["workers"], round(told["worker_cpu_s"] / told["images"] * 1000, 3))
    return {
        "images": used["images"],
        "images_in_a_block": block,
        "cpu_ms_per_image": round(sum(each.values()), 3),
        "worker_cpu_ms": each["workers"],
        "job_cpu_ms": each["job"],
        "ray_cpu_ms": each["ray"],
        "ray_cpu_ms_per_s": round(used["ray"] / used["seconds"] * 1000, 1),
        "images_per_s": round(used["images"] / used["seconds"], 2),
        "cpu_s_of_the_start": round(used["start"], 1),
        "output_bytes_per_image": round(size / found["images_in_the_output"]),
    }


def kills(material: Material, *, seconds: float, images: int, seed: int) -> dict[str, Any]:
    """Kill a worker every 20 seconds for a time, and compare everything at the end."""
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        data = draw(Path(folder) / "data", _DRAWN, side=1400)
        # The same files under many names: what is counted is the blocks.
        for number in range(_DRAWN, images):
            os.link(data / f"{number % _DRAWN:05}.jpg", data / f"{number:05}.jpg")
        out, killed, began = Path(folder) / "out", 0, time.monotonic()
        command = job_command(material, data, out, workers=2, block=16)
        weighed = Weighed(command, environment(), blocks=out / "blocks")
        # Workers take their time to open the bundle; there is nobody to kill before.
        while not list((out / "unfinished").glob("*.try")) and weighed.process.poll() is None:
            time.sleep(0.1)
        started = time.monotonic()
        while weighed.process.poll() is None and time.monotonic() - started < seconds:
            time.sleep(_KILL_EVERY_S)
            killed += _kill_one(out / "unfinished", generator)
        told = weighed.finish()
        return {
            "kills": killed,
            "kill_every_s": _KILL_EVERY_S,
            "workers": 2,
            "images": images,
            "seconds": round(time.monotonic() - began, 1),
            "seed": seed,
            "told": {name: told[name] for name in ("blocks", "finished", "images", "explained", "not_explained")},
            **check(material, out),
        }


def _kill_one(unfinished: Path, generator: random.Random) -> int:
    """Kill a worker that has begun with a block; return how many were killed."""
    limit = time.monotonic() + _KILL_EVERY_S
    while time.monotonic() < limit:
        traces = sorted(unfinished.glob("*.try"), key=lambda path: path.name)
        generator.shuffle(traces)
        for trace in traces:
            with contextlib.suppress(OSError, ValueError):
                pid = int(trace.read_text())
                if "ray::" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)
                    return 1
        time.sleep(0.05)
    return 0


def store(material: Material, costs: dict[str, Any]) -> dict[str, Any]:
    """Charge blocks on both databases, and reckon with what was measured."""
    with tempfile.TemporaryDirectory() as folder, postgresql() as url:
        found = {
            "sqlite": _charged(material, Path(folder), f"sqlite:///{folder}/licenses.db"),
            "postgresql": _charged(material, Path(folder), url),
        }
    return {"images_in_a_block": _ONE_BLOCK, **found, "on_paper": _reckoned(found, costs)}


def _charged(material: Material, folder: Path, url: str) -> dict[str, float]:
    home = Home(material.home)
    key, now = home.signing_key(), License.model_validate(_claims()).issued_at
    receipt_key = folder / f"receipts-{'s' if url.startswith('sqlite') else 'p'}.pem"
    ReceiptKey.create(receipt_key, key, not_before=now, expires=License.model_validate(_claims()).expires)
    license = License.model_validate(_claims())
    with LicenseStore(url) as opened:
        opened.add(license, issuer=key.key_id)
    settings = ServerSettings(
        bundle=material.bundle, issuers=(home.verifying_key_path,), license_store=url, receipt_key=receipt_key
    )
    with open_bundle(material.bundle, trusted=None) as bundle:
        manifest, signer = bundle.manifest, bundle.issuer
    entry = next(one for one in manifest.explainers if one.name == _EXPLAINER)
    cashier = Cashier(settings, issue(license, key), manifest=manifest, entry=entry, signer=signer)
    digests = tuple(f"sha256:{number:064x}" for number in range(_ONE_BLOCK))
    answer = AnswerDigests(maps=digests, scalings=(None,) * _ONE_BLOCK, predictions=digests, targets=digests)
    asked = Asked(
        model=manifest.model_digest,
        explainer=entry.name,
        target=-1,
        data="",
        column="",
        limit=None,
        block_size=_ONE_BLOCK,
        map_dtype="float32",
        prediction="public",
        keyed=True,
        license=license.id,
    )
    job = Job(folder, "benchmark", "files", "", asked, (), False)
    first = BlockResult(number=0, images=_ONE_BLOCK, image_digests=digests, answer=answer)
    receipt = cashier.charge(job, first)
    assert receipt is not None
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    waits = []
    for number in range(1, _BLOCKS_CHARGED + 1):
        at = time.monotonic()
        cashier.charge(job, BlockResult.of_text(replace(first, number=number).to_text()))
        waits.append(time.monotonic() - at)
    after, took = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
    cashier.close()
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "blocks": _BLOCKS_CHARGED,
        "blocks_per_s": round(_BLOCKS_CHARGED / took, 1),
        "cpu_ms_per_block": round(used / _BLOCKS_CHARGED * 1000, 3),
        "median_ms_per_block": round(sorted(waits)[len(waits) // 2] * 1000, 3),
        "receipt_bytes": len(receipt),
        "message_bytes": len(first.to_text()),
    }


def _claims() -> dict[str, Any]:
    now = datetime.now(UTC).replace(microsecond=0)
    return {
        "id": new_license_id(),
        "customer": "benchmark",
        "models": ("*",),
        "explainers": ("*",),
        "issued_at": now,
        "not_before": now - timedelta(minutes=1),
        "expires": now + timedelta(days=1),
    }


def _reckoned(found: dict[str, Any], costs: dict[str, Any]) -> dict[str, Any]:
    """Reckon what 100 workers would ask for, where each has a core for itself."""
    one = costs["explain_many"]["1"]
    rate = 100 * 1000 / one["worker_cpu_ms"]
    blocks = rate / _ONE_BLOCK
    return {
        "workers": 100,
        "network": costs["network"],
        "images_per_s": round(rate),
        "blocks_per_s": round(blocks, 2),
        "cores_of_the_process_that_charges": round(blocks * found["postgresql"]["cpu_ms_per_block"] / 1000, 4),
        "share_of_the_charges_that_sqlite_takes": round(blocks / found["sqlite"]["blocks_per_s"], 4),
        "share_of_the_charges_that_postgresql_takes": round(blocks / found["postgresql"]["blocks_per_s"], 4),
        "log_gb_for_a_million_images": round(found["postgresql"]["receipt_bytes"] * 1e6 / _ONE_BLOCK / 1e9, 3),
        "mb_per_s_read": round(rate * costs["file_bytes"] / 1e6, 1),
        "mb_per_s_written": round(rate * one["output_bytes_per_image"] / 1e6, 1),
        "mb_per_s_through_ray": round(blocks * found["postgresql"]["message_bytes"] / 1e6, 3),
        "workers_that_keep_postgresql_busy": round(100 * found["postgresql"]["blocks_per_s"] / blocks),
    }


def main() -> None:
    """Measure one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "kills", "store"))
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--thin", action="store_true", help="a network that costs next to nothing")
    parser.add_argument("--images", type=int, default=None)
    parser.add_argument("--block", type=int, default=None, help="images in a block, for *cost*")
    parser.add_argument("--variant", default="float32", help="numbers to compute in, for *cost*; auto for the fastest")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "serving", help="folder of what is made once")
    options = parser.parse_args()
    thin = options.thin or options.what == "kills"
    material = prepare(options.work, options.side, thin=thin)
    if options.what == "cost":
        name = f"bulk_cost_{material.about()['architecture']}_{material.side}"
        name += f"_{options.variant}" * (options.variant != "float32")
        asked = {"rounds": options.rounds, "block": options.block, "variant": options.variant}
        result = cost(material, images=options.images or 1536, **asked)
    elif options.what == "kills":
        name, images = "bulk_kills", options.images or 1200
        result = kills(material, seconds=options.seconds, images=images, seed=options.seed)
    else:
        measured = RESULTS / f"bulk_cost_{material.about()['architecture']}_{material.side}.json"
        name, result = "bulk_store", store(material, json.loads(measured.read_text()))
    given = [one for one in sys.argv if one != "--work" and one != str(options.work)]
    record(name, {"command": " ".join(["python", *given]), **result}, folder=RESULTS)


if __name__ == "__main__":
    main()
