"""Write the tables of docs/performance.md from the measured figures in benchmarks/results/serving.

    python benchmarks/render_performance.py            writes docs/performance.md
    python benchmarks/render_performance.py --check    exits 1 where docs/performance.md does not agree with the figures

It works as `render_results.py` does, which writes another page.
"""

import sys
from collections.abc import Mapping
from typing import Any

from render_results import ROOT, Tables, at_least, at_most, code, network_title, table, update

RESULTS = ROOT / "benchmarks" / "results" / "serving"
PAGE = ROOT / "docs" / "performance.md"

Network = Mapping[str, Any]
"""What was measured with images of one size."""

_SERVED = ("litserve", "mlserver")
_TIMES_RIVALS = {"keylock": 1.6, "keylock_int8": 3.0}
_AUTO = "keylock_auto"
_TIMES_AT_BEST = {"litserve_bfloat16": 2.5, "mlserver_bfloat16": 2.5, "openvino_xai": 1.0}
"""How many times the images of rivals at their best the fastest right way serves in a second of processor time."""
_TIMES_BEFORE = {"amx": 4.0, "vnni": 2.5, "": 2.0}
"""How many times as many as the build before with its defaults, by what the processor has."""
_OF_BARE = 0.9
_MORE_MS = 2.0
_SAME = 0.02
_SIGNIFICANT = 0.05
_TWO_WORKERS = 1.8
_START_S = 2.0
_MEMORY = 1.3
_BUSY = 5.0
"""A load average that the benchmark does not reach by itself, so that other programs weigh on the times that pass."""
_CALL_AIMS = {"float32": 2.0, "uint8": 1.2, "jpeg": 1.5}
"""Milliseconds of processor time of a call beside its graph, by how its image comes."""
_GRAPH_AIMS = {
    "grad_cam": 1.05,
    "gradient, resnet18_cifar:32": 2.05,
    "gradient, resnet18:224": 2.2,
    "gradient, mobilenet_v2:224": 2.8,
}


def write_serving(result: Mapping[str, Any]) -> str:
    """Return the section of `serving.json`, in Markdown."""
    before, after = result["load_average"]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    busy = max(before, after) > _BUSY
    parts = [
        f"Measured on {result['date']}, {result['hardware']}, in {result['seconds'] / 60:.1f} minutes; the load "
        f"average was {before} before and {after} at the end. {versions}.\n",
        code(result["command"]),
    ]
    parts += [f"Left out: {name}, which needs {modules}.\n" for name, modules in result["left_out"].items()]
    if "note" in result:
        parts.append(f"{result['note']}\n")
    if busy:
        parts.append(
            "Other programs had most of the machine, so goals of times that pass are not judged: compare processor "
            "times.\n"
        )
    networks: Mapping[str, Network] = result["networks"]
    parts += ["### Goals\n", table(("goal", "measured", "wanted", "reached"), write_goals(networks, busy=busy))]
    for side, network in networks.items():
        name = f"{network['about']['architecture']}, {side} pixels"
        for task, found in network["figures"].items():
            parts += [f"### {name}: {task}\n", _times(result, found)]
        parts += [f"### {name}: cost, start, memory\n", _costs(result, network)]
    return "\n".join(parts)


def write_goals(networks: Mapping[str, Network], *, busy: bool = False) -> list[tuple[str, ...]]:
    """Return a row for each goal that the measured figures can be held against.

    Args:
        networks: What was measured.
        busy: Whether other programs weighed on the times that pass, which are then shown but not judged.
    """
    rows = [row for side, network in networks.items() for row in _goals(side, network)]
    lasting = ("processor time", "memory")
    return [row if not busy or any(word in row[0] for word in lasting) else (*row[:-1], "not judged") for row in rows]


def _goals(side: str, network: Network) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for task, found in network["figures"].items():
        if "keylock" not in found:
            continue
        about, own, most = f"{side} pixels, {task}", found["keylock"], max(found["keylock"], key=int)
        if task == "grad_cam":
            for name, wanted in _TIMES_RIVALS.items():
                rows += _over_rivals(about, name, found, most, wanted)
        if "onnxruntime" in found:
            bare = found["onnxruntime"]
            best = max(value["images_per_s"] for value in bare.values())
            ratio = max(value["images_per_s"] for value in own.values()) / best
            rows.append(_row(f"{about}: throughput over the bare session's best", ratio, _OF_BARE))
            least = [min(value["cpu_ms_per_image"] for value in kind.values()) for kind in (bare, own)]
            name = f"{about}: images in a second of processor time over the bare session's best"
            rows.append(_row(name, least[0] / least[1], _OF_BARE))
            more = own["1"]["p50_ms"] - bare["1"]["p50_ms"]
            rows.append(_row(f"{about}: ms more than the bare session, 1 caller, p50", more, _MORE_MS, most=True))
    return rows + _other_goals(side, network)


