"""Four pictures of a latency report: stages, percentiles by clients, the knee, larger catalogues.

Stage: serving (benchmark). In: the dict of `latency.run`. Out: PNG bytes by file name, for the sections that it holds.
Absent: files (`report`).
"""

from collections.abc import Mapping
from typing import Any, Final

from recsys.evaluation.plots import GRID, INK, LINES, MARKERS, MUTED, SINGLE, SYSTEM, WARNING, finished, new_figure

UNKNOWN: Final = {"name": "unknown", "synthetic": False}
SHOWN: Final = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99.9_ms")
STAGES: Final = ("state", "retrieval", "features", "ranking", "ordering")
REST: Final = "bytes, rest"


def draw(report: Mapping[str, Any]) -> dict[str, bytes]:
    """File names and contents."""
    data = report.get("dataset", UNKNOWN)
    http = report.get("http", {})
    found = {}
    if "in_process" in report:
        found["latency-stages.png"] = stages_png(report["in_process"], data)
    if "closed" in http:
        found["latency-clients.png"] = clients_png(http, data)
    if len(http.get("sweep", {}).get("steps", ())) > 1:
        found["latency-knee.png"] = knee_png(http["sweep"], data, report["verdict"]["budget_ms"])
    if "indexes" in report.get("catalogue", {}):
        found["latency-catalogue.png"] = catalogue_png(report["catalogue"], data)
    return found


def stages_png(inside: Mapping[str, Any], data: Mapping[str, Any]) -> bytes:
    """Medians of the stages, stacked, above the bare library calls of the same run."""
    bars: list[tuple[str, dict[str, float]]] = []
    for depth, found in inside["ranked"].items():
        parts = {s: found["stages"][s]["p50_ms"] for s in STAGES if s in found["stages"]}
        parts[REST] = max(found["stages"]["total"]["p50_ms"] - sum(parts.values()), 0.0)
        bars.append((f"{depth} ranked, full", parts))
        bars.append((f"{depth} ranked, bare", {"bare library calls": found["bare_sum_ms"]}))
    figure, axes = new_figure(height=2.2 + 0.42 * len(bars), labels=[name for name, _ in bars], foot=1.0)
    colours = {**dict(zip(STAGES, LINES, strict=False)), REST: SINGLE, "bare library calls": MUTED}
    named: set[str] = set()
    for y, (_, parts) in enumerate(bars):
        left = 0.0
        for part, ms in parts.items():
            axes.barh(y, ms, left=left, height=0.62, color=colours[part], label=None if part in named else part)
            named.add(part)
            left += ms
        axes.text(left, y, f" {left:.2f}", va="center", color=INK, fontsize=9)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.06)
    axes.set_xlabel("milliseconds, medians", color=MUTED)
    axes.grid(axis="x", color=GRID)
    below = (0.01, 0.26 / figure.get_figheight())
    figure.legend(
        loc="lower left", ncols=7, bbox_to_anchor=below, columnspacing=1.4, frameon=False, fontsize=8.5, labelcolor=INK
    )
    headline = inside["ranked"][inside["headline"]]
    note = f"Overhead with {inside['headline']} ranked: {headline['overhead']:.2f} times the bare library calls."
    return finished(figure, "One answer in process, by stage", data["label"], note, synthetic=data["synthetic"])


def clients_png(http: Mapping[str, Any], data: Mapping[str, Any]) -> bytes:
    """Percentiles of the closed loops by number of clients, bare HTTP dashed."""
    figure, axes = new_figure(height=4.4, right=0.73, foot=0.9)
    for i, (clients, load) in enumerate(http["closed"].items()):
        for kind, found, style in (("", load, "-"), (", bare HTTP", http["bare"][clients], "--")):
            axes.plot(
                range(len(SHOWN)),
                [found["latency"][p] for p in SHOWN],
                style,
                marker=MARKERS[i % len(MARKERS)],
                color=LINES[i % len(LINES)],
                linewidth=1.8,
                label=f"{clients} client(s){kind}",
            )
    axes.set_yscale("log")
    axes.set_xticks(range(len(SHOWN)), [name.removesuffix("_ms") for name in SHOWN])
    axes.set_ylabel("milliseconds, logarithmic", color=MUTED)
    axes.grid(color=GRID)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False, fontsize=9, labelcolor=INK)
    return finished(
        figure,
        "Closed loop over HTTP",
        data["label"],
        "Each client waits for its answer before it asks again.",
        synthetic=data["synthetic"],
    )


