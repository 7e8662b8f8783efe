"""Tables as text: one `Table` with a Markdown form and a fixed-width form, and the tables of a leaderboard.

The page (`report_html`) shows the same `Table` objects. No name can move a cursor or break a column.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from recsys.evaluation.beyond_accuracy import LABELS as BEYOND_LABELS
from recsys.evaluation.bootstrap import MIN_USERS, Estimate, PairedDifference
from recsys.evaluation.cohorts import SEGMENTS
from recsys.evaluation.leaderboard import ALL, NDCG, Leaderboard
from recsys.evaluation.metrics import LABELS, METRICS

NOTHING: Final = "n/a"  # a segment without events, a measure of nothing shown, a claim that too few users allow
WITH_INTERVAL: Final = (NDCG, "hr@10")  # in Markdown and in the terminal; the page shows every interval
BUNDLE: Final = "bundle"
FACTS_OF_A_RUN: Final = ("command", BUNDLE, "code", "date (UTC)", "machine", "python", "versions")
BEYOND_NOTE: Final = (
    "Over the top ten of every test moment, each list once. Coverage: share of the catalogue that was shown to "
    "anybody. Novelty: mean of -log2 of the share of users who rated the item up to T2. Diversity: mean of 1 - cosine "
    "of genre vectors over the pairs of a list. Popularity: mean percentile, by raters up to T2, of the items shown. "
    "Gini: 0 where all items are shown alike, near 1 where few take all places."
)


@dataclass(frozen=True)
class Table:
    """Headers and first cells are names and may hold anything; other cells are figures. The row whose name is `marked`
    stands out."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: str | None = None

    def markdown(self) -> str:
        """A GitHub table, the marked row in bold."""
        lines = ["| " + " | ".join(map(escaped, self.header)) + " |", "|:--|" + "--:|" * (len(self.header) - 1)]
        for name, *cells in self.rows:
            row = [escaped(name), *cells]
            lines.append("| " + " | ".join(f"**{c}**" if name == self.marked else c for c in row) + " |")
        return "\n".join(lines) + "\n"

    def text(self) -> str:
        """Fixed width for a terminal, the first column to the left, `*` before the marked row."""
        names = [("* " if row[0] == self.marked else "  ") + _line(row[0]) for row in self.rows]
        table = [["  " + self.header[0], *self.header[1:]]]
        table += [[name, *row[1:]] for name, row in zip(names, self.rows, strict=True)]
        widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
        pads: list[Callable[[str, int], str]] = [str.ljust, *[str.rjust] * (len(widths) - 1)]
        lines = ["  ".join(p(c, w) for p, c, w in zip(pads, row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]]) + "\n"


def number(value: float | None, form: str = ".4f") -> str:
    return NOTHING if value is None else format(value, form)


def mean(value: Estimate | None) -> str:
    return number(None if value is None else value.mean)


def interval(value: Estimate, n_users: int, form: str = "+.4f") -> str:
    """From where to where, or why that is not known."""
    if value.low is None or value.high is None:
        return "one user" if n_users == 1 else f"only {n_users} users"
    return f"{value.low:{form}} to {value.high:{form}}"


