"""The ladder for people: a table for the terminal, one for Markdown, and a page that needs nothing beside it.

Stage: evaluate. In: the dict of `ladder`, and what the run knows about itself. Out: text, PNG files, and
`report.html` with inline CSS and embedded pictures. Absent: measuring, scripts, anything fetched from a network;
nothing is read from the clock or the machine, the caller passes it in.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from recsys.artefacts import replacing_file
from recsys.evaluation.ladder import SEGMENTS
from recsys.evaluation.metrics import LABELS, METRICS, Ints
from recsys.evaluation.plots import importance_png, ladder_png, retrieval_png

NOTHING: Final = "n/a"  # a segment without events
COVERAGE: Final = "coverage@10"
WITH_INTERVAL: Final = ("ndcg@10", "hr@10")  # in the two narrow tables; the page shows every interval


def text_table(ladder: Mapping[str, Any], segment: str = "all") -> str:
    """The ladder in fixed width for a terminal, methods in order, `*` before the full system.

    `segment` is one of SEGMENTS; the table over all events ends with `finding`.
    """
    header, rows = _cells(ladder, segment)
    starred = [("* " if row[0] == ladder["system"] else "  ") + _line(row[0]) for row in rows]
    table = [["  " + header[0], *header[1:]], *([name, *row[1:]] for name, row in zip(starred, rows, strict=True))]
    parts = [*_caption(ladder, segment), *_fixed_width(table), *([finding(ladder)] if segment == "all" else [])]
    return "\n".join(_line(part, keep_spaces=True) for part in parts) + "\n"


def markdown_table(ladder: Mapping[str, Any], segment: str = "all") -> str:
    """The same as a GitHub table, the full system in bold, so that a README can carry it."""
    header, rows = _cells(ladder, segment)
    lines = ["| " + " | ".join(header) + " |", "|:--|" + "--:|" * (len(header) - 1)]
    for name, *cells in rows:
        shown = [_markdown(name), *cells]
        lines.append("| " + " | ".join(f"**{c}**" if name == ladder["system"] else c for c in shown) + " |")
    tail = ["", _markdown(finding(ladder))] if segment == "all" else []
    return "\n".join([_markdown(" ".join(_caption(ladder, segment))), "", *lines, *tail]) + "\n"


def differences_table(ladder: Mapping[str, Any]) -> str:
    """The full system minus each other method, in fixed width; one line saying so where there is none."""
    if not ladder["differences"]:
        return "No differences: the ladder has no full system, nothing to compare it with, or no event.\n"
    level = f"{ladder['bootstrap']['level']:.0%} interval"
    table = [["  minus", "metric", "difference", level, "resamples <= 0"]]
    table += [
        ["  " + _line(d["other"]), LABELS[d["metric"]], *_difference_cells(ladder, d)] for d in ladder["differences"]
    ]
    title = f"{_line(str(ladder['system']))} minus each other method, the same events, {ladder['data']['label']}"
    return "\n".join([_line(title), *_fixed_width(table)]) + "\n"


def finding(ladder: Mapping[str, Any]) -> str:
    """What the ladder found, in two or three sentences, by NDCG@10 over all events."""
    means = {
        m["name"]: cell for m in ladder["methods"] if (cell := m["segments"]["all"]["metrics"]["ndcg@10"]) is not None
    }
    if not means:
        return "There was no test event, so nothing was measured."
    level = f"{ladder['bootstrap']['level']:.0%} interval"
    system = ladder["system"]
    lead = system or max(means, key=lambda name: means[name]["mean"])
    cell = means[lead]
    interval = f"{level} {cell['low']:.4f} to {cell['high']:.4f}"
    said = f"Over all test events, {lead} reaches NDCG@10 {cell['mean']:.4f} ({interval})."
    singles = [m["name"] for m in ladder["methods"] if m["kind"] == "single" and m["name"] != lead]
    if system is None or not singles:
        return said
    best = max(singles, key=lambda name: means[name]["mean"])
    d = next(d for d in ladder["differences"] if d["other"] == best and d["metric"] == "ndcg@10")
    if d["degenerate"]:
        verdict = "it rests on one user, so its interval says nothing"
    elif d["low"] > 0:
        verdict = f"the system is ahead ({level} of the difference {d['low']:+.4f} to {d['high']:+.4f})"
    elif d["high"] < 0:
        verdict = f"the system is behind ({level} of the difference {d['low']:+.4f} to {d['high']:+.4f})"
    else:
        verdict = f"these data do not tell them apart ({level} {d['low']:+.4f} to {d['high']:+.4f})"
    return (
        f"{said} The best single source is {best} at {means[best]['mean']:.4f}; difference {d['mean']:+.4f}: {verdict}."
    )


def write_report(
    folder: Path,
    ladder: Mapping[str, Any],
    *,
    retrieval_ranks: Mapping[str, Ints] | None = None,
    importance: Mapping[str, float] | None = None,
    about: Mapping[str, Any] | None = None,
    stages: Mapping[str, float] | None = None,
) -> Path:
    """Write `ladder.png`, the pictures that were given data, and `report.html`, whose path is returned.

    retrieval_ranks  ranks (E,) by retrieval method     importance  gain by feature of the ranker
    about            machine, versions, date, command   stages      seconds by stage, in order
    """
    pictures = {"ladder": ladder_png(ladder)}
    if retrieval_ranks:
        pictures["retrieval"] = retrieval_png(retrieval_ranks, ladder["data"])
    if importance:
        pictures["importance"] = importance_png(importance, ladder["data"])
    for name, png in pictures.items():
        with replacing_file(folder / f"{name}.png") as beside:
            beside.write_bytes(png)
    page = folder / "report.html"
    with replacing_file(page) as beside:
        beside.write_text(report_html(ladder, pictures, about or {}, stages or {}), encoding="utf-8")
    return page


def report_html(
    ladder: Mapping[str, Any], pictures: Mapping[str, bytes], about: Mapping[str, Any], stages: Mapping[str, float]
) -> str:
    """The page as text. Every string from outside is escaped; the page may load nothing but itself."""
    data, protocol, boot = ladder["data"], ladder["protocol"], ladder["bootstrap"]
    label, level = escape(data["label"]), f"{boot['level']:.0%}"
    banner = (
        "<p class='banner' role='note'><strong>Synthetic data.</strong> These numbers come from a world of our own "
        "making. They show that the system works; they are not results on MovieLens.</p>"
        if data["synthetic"]
        else ""
    )
    sizes = ladder["methods"][0]["segments"]
    facts = {
        "Data set": data["label"],
        "Fingerprint (SHA-256 of the source)": data["fingerprint"],
        "T1, end of what candidates are made from": protocol["t1_utc"],
        "T2, end of training; the test is after it": protocol["t2_utc"],
        "Movies in the catalogue": f"{ladder['n_catalogue']:,}",
        "Intervals": f"{level}, {boot['n_boot']:,} resamples of users, seed {boot['seed']}",
    }
    body = [
        f"<header><h1>How good are the recommendations?</h1><p class='data'>Data: {label}</p>{banner}</header>",
        f"<p class='finding'>{escape(finding(ladder))}</p>",
        _image(pictures, "ladder", "Bars of NDCG@10 for each method with interval whiskers"),
        "<h2>The ladder</h2>",
        f"<p class='how'>Below each value its {level} interval. The full system is highlighted.</p>",
        _segment_html(ladder, "all"),
        *(
            f"<details><summary>{escape(_SEGMENT_NAMES[name])} <span>{sizes[name]['n_events']:,} events, "
            f"{sizes[name]['n_users']:,} users</span></summary>{_segment_html(ladder, name)}</details>"
            for name in SEGMENTS
            if name != "all"
        ),
        *_differences_html(ladder),
        "<h2>Retrieval</h2>" if "retrieval" in pictures else "",
        _image(pictures, "retrieval", "Recall at k from 10 to 500 for each retrieval method"),
        "<h2>Ranking</h2>" if "importance" in pictures else "",
        _image(pictures, "importance", "Share of the ranker's gain for each feature"),
        "<h2>How it was measured</h2>",
        f"<p>{escape(protocol['text'])}</p>",
        f"<p>A <em>liked</em> event has a rating of at least {protocol['liked_rating']:g}; a <em>cold</em> event is "
        "one whose user had no history yet. HR@10: share of events whose movie is in the top 10. NDCG@10: the same, "
        "but a hit at rank r counts 1/log2(r + 1). MRR: mean of 1/r over the list. Recall@100 and @500: share of "
        "events whose movie is among that many. Coverage@10: share of the catalogue that was in anybody's top 10.</p>",
        _pairs_html(facts),
    ]
    if about:
        body += ["<h2>Where the numbers come from</h2>", _pairs_html(about)]
    if stages:
        rows = [[name, f"{seconds:,.1f}"] for name, seconds in stages.items()]
        rows.append(["total", f"{sum(stages.values()):,.1f}"])
        body += ["<h2>Time taken</h2>", _table_html(["Stage", "Seconds"], rows, marked=len(rows) - 1)]
    return _PAGE.format(label=label, style=_STYLE, body="\n".join(part for part in body if part))


_SEGMENT_NAMES: Final = {
    "all": "All events",
    "warm": "Warm events: the user had a history",
    "cold": "Cold events: the user had none",
    "liked": "Liked events: the user gave a high rating",
}


def _cells(ladder: Mapping[str, Any], segment: str) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each method: raw name, metrics (intervals for WITH_INTERVAL), coverage."""
    header = ["Method", *(LABELS[name] for name in METRICS)]
    rows = []
    for method in ladder["methods"]:
        found = method["segments"][segment]
        row = [str(method["name"])]
        for name in METRICS:
            cell, tail = found["metrics"][name], ""
            if cell is not None and name in WITH_INTERVAL:
                tail = " [one user]" if found["degenerate"] else f" [{cell['low']:.4f}, {cell['high']:.4f}]"
            row.append(NOTHING if cell is None else f"{cell['mean']:.4f}{tail}")
        rows.append(row)
    if segment == "all":  # coverage is known over all events only
        header.append(LABELS[COVERAGE])
        for row, method in zip(rows, ladder["methods"], strict=True):
            row.append(f"{method[COVERAGE]:.4f}")
    return header, rows


