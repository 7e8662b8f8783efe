"""The latency report as text, Markdown and files.

Stage: serving (benchmark). In: the dict of `latency.run`. Out: a table for the terminal, `latency.json`, `latency.md`,
`latency-*.png`. Absent: measuring; pictures are drawn by `pictures`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from recsys.atomic_io import replacing_file, write_json
from recsys.evaluation.tables import with_facts
from serving.bench import pictures

Table = tuple[str, list[str], list[list[str]], str]  # title, header, rows, a sentence below

STAGES: Final = ("state", "retrieval", "features", "ranking", "ordering", "total")
BARE_NAMES: Final = {
    "feast": "Feast, one user's row",
    "tower": "torch, user tower (eager)",
    "index": "FAISS search",
    "ease": "EASE, SciPy product",
    "item_knn": "item-kNN, SciPy product",
    "covisitation": "co-visitation, SciPy product",
    "ials": "iALS, NumPy solve and product",
    "lightgbm": "LightGBM predict",
    "orjson": "orjson",
    "selection": "beside the sum: np.argpartition for each scored retriever",
    "own_read": "beside the sum: the product's own read",
    "own_tower": "beside the sum: the product's own tower",
    "own_ranker": "beside the sum: the product's own ranker",
}
PERCENTILES: Final = ("p50_ms", "p95_ms", "p99_ms", "p99.9_ms", "max_ms")


def save(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write JSON, Markdown and pictures; what was written. Pictures that only an earlier run drew are removed."""
    write_json(folder / "latency.json", report)
    drawn = pictures.draw(report)
    for old in folder.glob("latency-*.png"):
        if old.name not in drawn:
            old.unlink()
    for name, content in drawn.items():
        with replacing_file(folder / name) as beside:
            beside.write_bytes(content)
    with replacing_file(folder / "latency.md") as beside:
        beside.write_text(markdown(report), encoding="utf-8")
    return [folder / name for name in ("latency.json", "latency.md", *drawn)]


def text_table(report: Mapping[str, Any]) -> str:
    """For the terminal; the last line says what was found."""
    lines = [*_caption(report), ""]
    for title, header, rows, note in tables(report):
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        lines.append(title)
        for row in [header, *rows]:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
            lines.append("  " + "  ".join(cells).rstrip())
        lines += [note, ""] if note else [""]
    return "\n".join([*lines, verdict_sentence(report)])


