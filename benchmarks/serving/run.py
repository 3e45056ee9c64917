"""Everything that serves explanations, measured in one run: the same network, images, threads and machine.

    python benchmarks/serving/run.py

Rivals that are not installed are named and left out; docs/performance.md says how to install them. What takes long to
make, the locked networks above all, is kept in the work folder; `--fresh` makes it anew.
"""

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from callers import compare, load, summary
from material import NETWORKS, Material, prepare
from processor import describe_processor
from rivals import RIVALS, TASKS, Keylock, KeylockBefore, KeylockUnlicensed, Rival

_RESULTS = Path(__file__).resolve().parents[1] / "results" / "serving" / "serving.json"
_LEAST = 8


def main() -> None:
    """Measure, print what is being done, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--sides", nargs="+", type=int, choices=NETWORKS, default=[32, 224])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=1.5, help="for each figure, at least")
    parser.add_argument("--rounds", type=int, default=2, help="how many images each caller asks about, at least")
    parser.add_argument("--calls", nargs="+", type=int, default=[5000, 500], help="licensed and unlicensed, by side")
    parser.add_argument("--work", type=Path, default=Path("runs/serving"))
    parser.add_argument("--before", type=Path, metavar="TREE", help="a checkout of the build before, to compare with")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--results", type=Path, default=_RESULTS)
    options = parser.parse_args()
    # So that servers are stopped as well when the program is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.fresh:
        shutil.rmtree(options.work, ignore_errors=True)
    if options.before is not None:
        KeylockBefore.of(options.before)
    missing = {name: modules for name in options.rivals if (modules := RIVALS[name].missing())}
    for name, modules in missing.items():
        print(f"left out: {RIVALS[name].title}, which needs {', '.join(modules)}", file=sys.stderr)
    rivals = [RIVALS[name] for name in options.rivals if name not in missing]
    materials = [prepare(options.work, side) for side in options.sides]
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": f"{describe_processor()}, {os.cpu_count()} cores, one thread of computing for each server",
        "command": shlex.join(["python", "benchmarks/serving/run.py", *_shown(sys.argv[1:], options.before)]),
        "seconds": 0.0,
        "load_average": [round(os.getloadavg()[0], 1)] * 2,
        "versions": _versions(),
        "left_out": {name: ", ".join(modules) for name, modules in missing.items()},
        "titles": {rival.name: rival.title for rival in rivals},
        "bare": [rival.name for rival in rivals if rival.bare],
        "networks": {},
    }
    asyncio.run(_measure(materials, rivals, options, result))
    print(f"written: {options.results}", file=sys.stderr)


def _shown(arguments: list[str], before: Path | None) -> list[str]:
    """Return the arguments without the place of the other build, which is nobody's business."""
    return [argument if before is None else argument.replace(str(before), "CHECKOUT") for argument in arguments]


async def _measure(
    materials: list[Material], rivals: list[type[Rival]], options: argparse.Namespace, result: dict[str, Any]
) -> None:
    """Measure every network, all in one event loop; write the results, also of a run that is ended early."""
    calls, began = [*options.calls, *options.calls[-1:] * len(materials)], time.monotonic()
    result["note"] = "The run was ended early: what is not here was not measured."
    try:
        for material, count in zip(materials, calls, strict=False):
            found = result["networks"][str(material.side)] = {"about": material.about(), "figures": {}}
            await _measure_network(material, rivals, options, count, found)
        del result["note"]
    finally:
        result["seconds"] = round(time.monotonic() - began, 1)
        result["load_average"][1] = round(os.getloadavg()[0], 1)
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


async def _measure_network(
    material: Material, kinds: list[type[Rival]], options: argparse.Namespace, calls: int, found: dict[str, Any]
) -> None:
    """Measure one network, into `found`."""
    rivals = [kind(material) for kind in kinds if kind.suits(material)]
    try:
        found["start_s"], found["start_cpu_s"] = {}, {}
        for rival in rivals:
            found["start_s"][rival.name] = round(await _start(rival, material), 2)
            found["start_cpu_s"][rival.name] = round(rival.process.cpu_s, 2)
        found["agreement"] = await _agreement(rivals, options.tasks)
        for task in options.tasks:
            # One after the other at the same task and concurrency, so that what else the machine does weighs on all.
            # Predictions are there to be compared with, one at a time.
            for callers in options.concurrency if task != "predict" else options.concurrency[:1]:
                for rival in rivals:
                    if task in rival.tasks:
                        figures = found["figures"].setdefault(task, {}).setdefault(rival.name, {})
                        figures[str(callers)] = await _figure(rival, task, callers, options)
            found["rss_mb"] = {rival.name: round(rival.process.rss_bytes / 2**20, 1) for rival in rivals}
        for rival in rivals:
            if type(rival) is Keylock:
                found["licensed"] = await _license(rival, options.tasks, calls)
    finally:
        for rival in rivals:
            await rival.stop()
    if any(type(rival) is Keylock for rival in rivals):
        found["workers"] = await _workers(material, options)