def knee_png(sweep: Mapping[str, Any], data: Mapping[str, Any], budget_ms: float) -> bytes:
    """p50 and p99 against the offered rate, and what came back in full; the knee is marked."""
    figure, axes = new_figure(height=4.8, right=0.9, foot=1.0)
    steps = sweep["steps"]
    offered = [step["offered"] for step in steps]
    for name, colour, marker in (("p50_ms", LINES[0], "o"), ("p99_ms", LINES[1], "s")):
        axes.plot(offered, [step[name] for step in steps], marker=marker, color=colour, label=name.removesuffix("_ms"))
    bad = [(step["offered"], step["p99_ms"]) for step in steps if step["why"]]
    if bad:
        axes.plot(*zip(*bad, strict=True), "x", color=WARNING, markersize=11, mew=2, label="not sustained")
    axes.axhline(budget_ms, color=MUTED, linewidth=1, linestyle=":", label=f"budget {budget_ms:g} ms")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests offered a second (Poisson)", color=MUTED)
    axes.set_ylabel("ms since it was due", color=MUTED)
    axes.grid(color=GRID)
    right = axes.twinx()
    for spine in right.spines.values():
        spine.set_visible(False)
    right.plot(offered, [step["achieved"] for step in steps], "--", color=LINES[2], label="full answers/s")
    right.set_ylabel("full answers a second", color=MUTED)
    right.tick_params(colors=MUTED, labelsize=9, length=0)
    right.set_ylim(0, max(offered) * 1.05)
    note = "Not even the first rate was sustained."
    if sweep["knee"] is not None:
        at = next(step["offered"] for step in steps if step["rate"] == sweep["knee"])
        axes.axvline(at, color=SYSTEM, linewidth=1.4)
        axes.text(at, axes.get_ylim()[1], " knee", va="top", color=SYSTEM, fontsize=9, weight="bold")
        note = f"Saturation: {sweep['saturation']:.0f} full answers a second."
    lines = [*axes.get_lines(), *right.get_lines()]
    shown = [line for line in lines if not line.get_label().startswith("_")]
    below = (0.01, 0.26 / figure.get_figheight())
    figure.legend(handles=shown, loc="lower left", ncols=5, bbox_to_anchor=below, frameon=False, fontsize=8.5)
    return finished(figure, "Open loop at rising rates", data["label"], note, synthetic=data["synthetic"])


def catalogue_png(catalogue: Mapping[str, Any], data: Mapping[str, Any]) -> bytes:
    """Search time against the number of vectors, a line a kind of index, recall beside each point."""
    figure, axes = new_figure(height=4.4, right=0.86, foot=0.9)
    kinds = list(dict.fromkeys(index["kind"] for index in catalogue["indexes"]))
    for i, kind in enumerate(kinds):
        found = [index for index in catalogue["indexes"] if index["kind"] == kind]
        sizes, times = [f["vectors"] for f in found], [f["p50_ms"] for f in found]
        axes.plot(sizes, times, marker=MARKERS[i], color=LINES[i], linewidth=1.8, label=kind)
        for index in found:
            place = (index["vectors"], index["p50_ms"])
            text = f"{index['p50_ms']:.2f} ms, recall {index['recall']:.3f}"
            axes.annotate(text, place, textcoords="offset points", xytext=(6, -10), fontsize=8, color=MUTED)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("vectors", color=MUTED)
    axes.set_ylabel("median milliseconds a search, one thread", color=MUTED)
    axes.grid(color=GRID)
    axes.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=INK)
    note = f"The best {catalogue['at']}; vectors beyond the catalogue's own are made up."
    if "world" in catalogue:
        world = catalogue["world"]
        latency = world["http"]["latency"]
        note += f" Whole answer over HTTP, {world['n_items']:,} items: "
        note += f"p50 {latency['p50_ms']:.1f}, p99 {latency['p99_ms']:.1f} ms."
    return finished(figure, "Larger catalogues: the index", data["label"], note, synthetic=data["synthetic"])
