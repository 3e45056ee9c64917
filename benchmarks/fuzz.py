"""Changed inputs for everything that reads what others sent, and for every method of a server, counted.

python benchmarks/fuzz.py --inputs 1000000 --seed 1
python benchmarks/fuzz.py --inputs 100000 --seed 1 --over http

What is read and how it is changed is in `tests/fuzzing.py`, and what is sent over HTTP in `tests/http_fuzzing.py`.
Readers take turns, each for a share of the time, so those that are quick get most inputs. The counts are kept after
every turn in `benchmarks/results/fuzz.json` or `fuzz_http.json`, so that a run that is cut off leaves a true number.
Good: no other error than ours, no INTERNAL, no hang, no growth above 50 MB.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks" / part) for part in ("licensing", "serving")]
sys.path.insert(0, str(ROOT / "tests"))

import grpc
from fuzzing import Found, Target, file_targets, rpc_targets, run
from http_fuzzing import http_targets
from processes import free_port
from world import Server, World, record

_TURN_S = 2.0


def add(total: Found, part: Found) -> None:
    """Adds what came of some inputs to what came of others."""
    total.inputs += part.inputs
    total.results += part.results
    total.errors.update(part.errors)
    total.faults += part.faults
    total.longest_s = max(total.longest_s, part.longest_s)
    total.growth_bytes = max(total.growth_bytes, part.growth_bytes)


def memory_mib(process: int, what: str) -> int:
    """Reads the memory of a process (Linux)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(what))


def report(
    found: dict[str, Found], options: argparse.Namespace, began: float, *, server_growth_mib: int
) -> dict[str, object]:
    """Writes down what was counted so far."""
    inputs = sum(one.inputs for one in found.values())
    result: dict[str, object] = {
        "what": "fuzz",
        "complete": inputs >= options.inputs,
        "inputs": inputs,
        "seed": options.seed,
        "seconds": round(time.monotonic() - began, 1),
        "faults": sum(len(one.faults) for one in found.values()),
        "longest_s": round(max((one.longest_s for one in found.values()), default=0), 2),
        "growth_mib": max((one.growth_bytes for one in found.values()), default=0) >> 20,
        # Since the first turn, in which the server has seen every kind of message.
        "server_growth_mib": server_growth_mib,
        "targets": {
            name: {
                "inputs": one.inputs,
                "read": one.results,
                "refused": dict(sorted(one.errors.items())),
                "faults": len(one.faults),
                "longest_s": round(one.longest_s, 2),
                "growth_mib": one.growth_bytes >> 20,
            }
            for name, one in found.items()
        },
    }
    record(
        "fuzz" if options.over is None else f"fuzz_{options.over}",
        result,
        folder=ROOT / "benchmarks" / "results",
        shown=False,
    )
    return result


def take_turns(targets: list[Target], options: argparse.Namespace, server: int) -> dict[str, object]:
    """Gives each target inputs for a while, again and again, until there were enough."""
    began, turn, done, first_mib = time.monotonic(), 0, 0, 0
    found = {target.name: Found() for target in targets}
    result: dict[str, object] = {}
    while done < options.inputs and time.monotonic() - began < options.seconds:
        for target in targets:
            part = run(target, seed=options.seed * 1_000_000 + turn, inputs=options.inputs - done, seconds=_TURN_S)
            for fault in part.faults:
                print(f"{target.name}: {fault}", file=sys.stderr, flush=True)
            add(found[target.name], part)
            done += part.inputs
        turn += 1
        first_mib = first_mib or memory_mib(server, "VmHWM")
        grown_mib = memory_mib(server, "VmHWM") - first_mib
        result = report(found, options, began, server_growth_mib=grown_mib)
    return result


def main() -> None:
    """Runs it, prints the counts, and fails where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no turn after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--over", choices=("http",), help="what a server is sent over HTTP, and nothing else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for one in ("world", "files"):
            (folder / one).mkdir()
        with World.make(folder / "world", f"sqlite:///{folder / 'licenses.db'}") as world:
            bundle = next((folder / "world").rglob("*.klb")).read_bytes()
            _, token = world.grant()
            http_port = free_port()
            server = Server(world, "fuzz", settings={} if options.over is None else {"http_port": http_port})
            try:
                if options.over == "http":
                    with http_targets(http_port, token) as targets:
                        result = take_turns(targets, options, server.process.pid)
                else:
                    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
                        targets = file_targets(folder / "files", bundle, world.signing_key)
                        result = take_turns([*targets, *rpc_targets(channel, token)], options, server.process.pid)
            finally:
                server.stop()
    print({name: value for name, value in result.items() if name != "targets"})
    raise SystemExit(1 if result["faults"] else 0)


if __name__ == "__main__":
    main()