async def _start(rival: Rival, material: Material) -> float:
    """Start one rival while no other one works; return the seconds until it answered."""
    rival.start(material.folder)
    seconds = await rival.ready()
    print(f"{material.side} pixels: {rival.title} was ready after {seconds:.1f} s", file=sys.stderr)
    return seconds


async def _agreement(rivals: list[Rival], tasks: list[str]) -> dict[str, dict[str, float]]:
    """Return how well the maps of all agree with those of Captum, by the smallest correlation: do all do the same?"""
    found: dict[str, dict[str, float]] = {}
    for task in tasks:
        if task == "predict":
            continue
        maps = {rival.name: await _first_map(rival, task) for rival in rivals if task in rival.tasks}
        base = next(iter(maps.values()))
        for name, first in maps.items():
            correlation = float(np.corrcoef(base.ravel(), first.ravel())[0, 1])
            found.setdefault(task, {})[name] = round(correlation, 5)
    return found


async def _first_map(rival: Rival, task: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    # A bare loop shows its map where the caller has no number.
    return rival.read(await rival.ask(task, -1 if rival.bare else 0))


async def _figure(rival: Rival, task: str, callers: int, options: argparse.Namespace) -> dict[str, float]:
    await load(rival, task, callers=callers if rival.compiles else 1, seconds=0, least=1)
    least = max(_LEAST, options.rounds * callers)
    found = await load(rival, task, callers=callers, seconds=options.seconds, least=least)
    figure = summary(found)
    print(
        f"{rival.material.side} pixels, {task}, {callers}: {rival.title}: {figure['p50_ms']:.1f} ms, "
        f"{figure['images_per_s']:.1f} images/s, {figure['cpu_ms_per_image']:.1f} ms of CPU time",
        file=sys.stderr,
    )
    return figure


async def _license(licensed: Keylock, tasks: list[str], calls: int) -> dict[str, float]:
    """Compare callers with and without a license, on one server."""
    other = KeylockUnlicensed(licensed.material)
    other.connect(licensed.target)
    task = next(task for task in tasks if task != "predict")
    found = await compare(licensed, other, task, calls=calls)
    await other.close()
    return found


async def _workers(material: Material, options: argparse.Namespace) -> dict[str, Any]:
    """Compare two workers with one, by turns, at the highest concurrency."""
    task = next(task for task in options.tasks if task != "predict")
    callers, turns = max(options.concurrency), 3
    servers = {count: Keylock(material, workers=count) for count in (1, 2)}
    throughputs: dict[int, list[float]] = {1: [], 2: []}
    costs: dict[int, list[float]] = {1: [], 2: []}
    try:
        for server in servers.values():
            await _start(server, material)
        for _ in range(turns):
            for count, server in servers.items():
                figure = await _figure(server, task, callers, options)
                throughputs[count].append(figure["images_per_s"])
                costs[count].append(figure["cpu_ms_per_image"])
    finally:
        for server in servers.values():
            await server.stop()
    return {
        "task": task,
        "concurrency": callers,
        "images_per_s": {str(count): statistics.median(values) for count, values in throughputs.items()},
        "ratio": round(statistics.median(throughputs[2]) / statistics.median(throughputs[1]), 3),
        # Twice as much where an image costs two workers no more of the processor than one: callers are not in it.
        "processor_ratio": round(2 * statistics.median(costs[1]) / statistics.median(costs[2]), 3),
    }


def _versions() -> dict[str, str]:
    names = (
        "torch",
        "captum",
        "litserve",
        "mlserver",
        "onnxruntime",
        "onnxruntime-gpu",
        "openvino",
        "openvino_xai",
        "grpcio",
        "numpy",
    )
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
