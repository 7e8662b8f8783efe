"""The latency report as JSON, Markdown and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

from recsys.atomic_io import replacing_file, write_json
from serving.benchmark.latency import OPEN_SHARE, Report
from serving.benchmark.load import Load, Percentiles

PERCENTILES = ("p50", "p90", "p99", "p99.9", "max")
BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito: told apart by colour-blind readers too


def save(report: Report, folder: Path) -> None:
    """Write latency.json, latency.md and latency.png."""
    write_json(folder / "latency.json", asdict(report))
    for name, content in {"latency.md": markdown(report).encode(), "latency.png": picture(report)}.items():
        with replacing_file(folder / name) as beside:
            beside.write_bytes(content)


def markdown(report: Report) -> str:
    """Tables; the verdict; and how it was measured, as the last line."""
    parts = [f"# Latency on {report.dataset}"]
    if (inside := report.in_process) is not None:
        parts.append(_stages(f"In process, {inside.ranked} candidates ranked", inside.stages))
        bare = [(name, f"{ms:.3f}") for name, ms in [*inside.bare_ms.items(), ("sum", inside.bare_sum_ms)]]
        parts.append(_table("Bare library calls", ("call", "median ms"), bare))
        parts.append(
            f"Overhead (whole answer / sum of the bare calls): {inside.overhead:.2f}; in processor time "
            f"{inside.overhead_cpu:.2f}; without the read of the online store on both sides "
            f"{inside.overhead_without_store:.2f}."
        )
    http = report.http
    loads = [(f"closed loop, {clients} client(s)", *_load(load)) for clients, load in http.closed.items()]
    loads += [(f"open loop, {OPEN_SHARE:.0%} of saturation", *_load(http.open))] if http.open else []
    columns = ("ms", *PERCENTILES, "answers/s", "degraded, shed, failed")
    parts.append(_table("Over HTTP", columns, loads))
    rows = [(f"{step.rate:.0f}/s", *_load(step.load), step.why or "yes") for step in http.sweep.steps]
    parts.append(_table("Open loop at rising rates", (*columns, "served within bounds"), rows))
    more = "" if http.sweep.steps[-1].why else " The sweep ended before the service did: it may stand more."
    parts.append(f"Saturation: {http.sweep.saturation:.0f} requests a second.{more}")
    for n_items, stages in report.larger.items():
        parts.append(_stages(f"In process, {n_items:,} items", stages))
    if (device := report.device) is not None:
        rows = [(f"{b.items:,}", str(b.users), f"{b.tower_ms:.2f}", f"{b.both_ms:.2f}") for b in device.batches]
        parts.append(_table(device.name, ("items", "users", "tower ms", "with retrieval ms"), rows))
    facts = "; ".join(f"{name}: {value}" for name, value in report.facts.items())
    return "\n\n".join([*parts, verdict(report), f"Measured: {facts}."]) + "\n"


def verdict(report: Report) -> str:
    one, word = report.http.closed[1].latency, "within" if report.within_budget else "OVER"
    p99 = f"{one.p99_ms:.1f} ms" if one else "no full answer"
    return f"p99 of one client over HTTP: {p99}, {word} the budget of {report.options.budget_ms:g} ms."


def picture(report: Report) -> bytes:
    """Above: p50 and p99 against the offered rate. Below: the stages of an answer beside the bare calls."""
    from matplotlib.figure import Figure

    inside = report.in_process
    figure = Figure(figsize=(9, 8 if inside else 4.4), dpi=140, layout="constrained")
    figure.suptitle(f"Latency on {report.dataset}")
    above, *below = figure.subplots(2 if inside else 1, squeeze=False)[:, 0]
    steps = [(step.rate, step.load.latency, step.why) for step in report.http.sweep.steps if step.load.latency]
    rates = [rate for rate, _, _ in steps]
    above.plot(rates, [ms.p50_ms for _, ms, _ in steps], "o-", color=BLUE, label="p50")
    above.plot(rates, [ms.p99_ms for _, ms, _ in steps], "s-", color=ORANGE, label="p99")
    failed = [(rate, ms.p99_ms) for rate, ms, why in steps if why]
    above.plot([x for x, _ in failed], [y for _, y in failed], "kx", markersize=12, label="not within bounds")
    above.set(xlabel="requests a second (Poisson)", ylabel="ms since it was due", yscale="log")
    above.legend(frameon=False)
    if inside is not None:
        (axes,) = below
        stages = {name: ms.p50_ms for name, ms in inside.stages.items() if name != "total"}
        for row, parts in enumerate((inside.bare_ms, stages)):
            left = 0.0
            for name, ms in parts.items():
                axes.barh(row, ms, left=left, label=name)
                left += ms
        axes.set_yticks((0, 1), ("bare library calls", "full answer"))
        axes.set_xlabel("milliseconds in process, medians")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([f"## {title}", "", lines[0], "|---|" + "---:|" * (len(header) - 1), *lines[1:]])


def _stages(title: str, stages: Mapping[str, Percentiles]) -> str:
    return _table(title, ("ms", *PERCENTILES), [(name, *_figures(ms)) for name, ms in stages.items()])


def _figures(ms: Percentiles | None) -> tuple[str, ...]:
    if ms is None:
        return ("-",) * len(PERCENTILES)
    return tuple(f"{value:.2f}" for value in (ms.p50_ms, ms.p90_ms, ms.p99_ms, ms.p999_ms, ms.max_ms))


def _load(load: Load) -> tuple[str, ...]:
    return (*_figures(load.latency), f"{load.answered_per_s:.0f}", f"{load.degraded}, {load.shed}, {load.failed}")
