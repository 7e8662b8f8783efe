"""Tables of the leaderboard as text: for the terminal, for Markdown, the sentence that says what was found, and the
line that says how it was measured.

Stage: evaluate. In: the dict of `leaderboard`. Out: strings, one line a row, in which no name can move a cursor or
break a column. Absent: files (`report`), the page (`report_html`), measuring.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from recsys.evaluation.beyond_accuracy import BEYOND_ACCURACY
from recsys.evaluation.cohorts import SEGMENTS
from recsys.evaluation.leaderboard import best_singles
from recsys.evaluation.metrics import LABELS, METRICS

NOTHING: Final = "n/a"  # a segment without events, a measure of nothing shown
COVERAGE: Final = "coverage@10"
COHORT_METRIC: Final = "ndcg@10"  # what cohorts are compared by at a glance
WITH_INTERVAL: Final = ("ndcg@10", "hr@10")  # in the two narrow tables; the page shows every interval
BUNDLE: Final = "bundle"
FACTS_OF_A_RUN: Final = ("command", BUNDLE, "code", "date (UTC)", "machine", "python", "versions")
BEYOND_SAYS: Final = (
    "Over the top ten of every test moment, each list once. Coverage: share of the catalogue that was shown to "
    "anybody. Novelty: mean of -log2 of the share of users who rated the item up to T2. Diversity: mean of 1 - cosine "
    "of genre vectors over the pairs of a list. Popularity: mean percentile, by raters up to T2, of the items shown. "
    "Gini: 0 where all items are shown alike, near 1 where few take all places."
)


def text_table(leaderboard: Mapping[str, Any]) -> str:
    """The leaderboard over all events in fixed width for a terminal, methods in order, `*` before the full system."""
    header, rows = _cells(leaderboard, "all")
    starred = [("* " if row[0] == leaderboard["system"] else "  ") + _line(row[0]) for row in rows]
    table = [["  " + header[0], *header[1:]], *([name, *row[1:]] for name, row in zip(starred, rows, strict=True))]
    parts = [*_caption(leaderboard, "all"), *_fixed_width(table), finding(leaderboard)]
    return "\n".join(_line(part, keep_spaces=True) for part in parts) + "\n"


def markdown_table(leaderboard: Mapping[str, Any], segment: str = "all") -> str:
    """The same as a GitHub table, the full system in bold, so that a README can carry it.

    `segment` is one of SEGMENTS; the table over all events ends with `finding`.
    """
    header, rows = _cells(leaderboard, segment)
    tail = ["", _markdown(finding(leaderboard))] if segment == "all" else []
    lines = _markdown_lines(header, rows, leaderboard["system"])
    return "\n".join([_markdown(" ".join(_caption(leaderboard, segment))), "", *lines, *tail]) + "\n"


def cohorts_markdown(leaderboard: Mapping[str, Any]) -> str:
    """NDCG@10 of every method in every segment, then each segment but the first with all metrics and intervals."""
    header, rows = cohort_cells(leaderboard)
    shown = [[_markdown(name) for name in header], *rows]
    bold = [method["name"] == leaderboard["system"] for method in leaderboard["methods"]]
    for row in shown:
        row[3:] = [f"**{cell}**" if marked else cell for cell, marked in zip(row[3:], bold, strict=True)]
    lines = [
        "# Cohorts",
        "",
        _markdown(
            f"{_caption(leaderboard, 'all')[0]} {LABELS[COHORT_METRIC]} of each method by cohort. Cohorts overlap."
        ),
        "",
        *_markdown_lines(shown[0], shown[1:], None),
    ]
    for name in SEGMENTS:
        if name != "all":
            lines += ["", f"## {name}", "", markdown_table(leaderboard, name).rstrip()]
    return "\n".join(lines) + "\n"


def beyond_accuracy_markdown(leaderboard: Mapping[str, Any]) -> str:
    """What the top tens of each method are besides right or wrong, the full system in bold."""
    header, rows = beyond_accuracy_cells(leaderboard)
    lines = ["# Beyond accuracy", "", _markdown(f"{_caption(leaderboard, 'all')[0]} {BEYOND_SAYS}"), ""]
    return "\n".join([*lines, *_markdown_lines(header, rows, leaderboard["system"])]) + "\n"


def with_facts(text: str, about: Mapping[str, Any]) -> str:
    """Markdown with a last line that says how it was measured; as it was where `about` has none of FACTS_OF_A_RUN."""
    facts = "; ".join(f"{name}: {about[name]}" for name in FACTS_OF_A_RUN if name in about)
    return f"{text.rstrip()}\n\n{_markdown(f'Measured: {facts}.')}\n" if facts else text


def bundle_of(text: str) -> str | None:
    """Which bundle the last line of a Markdown file names; "" where it names none, None where it is no such line."""
    *_, last = ["", *text.splitlines()]
    if not last.startswith("Measured: "):
        return None
    named = re.search(rf"[:;] {BUNDLE}: ([^;]+?)(?:;|\.$)", last)
    return named[1] if named else ""


def differences_table(leaderboard: Mapping[str, Any]) -> str:
    """The full system minus each other method, in fixed width; one line saying so where there is none."""
    if not leaderboard["differences"]:
        return "No differences: the leaderboard has no full system, nothing to compare it with, or no event.\n"
    level = f"{leaderboard['bootstrap']['level']:.0%} interval"
    table = [["  minus", "metric", "difference", level, "resamples <= 0"]]
    table += [
        ["  " + _line(d["other"]), LABELS[d["metric"]], *difference_cells(leaderboard, d)]
        for d in leaderboard["differences"]
    ]
    title = (
        f"{_line(str(leaderboard['system']))} minus each other method, the same events, {leaderboard['data']['label']}"
    )
    return "\n".join([_line(title), *_fixed_width(table)]) + "\n"


def finding(leaderboard: Mapping[str, Any]) -> str:
    """What the leaderboard found, in two or three sentences, by NDCG@10 over all events."""
    means = {
        m["name"]: cell
        for m in leaderboard["methods"]
        if (cell := m["segments"]["all"]["metrics"]["ndcg@10"]) is not None
    }
    if not means:
        return "There was no test event, so nothing was measured."
    level = f"{leaderboard['bootstrap']['level']:.0%} interval"
    system = leaderboard["system"]
    lead = system or max(means, key=lambda name: means[name]["mean"])
    cell = means[lead]
    interval = f"{level} {cell['low']:.4f} to {cell['high']:.4f}"
    said = f"Over all test events, {lead} reaches NDCG@10 {cell['mean']:.4f} ({interval})."
    best = next((name for name in best_singles(leaderboard, 2) if name != lead), None)
    if system is None or best is None:
        return said
    d = next(d for d in leaderboard["differences"] if d["other"] == best and d["metric"] == "ndcg@10")
    if d["degenerate"]:
        verdict = "it rests on one user, so its interval says nothing"
    elif d["low"] > 0:
        verdict = f"the system is ahead ({level} of the difference {d['low']:+.4f} to {d['high']:+.4f})"
    elif d["high"] < 0:
        verdict = f"the system is behind ({level} of the difference {d['low']:+.4f} to {d['high']:+.4f})"
    else:
        verdict = f"these data do not tell them apart ({level} {d['low']:+.4f} to {d['high']:+.4f})"
    best_line = (
        f"The best single retriever is {best} at {means[best]['mean']:.4f}; difference {d['mean']:+.4f}: {verdict}."
    )
    return f"{said} {best_line}"


def _cells(leaderboard: Mapping[str, Any], segment: str) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each method: raw name, metrics (intervals for WITH_INTERVAL), coverage."""
    header = ["Method", *(LABELS[name] for name in METRICS)]
    rows = []
    for method in leaderboard["methods"]:
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
        for row, method in zip(rows, leaderboard["methods"], strict=True):
            row.append(f"{method[COVERAGE]:.4f}")
    return header, rows


