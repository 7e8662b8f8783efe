"""The skew check as people read it: lines of text, and one page with pictures.

Stage: monitoring. In: the dict that `skew.run` returns. Out: text, HTML. Absent: measuring, files; every string from
outside is escaped.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from recsys.evaluation import plots
from recsys.evaluation.report_html import Section, sections_html
from recsys.evaluation.tables import Table
from recsys.monitoring.comparison import FACTS

LISTED: Final = 25
HISTOGRAMS: Final = 6


def headline(result: Mapping[str, Any]) -> str:
    n, wrong = result["compared"], result["mismatching"]
    if not n:
        return f"None of {result['answers']:,} logged answers could be compared."
    if not wrong:
        return f"{n:,} answers with {result['values']:,} feature values equal their recomputation to the bit."
    return f"{wrong:,} of {n:,} answers ({result['share']:.2%}) differ from their recomputation."


def text(result: Mapping[str, Any]) -> str:
    """What `recsys skew` prints."""
    lines = [f"Data: {result['data']['label']}", headline(result), result["verdict"]]
    if result["left_out"]:
        lines += ["", "Not compared:", *(f"{n:>8,}  {why}" for why, n in result["left_out"].items())]
    if result["unranked"]:
        lines += ["", f"Compared without features: {_unranked(result)}"]
    behind = {int(days): n for days, n in result["days_behind"].items() if int(days) > 0}
    if behind:
        lines += ["", f"Item statistics were older than the log allowed in {sum(behind.values()):,} answers,"]
        lines += [f"  by up to {max(behind):,} days; `recsys train --only features` makes them anew."]
    for title, rows in (("Facts that differ", result["facts"]), ("Features that differ", result["features"])):
        if rows:
            lines += ["", f"{title}:", f"{'answers':>8} {'share':>8} {'largest':>10}  name"]
            lines += [
                f"{row['answers']:>8,} {row['share']:>8.2%} {row['largest']:>10.3g}  {_named(row)}" for row in rows
            ]
            lines += [f"  first seen in {rows[0]['example'][:200]}"]
    if result["findings"]:
        lines += ["", "Hypotheses, by the share of the mismatching answers that agree if it is so:"]
        lines += [f"{f['share']:>8.1%}  {f['says']}" for f in result["findings"][:LISTED]]
    lines += ["", _drift_line(result)]
    if result["shifted"]:
        lines += [f"{'PSI':>8} {'KS':>8}  feature"]
        lines += [
            f"{d['psi']:>8.3f} {_number(d['ks']):>8}  {d['name']}"
            for d in result["drift"]
            if d["name"] in result["shifted"]
        ]
    return "\n".join([*lines, "", f"{result['answers']:,} answers in {result['seconds']:.1f} s."]) + "\n"


def page(result: Mapping[str, Any]) -> str:
    """One HTML page that loads nothing."""
    data = result["data"]
    header = ["What", "Answers", "Share", "Largest difference", "First seen"]
    guesses = [[f["says"], f"{f['share']:.1%}"] for f in result["findings"][:LISTED]]
    features, drift = result["features"], result["drift"]
    pairs = {
        **result["about"],
        "answers": f"{result['answers']:,}",
        "seconds": f"{result['seconds']:.1f}",
        "bundles": ", ".join(f"{name}: {n:,}" for name, n in result["bundles"].items()),
        "days by which item statistics were behind": ", ".join(
            f"{days}: {n:,} answers" for days, n in result["days_behind"].items()
        ),
    }
    unranked = f"Compared without features: {_unranked(result)}" if result["unranked"] else ""
    sections = [
        Section("Hypotheses", table=Table(["If it is so", "Mismatching answers that agree"], guesses)),
        Section("Facts that differ", table=Table(header, [_difference(row) for row in result["facts"]])),
        Section(
            "Features that differ",
            picture=mismatches_png(features, data) if features else None,
            table=Table(header, [_difference(row) for row in features]),
        ),
        Section(
            "Not compared",
            unranked,
            table=Table(["Why", "Answers"], [[why, f"{n:,}"] for why, n in result["left_out"].items()]),
        ),
        Section("Distributions", _drift_line(result), psi_png(drift, result["threshold_psi"], data) if drift else None),
        Section(
            "Features",
            picture=histograms_png(drift[:HISTOGRAMS], data) if drift else None,
            table=Table(["Feature", "PSI", "KS", "Missing then", "Missing now"], [_drift_cells(d) for d in drift]),
        ),
        Section("Where the numbers come from", pairs=pairs),
    ]
    finding = f"{headline(result)} {result['verdict']}"
    return sections_html("Is what was served what should have been served?", data["label"], finding, sections)


def mismatches_png(rows: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> bytes:
    """Bars of the share of answers in which a feature differs, the LISTED largest."""
    shown = rows[:LISTED]
    return _bars(
        [(row["name"], row["share"]) for row in shown],
        "Features that differ from their recomputation",
        "Share of the compared answers in which any shown item's value differs.",
        data,
        percent=True,
    )


def psi_png(drift: Sequence[Mapping[str, Any]], threshold: float, data: Mapping[str, Any]) -> bytes:
    """Bars of PSI, the LISTED largest; a line where a shift begins."""
    note = f"Answers today against the ranker's training contexts. Above {threshold:g}, the line, is called a shift."
    return _bars(
        [(d["name"], d["psi"]) for d in drift[:LISTED]], "How far features have moved", note, data, line=threshold
    )


def histograms_png(drift: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> bytes:
    """For each feature, the share of each bin then and now; the last bin is that of missing values."""
    from matplotlib.figure import Figure

    rows = (len(drift) + 1) // 2
    figure = Figure(figsize=(8.4, 1.2 + 1.9 * rows), dpi=plots.DPI, facecolor="white")
    grid = figure.subplots(rows, 2, squeeze=False)
    for axes, d in zip(grid.flat, drift, strict=False):
        bins = range(len(d["expected"]))
        axes.bar([b - 0.2 for b in bins], d["expected"], width=0.4, color=plots.SINGLE, label="training")
        axes.bar([b + 0.2 for b in bins], d["actual"], width=0.4, color=plots.SYSTEM, label="served")
        axes.set_title(f"{d['name']}  PSI {d['psi']:.2f}", fontsize=9, color=plots.INK, loc="left")
        axes.set_xticks(list(bins), [*[str(b + 1) for b in bins][:-1], "NaN"])
        axes.tick_params(labelsize=7, colors=plots.MUTED, length=0)
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    for axes in list(grid.flat)[len(drift) :]:
        axes.set_axis_off()
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=2, frameon=False, fontsize=9)
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.07, right=0.985, bottom=0.55 / height, top=1 - 0.95 / height, hspace=0.6, wspace=0.16)
    note = "Share of values in each quantile bin of the training sample."
    title = "The features that moved most"
    return plots.finished(figure, title, data["label"], note, synthetic=data["synthetic"])


def _bars(
    values: Sequence[tuple[str, float]],
    title: str,
    note: str,
    data: Mapping[str, Any],
    *,
    percent: bool = False,
    line: float | None = None,
) -> bytes:
    names = [name for name, _ in values]
    figure, axes = plots.new_figure(height=1.6 + 0.27 * len(values), labels=names)
    top = max([value for _, value in values] + [line or 0.0, 1e-9])
    for y, (_, value) in enumerate(values):
        colour = plots.WARNING if line is not None and value > line else plots.SYSTEM
        axes.barh(y, value, height=0.66, color=colour)
        shown = f"{value:.1%}" if percent else f"{value:.3f}"
        axes.text(value + top * 0.01, y, shown, va="center", color=plots.INK, fontsize=8.5)
    if line is not None:
        axes.axvline(line, color=plots.MUTED, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, top * 1.12)
    axes.grid(axis="x", color=plots.GRID)
    return plots.finished(figure, title, data["label"], note, synthetic=data["synthetic"])


def _unranked(result: Mapping[str, Any]) -> str:
    return f"{result['unranked']:,} answers that say they were made without ranking."


def _drift_line(result: Mapping[str, Any]) -> str:
    if not result["drift"]:
        return f"Distributions were not compared: {result['no_drift_because']}."
    n, moved = len(result["drift"]), len(result["shifted"])
    return (
        f"{moved} of {n} features have a PSI above {result['threshold_psi']:g} against what the ranker would have "
        "shown in the contexts that it learnt from. Other users and another time move them too: this warns."
    )


def _difference(row: Mapping[str, Any]) -> list[str]:
    largest = f"{row['largest']:.3g}" if row["largest"] else ""
    return [_named(row), f"{row['answers']:,}", f"{row['share']:.2%}", largest, row["example"][:120]]


def _drift_cells(d: Mapping[str, Any]) -> list[str]:
    return [d["name"], f"{d['psi']:.3f}", _number(d["ks"]), *(f"{missing:.1%}" for missing in d["missing"])]


def _named(row: Mapping[str, Any]) -> str:
    """Facts are said in words, features by their names."""
    return FACTS.get(row["name"], row["name"])


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
