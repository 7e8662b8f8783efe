"""The report as one page: inline CSS, pictures embedded, nothing loaded and nothing run.

Stage: evaluate. In: the dict of `leaderboard`, PNG bytes, and what the run knows about itself. Out: HTML text in which
every string from outside is escaped. Absent: measuring, files (`report`); nothing is read from the clock or the
machine.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from recsys.evaluation.cohorts import SEGMENTS
from recsys.evaluation.metrics import LABELS, METRICS
from recsys.evaluation.tables import (
    BEYOND_SAYS,
    COHORT_METRIC,
    COVERAGE,
    NOTHING,
    beyond_accuracy_cells,
    cohort_cells,
    difference_cells,
    finding,
)


def report_html(
    leaderboard: Mapping[str, Any], pictures: Mapping[str, bytes], about: Mapping[str, Any], stages: Mapping[str, float]
) -> str:
    """The page as text. Every string from outside is escaped; the page may load nothing but itself."""
    data, protocol, boot = leaderboard["data"], leaderboard["protocol"], leaderboard["bootstrap"]
    label, level = escape(data["label"]), f"{boot['level']:.0%}"
    banner = (
        "<p class='banner' role='note'><strong>Synthetic data.</strong> These numbers come from a world of our own "
        "making. They show that the system works; they are not results on MovieLens.</p>"
        if data["synthetic"]
        else ""
    )
    sizes = leaderboard["methods"][0]["segments"]
    facts = {
        "Data set": data["label"],
        "Fingerprint (SHA-256 of the retriever)": data["fingerprint"],
        "T1, end of what candidates are made from": protocol["t1_utc"],
        "T2, end of training; the test is after it": protocol["t2_utc"],
        "Items in the catalogue": f"{leaderboard['n_catalogue']:,}",
        "Intervals": f"{level}, {boot['n_boot']:,} resamples of users, seed {boot['seed']}",
    }
    body = [
        f"<header><h1>How good are the recommendations?</h1><p class='data'>Data: {label}</p>{banner}</header>",
        f"<p class='finding'>{escape(finding(leaderboard))}</p>",
        image_html(pictures, "leaderboard", "Bars of NDCG@10 for each method with interval whiskers"),
        "<h2>The leaderboard</h2>",
        f"<p class='how'>Below each value its {level} interval. The full system is highlighted.</p>",
        _segment_html(leaderboard, "all"),
        *_differences_html(leaderboard),
        "<h2>Cohorts</h2>",
        f"<p class='how'>{LABELS[COHORT_METRIC]} of each method by group of events; below it every metric of every "
        "group. Groups overlap.</p>",
        image_html(pictures, "cohorts", "NDCG@10 by cohort with interval whiskers"),
        table_html(*cohort_cells(leaderboard)),
        *(
            f"<details><summary>{escape(name.capitalize())}: {escape(says)} <span>{sizes[name]['n_events']:,} events, "
            f"{sizes[name]['n_users']:,} users</span></summary>{_segment_html(leaderboard, name)}</details>"
            for name, says in SEGMENTS.items()
            if name != "all"
        ),
        "<h2>Beyond accuracy</h2>",
        f"<p class='how'>{escape(BEYOND_SAYS)}</p>",
        _beyond_accuracy_html(leaderboard),
        "<h2>Retrieval</h2>" if "retrieval" in pictures else "",
        image_html(pictures, "retrieval", "Recall at k from 10 to 500 for each retrieval method"),
        "<h2>Ranking</h2>" if "importance" in pictures else "",
        image_html(pictures, "importance", "Share of the ranker's gain for each feature"),
        "<h2>Probabilities</h2>" if "calibration" in pictures else "",
        image_html(
            pictures, "calibration", "Observed share against predicted probability, for watching and for liking"
        ),
        "<h2>How it was measured</h2>",
        f"<p>{escape(protocol['text'])}</p>",
        "<p>HR@10: share of events whose item is in the top 10. NDCG@10: the same, but a hit at rank r counts "
        "1/log2(r + 1). MRR: mean of 1/r over the list. Recall@100 and @500: share of events whose item is among that "
        "many. Coverage@10: share of the catalogue that was in anybody's top 10.</p>",
        pairs_html(facts),
    ]
    if about:
        body += ["<h2>Where the numbers come from</h2>", pairs_html(about)]
    if stages:
        rows = [[name, f"{seconds:,.1f}"] for name, seconds in stages.items()]
        rows.append(["total", f"{sum(stages.values()):,.1f}"])
        body += ["<h2>Time taken</h2>", table_html(["Stage", "Seconds"], rows, marked=len(rows) - 1)]
    return PAGE.format(label=label, style=STYLE, body="\n".join(part for part in body if part))


def _segment_html(leaderboard: Mapping[str, Any], segment: str) -> str:
    with_coverage = segment == "all"
    header = ["Method", *(LABELS[name] for name in METRICS), *([LABELS[COVERAGE]] if with_coverage else [])]
    rows, marked = [], None
    for number, method in enumerate(leaderboard["methods"]):
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
        marked = number if method["name"] == leaderboard["system"] else marked
    return table_html(header, rows, marked)


def _beyond_accuracy_html(leaderboard: Mapping[str, Any]) -> str:
    header, rows = beyond_accuracy_cells(leaderboard)
    marked = next((number for number, row in enumerate(rows) if row[0] == leaderboard["system"]), None)
    return table_html(header, rows, marked)


def _differences_html(leaderboard: Mapping[str, Any]) -> list[str]:
    if not leaderboard["differences"]:
        return []
    metrics = list(dict.fromkeys(d["metric"] for d in leaderboard["differences"]))
    found = {(d["other"], d["metric"]): difference_cells(leaderboard, d) for d in leaderboard["differences"]}
    rows = []
    for other in dict.fromkeys(d["other"] for d in leaderboard["differences"]):
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
    title = f"<h2>Is “{escape(str(leaderboard['system']))}” better?</h2>"
    return [title, f"<p class='how'>{how}</p>", table_html(header, rows)]


def table_html(
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


def pairs_html(pairs: Mapping[str, Any]) -> str:
    shown = (f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in pairs.items())
    return f"<dl>{''.join(shown)}</dl>"


def image_html(pictures: Mapping[str, bytes], name: str, says: str) -> str:
    if name not in pictures:
        return ""
    encoded = base64.b64encode(pictures[name]).decode("ascii")
    return f"<figure><img alt='{escape(says)}' src='data:image/png;base64,{encoded}'></figure>"


PAGE: Final = """<!doctype html>
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

STYLE: Final = """
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