def estimate(value: Estimate | None, n_users: int, form: str = ".4f") -> str:
    """The mean and, in brackets, its interval."""
    if value is None:
        return NOTHING
    return f"{value.mean:{form}} [{interval(value, n_users, form).replace(' to ', ', ')}]"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is; `<` and `&` as entities, since Markdown lets HTML through."""
    for mark in "\\`*[]|":
        text = text.replace(mark, "\\" + mark)
    return _line(text.replace("&", "&amp;").replace("<", "&lt;"))


def with_facts(text: str, about: Mapping[str, str]) -> str:
    """Markdown with a last line that says how it was measured; as it was where `about` has none of FACTS_OF_A_RUN."""
    facts = "; ".join(f"{name}: {about[name]}" for name in FACTS_OF_A_RUN if name in about)
    return f"{text.rstrip()}\n\n{escaped(f'Measured: {facts}.')}\n" if facts else text


def bundle_of(text: str) -> str | None:
    """Which bundle the last line of a Markdown file names; "" where it names none, None where it is no such line."""
    *_, last = ["", *text.splitlines()]
    if not last.startswith("Measured: "):
        return None
    named = re.search(rf"[:;] {BUNDLE}: ([^;]+?)(?:;|\.$)", last)
    return named[1] if named else ""


def segment_table(board: Leaderboard, segment: str = ALL, intervals: Sequence[str] = tuple(METRICS)) -> Table:
    """A row for each method: every metric, with its interval for those in `intervals`; coverage over all events."""
    rows = []
    for method in board.methods:
        found = method.segments[segment]
        cells = [
            estimate(value, found.n_users) if name in intervals else mean(value)
            for name, value in found.metrics.items()
        ]
        rows.append([method.name, *cells, *([number(method.coverage)] if segment == ALL else [])])
    header = ["Method", *(LABELS[name] for name in METRICS), *([LABELS["coverage@10"]] if segment == ALL else [])]
    return Table(header, rows, board.system)


def cohort_table(board: Leaderboard) -> Table:
    """A row for each segment: NDCG@10 of each method."""
    rows = []
    for segment in SEGMENTS:
        found = [method.segments[segment] for method in board.methods]
        means = [mean(f.metrics[NDCG]) for f in found]
        rows.append([segment, f"{found[0].n_events:,}", f"{found[0].n_users:,}", *means])
    return Table(["Cohort", "Events", "Users", *(method.name for method in board.methods)], rows)


def beyond_accuracy_table(board: Leaderboard) -> Table:
    rows = []
    for method in board.methods:
        beyond = method.beyond_accuracy
        values = (method.coverage, beyond.novelty, beyond.diversity, beyond.popularity, beyond.gini)
        rows.append([method.name, *(number(value, ".4g") for value in values)])
    return Table(["Method", LABELS["coverage@10"], *BEYOND_LABELS], rows, board.system)


def difference_table(board: Leaderboard) -> Table:
    """The full system minus each other method, a row for each metric."""
    level = f"{board.bootstrap.level:.0%} interval"
    rows = [
        [d.other, LABELS[d.metric], f"{d.value.mean:+.4f}", interval(d.value, d.value.n_users), _share(board, d.value)]
        for d in board.differences
    ]
    return Table(["Compared with", "Metric", "Difference", level, "Not better"], rows)


def _share(board: Leaderboard, difference: PairedDifference) -> str:
    """Of resamples in which the system was not better."""
    share = difference.fraction_not_positive
    return NOTHING if share is None else f"{share:.3f}" if share else f"< {1 / board.bootstrap.n_boot:.3g}"


def leaderboard_text(board: Leaderboard) -> str:
    """For a terminal: the leaderboard over all events, what it found, and the differences."""
    lines = [*caption(board), segment_table(board, intervals=WITH_INTERVAL).text().rstrip(), finding(board), ""]
    if board.differences:
        lines += [f"{board.system} minus each other method, on the same events:"]
        lines += [difference_table(board).text().rstrip()]
    else:
        lines += ["No differences: the leaderboard has no full system, nothing to compare it with, or no event."]
    return "\n".join(_line(line, keep_spaces=True) for line in "\n".join(lines).split("\n")) + "\n"


def leaderboard_markdown(board: Leaderboard, segment: str = ALL) -> str:
    """The events of one segment as a GitHub table; over all events it ends with the finding."""
    text = f"{escaped(' '.join(caption(board, segment)))}\n\n{segment_table(board, segment, WITH_INTERVAL).markdown()}"
    return f"{text}\n{escaped(finding(board))}\n" if segment == ALL else text


def cohorts_markdown(board: Leaderboard) -> str:
    """NDCG@10 of every method in every segment, then each segment but the first with all metrics."""
    note = escaped(f"{caption(board)[0]} {LABELS[NDCG]} of each method by cohort. Cohorts overlap.")
    parts = [f"# Cohorts\n\n{note}\n\n{cohort_table(board).markdown()}"]
    parts += [f"## {name}\n\n{leaderboard_markdown(board, name)}" for name in SEGMENTS if name != ALL]
    return "\n".join(parts)


def beyond_accuracy_markdown(board: Leaderboard) -> str:
    note = escaped(f"{caption(board)[0]} {BEYOND_NOTE}")
    return f"# Beyond accuracy\n\n{note}\n\n{beyond_accuracy_table(board).markdown()}"


def caption(board: Leaderboard, segment: str = ALL) -> list[str]:
    size = board.methods[0].segments[segment]
    head = "Test" if segment == ALL else f"{segment.capitalize()} ({SEGMENTS[segment]})"
    return [
        f"Data: {board.data.label}.",
        f"{head}: {size.n_events:,} events of {size.n_users:,} users after {board.protocol.t2_utc}. In brackets: "
        f"{board.bootstrap.level:.0%} bootstrap interval over users.",
    ]


def finding(board: Leaderboard) -> str:
    """What the leaderboard shows, in two or three sentences, by NDCG@10 over all events."""
    means = {method.name: cell for method in board.methods if (cell := method.overall[NDCG]) is not None}
    if not means:
        return "There was no test event, so nothing was measured."
    level = f"{board.bootstrap.level:.0%} interval"
    lead = board.system or max(means, key=lambda name: means[name].mean)
    n_users = board.methods[0].segments[ALL].n_users
    first = (
        f"Over all test events, {lead} reaches NDCG@10 {means[lead].mean:.4f} "
        f"({level} {interval(means[lead], n_users, '.4f')})."
    )
    best = next((name for name in board.best_singles(2) if name != lead), None)
    if board.system is None or best is None:
        return first
    d = board.difference(best)
    if d.low is None:
        verdict = f"{interval(d, d.n_users)}, and an interval needs at least {MIN_USERS}"
    elif d.above_zero or d.below_zero:
        side = "ahead" if d.above_zero else "behind"
        verdict = f"the system is {side} ({level} of the difference {interval(d, d.n_users)})"
    else:
        verdict = f"these data do not tell them apart ({level} {interval(d, d.n_users)})"
    return (
        f"{first} The best single retriever is {best} at {means[best].mean:.4f}; difference {d.mean:+.4f}: {verdict}."
    )


def _line(text: str, keep_spaces: bool = False) -> str:
    """One line without control characters: a name must not move a terminal's cursor."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if keep_spaces else " ".join(clean.split())
