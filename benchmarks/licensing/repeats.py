"""Whether every repeat of a request has a receipt that holds, while many callers share the runs of a real server.

python benchmarks/licensing/repeats.py quickstart --callers 32 --repeats 1000

Each caller asks once and once more under the same id, as one does who lost the first answer. The client checks every
receipt against all that its answer says. The folder is one that `keylock quickstart` has made, and stays as it is.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from keylock.cli import main as keylock
from keylock.store import LicenseStore
from keylock.store.logged_charges import compare_with_ledger
from keylock_client import Client


def ask_twice(client: Client, images: list[Path], explainers: list[str], number: int) -> str:
    """Asks for one explanation two times, and returns what the second answer was."""
    image, explainer = images[number % len(images)], explainers[number % len(explainers)]
    request_id = f"repeat-{number}"
    first = client.explain(image, explainer=explainer, request_id=request_id)
    second = client.explain(image, explainer=explainer, request_id=request_id)
    if first.receipt is None or second.receipt is None or not second.usage.replayed or first.usage.replayed:
        return "without a receipt"
    client.verify_receipt(second.receipt)
    same = np.array_equal(first.map, second.map)
    if same != (first.receipt.map_digests == second.receipt.map_digests):
        return "with a receipt that does not fit"
    return "a receipt of its own" if second.receipt.repeated else "the receipt of the charge"


def run(folder: Path, work: Path, *, callers: int, repeats: int) -> dict[str, object]:
    """Runs a server on the bundle of a quickstart, and returns what was counted."""
    home, license_file, ready = work / "home", work / "repeats.license", work / "ready"
    # The keys alone: it gets a store of its own.
    shutil.copytree(folder / "home", home, ignore=shutil.ignore_patterns("licenses.db*"))
    issue = ["license", "issue", "--customer", "Repeats", "--model", "*", "--home", str(home), "--out"]
    with contextlib.redirect_stdout(io.StringIO()):
        code = keylock([*issue, str(license_file), "--json"])
    if code != 0:
        raise SystemExit("no license could be issued")
    bundle = folder / "shapes.klb"
    command = [sys.executable, "-m", "keylock", "serve", str(bundle), "--key-file", f"{bundle}.key"]
    command += ["--home", str(home), "--port", "0", "--ready-file", str(ready)]
    with (work / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
    try:
        while not ready.exists():
            if server.poll() is not None:
                raise SystemExit((work / "server.log").read_text("utf-8"))
            time.sleep(0.1)
        images = sorted((folder / "images").glob("*.png"))
        began = time.perf_counter()
        with Client(ready.read_text("utf-8").strip(), license=license_file, timeout_s=120) as client:
            explainers = [one.name for one in client.model().explainers]
            with ThreadPoolExecutor(callers) as pool:
                ask = [pool.submit(ask_twice, client, images, explainers, number) for number in range(repeats)]
                found = Counter(one.result() for one in ask)
        seconds = time.perf_counter() - began
    finally:
        server.terminate()
        server.wait(60)
    with LicenseStore(f"sqlite:///{home / 'licenses.db'}") as store, store.database.transaction(snapshot=True) as seen:
        differences = [f"{one.request_id}: {one.what}" for one in compare_with_ledger(seen)]
    return {
        "callers": callers,
        "repeats": repeats,
        "seconds": round(seconds, 1),
        "outcomes": dict(found),
        "differences_of_ledger_and_log": differences,
    }


def main() -> None:
    """Prints what was counted as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what keylock quickstart has made")
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = run(options.folder, Path(work), callers=options.callers, repeats=options.repeats)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
