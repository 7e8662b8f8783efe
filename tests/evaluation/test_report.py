"""Tables to the character, the page, and what lies in the folder of a report."""

import base64
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from recsys.evaluation.cohorts import SEGMENTS
from recsys.evaluation.leaderboard import Leaderboard
from recsys.evaluation.report import report_html, write_report
from recsys.evaluation.tables import (
    beyond_accuracy_markdown,
    cohorts_markdown,
    finding,
    leaderboard_markdown,
    with_facts,
)
from tests.evaluation.leaderboards import NASTY, PNG, TWO, make

PICTURES = {name: name.encode() for name in ("leaderboard", "cohorts", "retrieval", "importance", "calibration")}


def rows_of(text: str) -> list[list[str]]:
    """The cells of every table, without the lines below the headers."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|:")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def nasty() -> Leaderboard:
    return make({NASTY: ("single", [3] * 8), NASTY + "2": ("system", [1] * 8)}, name=NASTY, synthetic=True)


def test_the_leaderboard_has_every_figure_and_the_differences() -> None:
    board = make({"popular": ("single", [3] * 8), "a|b": ("system", [1] * 8)})
    assert rows_of(leaderboard_markdown(board)) == [
        ["Method", "NDCG@10", "HR@10", "MRR", "Recall@100", "Recall@500", "Coverage@10"],
        ["popular", "0.5000 [0.5000, 0.5000]", "1.0000 [1.0000, 1.0000]", "0.3333", "1.0000", "1.0000", "0.5000"],
        [r"**a\|b**", *["**1.0000 [1.0000, 1.0000]**"] * 2, *["**1.0000**"] * 3, "**0.5000**"],
        ["Compared with", "Metric", "Difference", "95% interval", "Not better"],
        ["popular", "NDCG@10", "+0.5000", "+0.5000 to +0.5000", "< 0.005"],
        ["popular", "HR@10", "+0.0000", "+0.0000 to +0.0000", "1.000"],
    ]
    assert finding(board).replace("a|b", r"a\|b") in leaderboard_markdown(board)


def test_cohorts_side_by_side_then_one_by_one() -> None:
    text = cohorts_markdown(make({**TWO, "a|b": ("single", [0, 0, 3, 0, 0, 0, 0, 0])}))
    rows = rows_of(text)[: 1 + len(SEGMENTS)]
    assert rows[0] == ["Cohort", "Events", "Users", "popular", "full", "a\\|b"]
    assert [row[0] for row in rows[1:]] == list(SEGMENTS)
    assert ["cold", "0", "0", "n/a", "n/a", "n/a"] in rows
    assert ["history 21-100", "6", "6", "0.5000", "1.0000", "0.0833"] in rows
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(SEGMENTS)[1:]
    assert "Cold (the user had no history): 0 events of 0 users" in text


def test_beyond_accuracy_has_a_column_for_each_measure() -> None:
    assert rows_of(beyond_accuracy_markdown(make(TWO))) == [
        ["Method", "Coverage@10", "Novelty@10, bits", "Diversity@10", "Popularity@10, percentile", "Gini@10"],
        ["popular", "0.5", "0.5", "1.5", "2.5", "3.5"],
        ["**full**", "**0.5**", "**1.5**", "**n/a**", "**3.5**", "**4.5**"],
    ]


@pytest.mark.parametrize(
    ("ranks", "users", "text"),
    [
        ([1] * 8, 8, r"full reaches NDCG@10 1\.0000 .*retriever is popular at 0\.5000.*the system is ahead"),
        ([0] * 8, 8, r"difference -0\.5000: the system is behind"),
        ([1, 0, 3, 7, 1, 0, 3, 7], 8, "these data do not tell them apart"),
        ([1] * 8, 1, "one user, and an interval needs at least 5"),
        ([1] * 8, 3, "only 3 users, and an interval needs at least 5"),
    ],
)
def test_the_finding_says_what_the_interval_allows(ranks: list[int], users: int, text: str) -> None:
    methods = {"worse": ("single", [7] * 8), "popular": ("single", [3] * 8), "full": ("system", ranks)}
    assert re.search(text, finding(make(methods, users=users)))


def test_the_finding_without_a_system_or_without_events() -> None:
    assert finding(make({"a": ("single", [3] * 8), "b": ("single", [1] * 8)})).startswith("Over all test events, b ")
    assert finding(make(TWO, events=0)) == "There was no test event, so nothing was measured."


def test_one_user_makes_no_claim_in_any_table() -> None:
    board = make(TWO, users=1)
    assert "0.5000 [one user]" in leaderboard_markdown(board)
    assert [row[1:] for row in rows_of(leaderboard_markdown(board))[-2:]] == [
        ["NDCG@10", "+0.5000", "one user", "n/a"],
        ["HR@10", "+0.0000", "one user", "n/a"],
    ]


def test_the_last_line_says_how_it_was_measured() -> None:
    about = {"versions": "torch 2", "mood": "good", "code": "abc", "command": "recsys x"}
    line = "Measured: command: recsys x; code: abc; versions: torch 2."
    assert with_facts("# Table\n\n| a |\n", about) == f"# Table\n\n| a |\n\n{line}\n"
    assert with_facts("# Table\n", {"mood": "good"}) == "# Table\n"


class Page(HTMLParser):
    """Tags, their attributes, and the text outside of them."""

    def __init__(self, board: Leaderboard, about: dict[str, str], stages: dict[str, float]) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(report_html(board, PICTURES, about, stages))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("synthetic", [True, False])
def test_the_page_holds_facts_and_every_cohort_and_loads_nothing(synthetic: bool) -> None:
    page = Page(make(TWO, synthetic=synthetic), {"Machine": "2 cores"}, {"data": 1.25, "train": 1000.0})
    expected = ["Machine", "2 cores", "1,000.0", "1,001.2", "1970-01-01 00:16:39 UTC", "a" * 64, "Novelty@10, bits"]
    assert all(text in page.text for text in (*expected, "Return visit: first events after a pause", *SEGMENTS))
    assert [tag for tag, _ in page.tags].count("details") == len(SEGMENTS) - 1
    images = [str(attributes["src"]) for tag, attributes in page.tags if tag == "img"]
    assert images == [f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in PICTURES.values()]
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "a"}
    assert ("not results on MovieLens" in page.text.replace("\n", " ")) is synthetic


def test_a_nasty_name_stays_text() -> None:
    for text in (leaderboard_markdown(nasty()), cohorts_markdown(nasty()), beyond_accuracy_markdown(nasty())):
        assert "\x1b" not in text
        assert "<script" not in with_facts(text, {"command": NASTY})
    page = Page(nasty(), {NASTY: NASTY}, {NASTY: 1.0})
    assert all(tag != "script" for tag, _ in page.tags)
    assert len(page.text.split("$\\frac{1 | {0} %s")) > 8  # neither a format string nor a formula


def test_every_table_and_picture_is_written(tmp_path: Path) -> None:
    board = make(TWO)
    page = write_report(
        tmp_path / "out",
        board,
        compared=["full", "popular"],
        retrieval_ranks={"popular": np.arange(1, 9)},
        importance={"retriever_score": 3.0, "age_days": 1.0},
        calibration=PNG,
        about={"machine": "2 cores", "command": "recsys evaluate", "bundle": "b1"},
        stages={"data": 1.25, "train": 1000.0},
    )
    pictures = [f"{name}.png" for name in PICTURES]
    tables = ["beyond_accuracy.md", "cohorts.md", "leaderboard.md", "leaderboard.json", "report.html"]
    assert {p.name for p in page.parent.iterdir()} == {*pictures, *tables}
    text = page.read_text(encoding="utf-8")
    assert all(base64.b64encode((page.parent / name).read_bytes()).decode("ascii") in text for name in pictures)
    facts = "\nMeasured: command: recsys evaluate; bundle: b1; machine: 2 cores.\n"
    assert (page.parent / "leaderboard.md").read_text() == leaderboard_markdown(board) + facts


def test_importing_the_report_loads_no_matplotlib() -> None:
    code = "import sys, recsys.evaluation.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