def _caption(ladder: Mapping[str, Any], segment: str) -> list[str]:
    size, protocol, boot = ladder["methods"][0]["segments"][segment], ladder["protocol"], ladder["bootstrap"]
    return [
        f"Data: {ladder['data']['label']}.",
        f"Test: {size['n_events']:,} {'' if segment == 'all' else segment + ' '}events of {size['n_users']:,} users "
        f"after {protocol['t2_utc']}. In brackets: {boot['level']:.0%} bootstrap interval over users.",
    ]


def _difference_cells(ladder: Mapping[str, Any], d: Mapping[str, Any]) -> list[str]:
    share, least = d["fraction_not_positive"], 1 / ladder["bootstrap"]["n_boot"]
    interval = "one user" if d["degenerate"] else f"{d['low']:+.4f} to {d['high']:+.4f}"
    return [f"{d['mean']:+.4f}", interval, f"{share:.3f}" if share else f"< {least:.3g}"]


def _fixed_width(table: Sequence[Sequence[str]]) -> list[str]:
    """First column to the left, the others to the right, a rule below the header."""
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    pads: list[Callable[[str, int], str]] = [str.ljust, *[str.rjust] * (len(widths) - 1)]
    lines = ["  ".join(p(c, w) for p, c, w in zip(pads, row, widths, strict=True)).rstrip() for row in table]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _line(text: str, keep_spaces: bool = False) -> str:
    """One line without control characters: a name must not move a terminal's cursor."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if keep_spaces else " ".join(clean.split())


def _markdown(text: str) -> str:
    """Text that a Markdown table shows as it is; `<` and `&` as entities, since Markdown lets HTML through."""
    for mark in "\\`*[]|":
        text = text.replace(mark, "\\" + mark)
    return _line(text.replace("&", "&amp;").replace("<", "&lt;"))


def _segment_html(ladder: Mapping[str, Any], segment: str) -> str:
    with_coverage = segment == "all"
    header = ["Method", *(LABELS[name] for name in METRICS), *([LABELS[COVERAGE]] if with_coverage else [])]
    rows, marked = [], None
    for number, method in enumerate(ladder["methods"]):
        found = method["segments"][segment]
        row: list[str | tuple[str, str]] = [(method["name"], method["description"])]
        for name in METRICS:
            cell = found["metrics"][name]
            if cell is None:
                row.append(NOTHING)
            else:
                below = "one user" if found["degenerate"] else f"{cell['low']:.4f} – {cell['high']:.4f}"
                row.append((f"{cell['mean']:.4f}", below))
        rows.append([*row, *([f"{method[COVERAGE]:.1%}"] if with_coverage else [])])
        marked = number if method["name"] == ladder["system"] else marked
    return _table_html(header, rows, marked)


def _differences_html(ladder: Mapping[str, Any]) -> list[str]:
    if not ladder["differences"]:
        return []
    metrics = list(dict.fromkeys(d["metric"] for d in ladder["differences"]))
    found = {(d["other"], d["metric"]): _difference_cells(ladder, d) for d in ladder["differences"]}
    rows = []
    for other in dict.fromkeys(d["other"] for d in ladder["differences"]):
        row: list[str | tuple[str, str]] = [other]
        for metric in metrics:
            mean, interval, share = found[other, metric]
            row += [(mean, interval), share]
        rows.append(row)
    how = (
        "The full system minus the other method on the same events, with the same users drawn for both; below each "
        "difference its interval. One that holds 0 means that these data do not tell the two apart. “Not better” is "
        "the share of resamples in which the system was not better."
    )
    header = ["Compared with", *(text for metric in metrics for text in (LABELS[metric], "Not better"))]
    title = f"<h2>Is “{escape(str(ladder['system']))}” better?</h2>"
    return [title, f"<p class='how'>{how}</p>", _table_html(header, rows)]


def _table_html(
    header: Sequence[str], rows: Sequence[Sequence[str | tuple[str, str]]], marked: int | None = None
) -> str:
    """A table that scrolls sideways by itself on a narrow screen; a pair is a value with small print below."""

    def inner(cell: str | tuple[str, str]) -> str:
        if isinstance(cell, str):
            return escape(cell)
        return escape(cell[0]) + (f"<small>{escape(cell[1])}</small>" if cell[1] else "")

    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in header)
    lines = [
        f"<tr{' class=marked' if number == marked else ''}><th scope='row'>{inner(row[0])}</th>"
        + "".join(f"<td>{inner(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for number, row in enumerate(rows)
    ]
    return (
        f"<div class='wide' tabindex='0'><table><thead><tr>{head}</tr></thead><tbody>"
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def _pairs_html(pairs: Mapping[str, Any]) -> str:
    shown = (f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in pairs.items())
    return f"<dl>{''.join(shown)}</dl>"


def _image(pictures: Mapping[str, bytes], name: str, says: str) -> str:
    if name not in pictures:
        return ""
    encoded = base64.b64encode(pictures[name]).decode("ascii")
    return f"<figure><img alt='{escape(says)}' src='data:image/png;base64,{encoded}'></figure>"


_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>Recommender report: {label}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE: Final = """
:root { --paper: #fff; --ink: #1f2430; --muted: #5d6675; --line: #dfe3e9; --mark: #eaf2fb; --accent: #1f5fa8;
  --warn-paper: #fff1e0; --warn-ink: #7a2e00; --warn-line: #d9731a; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181e; --ink: #e6e9ef; --muted: #9aa4b4; --line: #323845;
  --mark: #1d2c40; --accent: #7db4f0; --warn-paper: #3a2410; --warn-ink: #ffd9b0; --warn-line: #e08a3c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
.data, .how, summary span { color: var(--muted); }
.data { margin: .25rem 0 0; }
.how { margin: 0 0 .75rem; }
.banner { margin: 1rem 0 0; padding: .75rem 1rem; border: 2px solid var(--warn-line); border-radius: .5rem;
  background: var(--warn-paper); color: var(--warn-ink); }
.finding { font-size: 1.1rem; border-left: 4px solid var(--accent); padding-left: 1rem; margin: 1.5rem 0; }
figure { overflow-x: auto; margin: 1rem 0; padding: .5rem; background: #fff; border: 1px solid var(--line);
  border-radius: .5rem; }
img { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .45rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  white-space: nowrap; }
thead th { color: var(--muted); font-weight: 600; font-size: .85rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
tbody th { font-weight: 500; min-width: 9rem; white-space: normal; overflow-wrap: anywhere; }
small { display: block; color: var(--muted); font-size: .75rem; font-weight: 400; }
.marked th, .marked td { background: var(--mark); font-weight: 650; }
tbody .marked th:first-child { background: var(--mark); box-shadow: inset 3px 0 var(--accent); }
details { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; padding: .6rem 0; font-weight: 600; }
summary span { font-weight: 400; }
dl { display: grid; grid-template-columns: minmax(9rem, 19rem) 1fr; gap: .35rem 1rem; margin: 1rem 0; }
dt { color: var(--muted); }
dd { margin: 0; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; }
  img { min-width: 34rem; } tbody th { min-width: 7rem; max-width: 8.5rem; } h1 { font-size: 1.4rem; } }
@media print { figure, tr { break-inside: avoid; } }
"""