def markdown(report: Mapping[str, Any]) -> str:
    """The same as GitHub tables, its last line saying how it was measured."""
    lines = ["# Latency", "", " ".join(_caption(report)), ""]
    for title, header, rows, note in tables(report):
        lines += [f"## {title}", "", "| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines += ["", note, ""] if note else [""]
    lines.append(verdict_sentence(report))
    facts = {**report["about"], "bundle": report["model"]["bundle_id"]} if "model" in report else report["about"]
    return with_facts("\n".join(lines), facts)


def verdict_sentence(report: Mapping[str, Any]) -> str:
    verdict = report["verdict"]
    budget = f"the budget of {verdict['budget_ms']:g} ms"
    if verdict["where"] is None:
        return f"Nothing was measured that could be held against {budget}."
    if verdict["p99_ms"] is None:
        return f"No answer came {verdict['where']}: OVER {budget}."
    within = "within" if verdict["within_budget"] else "OVER"
    return f"p99 {verdict['where']} is {verdict['p99_ms']:.1f} ms, {within} {budget}."


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Those that the report holds something for."""
    found: list[Table] = []
    if "in_process" in report:
        found += _in_process(report["in_process"])
    found += _http(report.get("http", {}))
    if "catalogue" in report:
        found += _catalogue(report["catalogue"])
    if "device" in report:
        found.append(_device(report["device"]))
    return found


def _caption(report: Mapping[str, Any]) -> list[str]:
    """Data set, model, machine, how busy it was."""
    about, options = report["about"], report["options"]
    named = ""
    if "model" in report:
        model = report["model"]
        named = f"{report['dataset']['label']}, version {model['version']} ({model['bundle_id']}), "
        named += f"{model['n_items']:,} items. "
    before, after = about["load_average_before"][0], about["load_average_after"][0]
    return [
        f"{named}k = {options['k']}; {options['requests']} requests each after {options['warmup']} for warm-up.",
        f"{about['machine']}, {about['processor']}; load average {before} before, {after} after.",
    ]


def _in_process(inside: Mapping[str, Any]) -> list[Table]:
    ranked = inside["ranked"]
    stages = [s for s in STAGES if s in next(iter(ranked.values()))["stages"]]
    header = ["p50 / p99, ms", *(f"{depth} ranked" for depth in ranked)]
    rows = [
        [s, *(f"{d['stages'][s]['p50_ms']:.2f} / {d['stages'][s]['p99_ms']:.2f}" for d in ranked.values())]
        for s in stages
    ]
    bare_header = ["median, ms", *(f"{depth} ranked" for depth in ranked)]
    names = list(next(iter(ranked.values()))["bare"])
    bare_rows = [[BARE_NAMES[name], *(f"{d['bare'][name]:.3f}" for d in ranked.values())] for name in names]
    for key, title in (
        ("bare_sum_ms", "sum of the bare calls"),
        ("own_sum_ms", "sum with the product's own read, tower and ranker"),
    ):
        bare_rows.append([title, *(f"{d[key]:.3f}" for d in ranked.values())])
    for key, title in (
        ("overhead", "overhead: full answer / sum"),
        ("overhead_with_selection", "overhead, selection counted in"),
        ("overhead_of_own", "overhead over the product's own calls"),
    ):
        bare_rows.append([title, *(f"{d[key]:.2f}" for d in ranked.values())])
        bare_rows.append([f"{title}, processor time", *(f"{d['cpu'][key]:.2f}" for d in ranked.values())])
    headline = ranked[inside["headline"]]
    note = (
        f"Overhead with {inside['headline']} ranked: {headline['overhead']:.2f}; in processor time "
        f"{headline['cpu']['overhead']:.2f}. The full answer is the state's read, "
        "its arrays, recommend, and the bytes; every row was measured in turn with all others."
    )
    return [
        ("In process, by stage", header, rows, ""),
        ("In process, against bare library calls", bare_header, bare_rows, note),
    ]


def _load_row(name: str, load: Mapping[str, Any]) -> list[str]:
    latency = load["latency"]
    others = [
        f"{count} {what}"
        for what, count in (
            ("shed", load["statuses"].get("503", 0)),
            ("degraded", load["degraded_answers"]),
            ("failed", _failed(load)),
        )
        if count
    ]
    cells = [f"{latency[p]:.2f}" if p in latency else "-" for p in PERCENTILES]
    return [name, *cells, f"{load['achieved']:.0f}", ", ".join(others) or "none"]


def _failed(load: Mapping[str, Any]) -> int:
    bad = sum(n for status, n in load["statuses"].items() if status not in ("200", "503"))
    return int(bad + sum(load["errors"].values()))


def _http(http: Mapping[str, Any]) -> list[Table]:
    found: list[Table] = []
    header = ["", "p50", "p95", "p99", "p99.9", "max", "full/s", "shed, degraded, failed"]
    if "closed" in http:
        rows = []
        for clients, load in http["closed"].items():
            rows.append(_load_row(f"{clients} client(s), ms", load))
            rows.append(_load_row(f"{clients} client(s), bare HTTP, ms", http["bare"][clients]))
        one = http["closed"]["1"]
        note = (
            f"Ratio to bare HTTP (an empty FastAPI answer), medians: {_list(http['ratio_to_bare'])}. Inside the "
            f"service, one client, median: {one['inside'].get('total', 0):.2f} ms. The generator took "
            f"{one['cpu_us']:.0f} µs of processor a request."
        )
        if http.get("ready_s"):
            note += f" Ready after {http['ready_s']:.1f} s; {http['resident_mib']:.0f} MiB resident at the end."
        found.append(("Over HTTP, closed loop", header, rows, note))
    for compared in http.get("wrk", ()):
        found.append(_wrk(compared))
    if "sweep" in http:
        sweep = http["sweep"]
        rows = [
            [
                *(f"{step[name]:.0f}" for name in ("offered", "achieved")),
                *(f"{step[name]:.1f}" for name in ("p50_ms", "p99_ms")),
                *(f"{step[name]:.1%}" for name in ("shed", "degraded", "failed")),
                ("yes" if not step["why"] else "no")
                + (", the second time" if step["first"] and not step["why"] else ""),
            ]
            for step in sweep["steps"]
        ]
        columns = ["offered/s", "full/s", "p50 ms", "p99 ms", "shed", "degraded", "failed", "sustained"]
        note = (
            f"Saturation: {sweep['saturation']:.0f} full answers a second; the knee is at {sweep['knee']:.0f} a second."
            if sweep["knee"]
            else "Not even the first rate was sustained."
        )
        if sweep["knee"] and not sweep["reached"]:
            note += " The sweep ended before the service did: it may stand more."
        found.append(("Open loop, rising rates", columns, rows, note))
    if "open" in http:
        load = http["open"]
        row = _load_row(f"{load['offered']:.0f}/s, ms", load)
        note = (
            "Latency counts from the moment when a request was due. The generator itself sent "
            f"{load['late'].get('p99_ms', 0):.2f} ms late at p99."
        )
        if first := load["first"]:
            note += (
                f" Measured twice: the first time this rate was not sustained ({first['why']}; p99 "
                f"{first['p99_ms'] or 0:.1f} ms, the generator {first['late_p99_ms'] or 0:.1f} ms late at p99)."
            )
        found.append((f"Open loop at {load['share']:.0%} of saturation", header, [row], note))
    if "against_bare" in http:
        found.append(_against_bare(http))
    return found


def _against_bare(http: Mapping[str, Any]) -> Table:
    rows = [
        [name, f"{found['ms']:.2f}", f"{found['aim_ms']:.0f}", f"{found['bare_answers']:.1f}"]
        for name, found in http["against_bare"].items()
    ]
    bare_ms = http["bare"]["1"]["latency"]["p50_ms"]
    note = f"A bare answer took {bare_ms:.2f} ms: an empty FastAPI service, one client, median, in the same run."
    return ("Against the aims", ["", "ms", "aim, ms", "in bare answers"], rows, note)


def _wrk(compared: Mapping[str, Any]) -> Table:
    if "message" in compared:
        return ("wrk", ["", ""], [], compared["message"])
    rows = [
        [who, *(f"{values[name]:.2f}" for name in ("p50_ms", "p99_ms", "rate"))]
        for who, values in (("ours", compared["ours"]), ("wrk", compared["wrk"]), ("ours / wrk", compared["ratio"]))
    ]
    word = "agree" if compared["agrees"] else "DISAGREE"
    note = f"They {word} within {compared['tolerance']:.0%}. Without what wrk adds for requests that it did not send."
    return (f"wrk, {compared['clients']} client(s)", ["", "p50 ms", "p99 ms", "answers/s"], rows, note)


def _catalogue(catalogue: Mapping[str, Any]) -> list[Table]:
    if "message" in catalogue:
        return [("Larger catalogues", ["", ""], [], catalogue["message"])]
    rows = [
        [
            f"{i['vectors']:,} {i['kind']}",
            f"{i['p50_ms']:.2f}",
            f"{i['p99_ms']:.2f}",
            f"{i['recall']:.3f}",
            f"{i['build_s']:.1f}",
        ]
        for i in catalogue["indexes"]
    ]
    header = ["vectors", "p50 ms", "p99 ms", f"recall@{catalogue['at']}", "build s"]
    found: list[Table] = [("Index alone, one thread", header, rows, "")]
    if "world" in catalogue:
        world = catalogue["world"]
        rows = [
            [
                f"in process, {stage}",
                f"{world['in_process'][stage]['p50_ms']:.2f}",
                f"{world['in_process'][stage]['p99_ms']:.2f}",
            ]
            for stage in STAGES
            if stage in world["in_process"]
        ]
        latency = world["http"]["latency"]
        rows.append(["over HTTP, one client", f"{latency['p50_ms']:.2f}", f"{latency['p99_ms']:.2f}"])
        note = (
            f"Ready after {world['ready_s']:.1f} s; {world['resident_mib']:.0f} MiB resident. "
            "Items beyond the trained ones are made up."
        )
        found.append((f"The whole answer with {world['n_items']:,} items", ["", "p50 ms", "p99 ms"], rows, note))
    return found


def _device(device: Mapping[str, Any]) -> Table:
    title = f"Device {device['device']}"
    if "message" in device:
        return (title, ["", ""], [], f"{device['message']}.")
    rows = [
        [
            f"{b['items']:,} items, {b['users']} user(s)",
            *(f"{b[name]:.2f}" for name in ("tower_ms", "retrieval_ms", "scoring_ms")),
            f"{b['users_per_s']:.0f}",
        ]
        for b in device["batches"]
    ]
    note = f"{device['name']}; exact top {device['at']}; {device['same_as_cpu']:.4f} of it is the CPU's."
    return (title, ["", "tower ms", "retrieval ms", "both ms", "users/s"], rows, note)


def _list(ratios: Mapping[str, float]) -> str:
    return ", ".join(f"{ratio:.1f} with {clients} client(s)" for clients, ratio in ratios.items())