def _over_rivals(about: str, name: str, found: Network, callers: str, wanted: float) -> list[tuple[str, ...]]:
    """Return how many times what servers of Captum do one of ours does."""
    rows: list[tuple[str, ...]] = []
    for rival in _SERVED:
        if name in found and rival in found:
            own, other = found[name][callers], found[rival][callers]
            over = f"over {rival}, {callers} callers{', int8' * (name == 'keylock_int8')}"
            rows.append(_row(f"{about}: throughput {over}", own["images_per_s"] / other["images_per_s"], wanted))
            ratio = other["cpu_ms_per_image"] / own["cpu_ms_per_image"]
            rows.append(_row(f"{about}: images in a second of processor time {over}", ratio, wanted))
    return rows


def _other_goals(side: str, network: Network) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    if (pair := network.get("licensed")) is not None:
        reached = abs(pair["ratio"] - 1) <= _SAME and pair["p_value"] >= _SIGNIFICANT
        name = f"{side} pixels: licensed over unlicensed mean time, {pair['calls_each']} calls each"
        measured = f"{pair['ratio']:.3f} ({pair['low']:.3f} to {pair['high']:.3f}), p = {pair['p_value']:.2g}"
        rows.append((name, measured, f"1.00 ± {_SAME}, p ≥ {_SIGNIFICANT}", "yes" if reached else "no"))
    if (workers := network.get("workers")) is not None:
        name = f"{side} pixels, {workers['task']}: throughput of 2 workers over 1, {workers['concurrency']} callers"
        rows.append(_row(name, workers["ratio"], _TWO_WORKERS))
    if "keylock" in network["start_s"]:
        rows.append(_row(f"{side} pixels: seconds to ready", network["start_s"]["keylock"], _START_S, most=True))
    memory = network["rss_mb"]
    if {"keylock", "onnxruntime"} <= set(memory):
        ratio = memory["keylock"] / memory["onnxruntime"]
        rows.append(_row(f"{side} pixels: memory over the bare session's", ratio, _MEMORY, most=True))
    return rows


def _row(name: str, value: float, limit: float, *, most: bool = False) -> tuple[str, ...]:
    aim = at_most(limit) if most else at_least(limit)
    return (name, f"{value:.2f}", aim.text.format(limit), "yes" if aim.reached(value) else "no")