def cohort_cells(leaderboard: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each segment: name, events, users, NDCG@10 of each method."""
    rows = []
    for segment in SEGMENTS:
        found = [method["segments"][segment] for method in leaderboard["methods"]]
        cells = [f["metrics"][COHORT_METRIC] for f in found]
        means = [NOTHING if cell is None else f"{cell['mean']:.4f}" for cell in cells]
        rows.append([segment, f"{found[0]['n_events']:,}", f"{found[0]['n_users']:,}", *means])
    return ["Cohort", "Events", "Users", *(str(method["name"]) for method in leaderboard["methods"])], rows


def beyond_accuracy_cells(leaderboard: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each method: raw name, coverage, BEYOND_ACCURACY."""
    rows = []
    for method in leaderboard["methods"]:
        values = [method[COVERAGE], *(method["beyond_accuracy"][name] for name in BEYOND_ACCURACY)]
        shown = [NOTHING if value is None else f"{value:.4g}" for value in values]
        rows.append([str(method["name"]), *shown])
    return ["Method", LABELS[COVERAGE], *BEYOND_ACCURACY.values()], rows


def _caption(leaderboard: Mapping[str, Any], segment: str) -> list[str]:
    size, protocol, boot = (
        leaderboard["methods"][0]["segments"][segment],
        leaderboard["protocol"],
        leaderboard["bootstrap"],
    )
    head = "Test" if segment == "all" else f"{segment.capitalize()} ({SEGMENTS[segment]})"
    return [
        f"Data: {leaderboard['data']['label']}.",
        f"{head}: {size['n_events']:,} events of {size['n_users']:,} users after {protocol['t2_utc']}. In brackets: "
        f"{boot['level']:.0%} bootstrap interval over users.",
    ]


def difference_cells(leaderboard: Mapping[str, Any], d: Mapping[str, Any]) -> list[str]:
    """Mean, interval, and share of resamples in which the system was not better, of one of `differences`."""
    share, least = d["fraction_not_positive"], 1 / leaderboard["bootstrap"]["n_boot"]
    interval = "one user" if d["degenerate"] else f"{d['low']:+.4f} to {d['high']:+.4f}"
    return [f"{d['mean']:+.4f}", interval, f"{share:.3f}" if share else f"< {least:.3g}"]


def _markdown_lines(header: Sequence[str], rows: Sequence[Sequence[str]], marked: str | None) -> list[str]:
    """A table; first cells are raw names, the row of the name `marked` is bold."""
    lines = ["| " + " | ".join(header) + " |", "|:--|" + "--:|" * (len(header) - 1)]
    for name, *cells in rows:
        shown = [_markdown(name), *cells]
        lines.append("| " + " | ".join(f"**{c}**" if name == marked else c for c in shown) + " |")
    return lines


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