def _times(result: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    head = ("", "callers, or images in a batch", "p50 ms", "p95 ms", "p99 ms", "images/s", "CPU ms an image", "calls")
    rows = [
        (
            result["titles"][name],
            callers,
            *(f"{value[figure]:.1f}" for figure in ("p50_ms", "p95_ms", "p99_ms", "images_per_s", "cpu_ms_per_image")),
            str(value["calls"]),
        )
        for name, by_callers in found.items()
        for callers, value in by_callers.items()
    ]
    return table(head, rows)


def _costs(result: Mapping[str, Any], network: Network) -> str:
    """Return what an explanation costs beside a prediction of the same rival (CPU), how long a start takes, memory."""
    figures = network["figures"]
    tasks = [task for task in figures if task != "predict"]

    def multiple(name: str, task: str) -> str:
        found = [figures.get(kind, {}).get(name, {}).get("1") for kind in (task, "predict")]
        return "" if None in found else f"{found[0]['cpu_ms_per_image'] / found[1]['cpu_ms_per_image']:.2f}"

    rows = [
        (
            title,
            *(multiple(name, task) for task in tasks),
            f"{network['start_s'][name]:.1f}",
            f"{network['start_cpu_s'][name]:.1f}",
            f"{network['rss_mb'][name]:.0f}",
            *(f"{network['agreement'].get(task, {}).get(name, float('nan')):.4f}".replace("nan", "") for task in tasks),
        )
        for name, title in result["titles"].items()
    ]
    head = ["", *(f"{task} / prediction" for task in tasks), "start to ready, s", "CPU s of that", "memory, MB"]
    return table((*head, *(f"{task}: PCC to the first" for task in tasks)), rows)


def write_numbers_goals(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each goal of the fastest right way: over the build before, and over rivals at their best."""
    (network,) = result["networks"].values()
    found = network["figures"]["grad_cam"]
    feature = next(feature for feature in _TIMES_BEFORE if feature in result["hardware"])
    about = {"keylock_before": (f"on a processor with {feature}" if feature else "", _TIMES_BEFORE[feature])}
    about |= {name: ("", wanted) for name, wanted in _TIMES_AT_BEST.items()}
    rows = []
    for rival, (where, wanted) in about.items():
        if rival in found:
            ratio = _cpu_ms(found[rival]) / _cpu_ms(found[_AUTO])
            name = " ".join(filter(None, ("images in a second of processor time over", result["titles"][rival], where)))
            rows.append(_row(name, ratio, wanted))
    return rows


def _cpu_ms(by_callers: Mapping[str, Any]) -> float:
    """Return the processor time of an image where most callers ask at a time."""
    milliseconds: float = by_callers[max(by_callers, key=int)]["cpu_ms_per_image"]
    return milliseconds


def write_numbers(result: Mapping[str, Any]) -> str:
    """Return the section of `numbers.json`, in Markdown: times of the processor beside those of rivals."""
    (network,) = result["networks"].values()
    found = network["figures"]["grad_cam"]
    times = {name: _cpu_ms(figures) for name, figures in found.items()}
    rows = [
        (
            result["titles"][name],
            f"{milliseconds:.1f}",
            *(f"{times[rival] / milliseconds:.2f}" for rival in ("keylock", "captum_bfloat16")),
            f"{network['agreement']['grad_cam'][name]:.4f}",
        )
        for name, milliseconds in times.items()
    ]
    head = ("", "CPU ms an image", "times float32", "times Captum in bfloat16", "PCC to the first")
    before, after = result["load_average"]
    about = (
        f"Measured on {result['date']}, {result['hardware']}; the load average was {before} before and {after} at the "
        f"end. ONNX Runtime {result['versions']['onnxruntime-gpu']}, OpenVINO {result['versions']['openvino']}, torch "
        f"{result['versions']['torch']}.\n"
    )
    goals = write_numbers_goals(result)
    parts = [about, code(result["command"]), table(head, rows)]
    return "\n".join(parts + [table(("goal", "measured", "wanted", "reached"), goals)] * bool(goals))


def write_call_cost(result: Mapping[str, Any]) -> str:
    """Return the section of `call_cost.json`, in Markdown: processor time of a call without that of its graph."""
    before, after = result["load_average"]
    commits = ", ".join(f"{name} is {commit}" for name, commit in result["commits"].items())
    about = (
        f"Measured on {result['machine']['finished']}, {result['hardware']}; {commits}; {result['rounds']} rounds; the "
        f"load average was {before} before and {after} at the end.\n"
    )
    return "\n".join([about, code(result["command"]), table(_CALL_COST_HEAD, _call_costs(result["networks"]))])


_CALL_COST_HEAD = (
    *("network", "image", "callers", "build", "ms beside", "quartiles", "goal", "reached"),
    "p50 over the bare session's, ms",
)


def _call_costs(networks: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            network,
            kind,
            callers,
            build,
            f"{figure['beside_cpu_ms']:.2f}",
            " to ".join(f"{quartile:.2f}" for quartile in figure["quartiles_ms"]),
            f"≤ {_CALL_AIMS[kind]}",
            "yes" if figure["beside_cpu_ms"] <= _CALL_AIMS[kind] else "no",
            f"{figure['p50_over_bare_ms']:.1f}" if callers == "1" else "",
        )
        for network, found in networks.items()
        for kind in _CALL_AIMS
        for callers in found["bare_cpu_ms"]
        for build, kinds in found["builds"].items()
        for figure in [kinds[kind][callers]]
    ]


def write_graphs(result: Mapping[str, Any]) -> str:
    """Return the section of `graphs.json`, in Markdown: times of graphs as multiples of the prediction's."""
    rows = []
    for network, figures in result["figures"].items():
        for batch, graphs in figures["batches"].items():
            for name, figure in graphs.items():
                limit = _GRAPH_AIMS.get(name) or _GRAPH_AIMS.get(f"{name}, {network}")
                aim = None if limit is None else at_most(limit)
                reached = "" if aim is None else "yes" if aim.reached(figure["ratio"]) else "no"
                cells = (
                    f"{figure['ms_per_image']:.2f}",
                    f"{figure['ratio']:.2f}",
                    f"≤ {limit}" if limit else "",
                    reached,
                    f"{figure['pcc']:.4f}" if "pcc" in figure else "",
                )
                rows.append((network_title(network), batch, name, *cells))
    head = ("network", "batch", "graph", "ms an image", "times the prediction", "aim", "reached", "PCC")
    before, after = result["load_average"]
    about = (
        f"Measured on {result['date']}, {result['hardware']}, ONNX Runtime {result['onnxruntime']}, torch "
        f"{result['torch']}. The load average was {before} before and {after} at "
        "the end; ratios of processor times hardly depend on it.\n"
    )
    return "\n".join([about, code(result["command"]), table(head, rows)])


def write_start(result: Mapping[str, Any]) -> str:
    """Return the section of `start.json`, in Markdown: from the command to the first licensed answer, and memory."""
    rows = []
    for build, kinds in result["figures"].items():
        own = kinds["float32"]["cpu_s"]["median"]
        for kind, figures in kinds.items():
            times = (figures[name][which] for name in ("seconds", "cpu_s") for which in ("median", "least"))
            memory = [figures[name]["median"] for name in ("peak_mib", "steady_mib")]
            cells = (*(f"{one:.2f}" for one in times), f"{figures['cpu_s']['median'] / own:.2f}")
            named = f"{build} ({result['commits'][build]})"
            rows.append(
                (named, kind, *cells, *(f"{one:.0f}" for one in memory), f"{memory[1] / result['bare_mib']:.2f}")
            )
    head = (
        "build",
        "variant",
        "s",
        "least",
        "CPU s",
        "least",
        "CPU times float32",
        "peak MiB",
        "steady MiB",
        "times bare",
    )
    before, after = result["load_average"]
    about = (
        f"Measured on {result['date']}, {result['hardware']}, medians and the least of {result['rounds']} rounds; the "
        f"load average was {before} before and {after} at the end. Bare sessions take {result['bare_mib']:.0f} MiB.\n"
    )
    return "\n".join([about, code(result["command"]), table(head, rows)])


def write_over_http(result: Mapping[str, Any]) -> str:
    """Return the section of `over_http.json`, in Markdown: processor time of calls over HTTP beside those over gRPC."""
    rows = [
        (
            task,
            name,
            f"{figure['cpu_ms']:.2f}",
            " to ".join(f"{quartile:.2f}" for quartile in figure["quartiles_ms"]),
            f"{figure['over_grpc']:.2f}",
            f"≤ {_HTTP_AIM}" if name in _HTTP_AIMED else "",
            ("yes" if figure["over_grpc"] <= _HTTP_AIM else "no") if name in _HTTP_AIMED else "",
        )
        for task, found in result["tasks"].items()
        for name, figure in found.items()
    ]
    before, after = result["load_average"]
    about = (
        f"Measured on {result['machine']['finished']}, {result['hardware']}; {result['rounds']} rounds of "
        f"{result['calls']} calls; the load average was {before} before and {after} at the end.\n"
    )
    head = ("call", "protocol", "CPU ms", "quartiles", "over gRPC", "goal", "reached")
    return "\n".join([about, code(result["command"]), table(head, rows)])


_HTTP_AIM = 1.3
_HTTP_AIMED = ("http, binary", "http, protobuf")

TABLES: Tables = {
    "call_cost": (write_call_cost, "python benchmarks/serving/call_cost.py before=CHECKOUT after=."),
    "graphs": (write_graphs, "python benchmarks/serving/graphs.py"),
    "numbers": (
        write_numbers,
        "python benchmarks/serving/run.py --sides 224 --tasks grad_cam "
        "--results benchmarks/results/serving/numbers.json",
    ),
    "over_http": (write_over_http, "python benchmarks/serving/over_http.py"),
    "serving": (write_serving, "python benchmarks/serving/run.py"),
    "start": (write_start, "python benchmarks/serving/start.py"),
}
"""For each file of figures how its section is written, and the command that writes the file."""

if __name__ == "__main__":
    sys.exit(update(PAGE, RESULTS, TABLES, __doc__))
