"""Tables to the character, and the sentence of the finding."""

import re

import pytest

from recsys.evaluation.cohorts import SEGMENTS
from recsys.evaluation.tables import (
    beyond_accuracy_markdown,
    bundle_of,
    cohorts_markdown,
    differences_table,
    finding,
    markdown_table,
    text_table,
    with_facts,
)
from tests.evaluation.leaderboards import NASTY, TWO, make


def test_text_table_to_the_character() -> None:
    assert text_table(make(TWO)).splitlines() == [
        "Data: ml-1m.",
        "Test: 8 events of 4 users after 1970-01-01 00:16:39 UTC. In brackets: 95% bootstrap interval over users.",
        "  Method                   NDCG@10                    HR@10     MRR  Recall@100  Recall@500  Coverage@10",
        "-" * 104,
        "  popular  0.5000 [0.5000, 0.5000]  1.0000 [1.0000, 1.0000]  0.3333      1.0000      1.0000       0.5000",
        "* full     1.0000 [1.0000, 1.0000]  1.0000 [1.0000, 1.0000]  1.0000      1.0000      1.0000       0.5000",
        finding(make(TWO)),
    ]


def test_a_segment_without_events_says_so() -> None:
    table = markdown_table(make(TWO), "cold")
    assert "Cold (the user had no history): 0 events of 0 users" in table
    assert "| **full** | **n/a** | **n/a** | **n/a** | **n/a** | **n/a** |" in table
    assert "Coverage" not in table  # known over all events only


def test_markdown_table_marks_the_system_and_keeps_its_columns() -> None:
    leaderboard = make({"a|b": ("single", [3] * 8), "full": ("system", [1] * 8)})
    lines = markdown_table(leaderboard).splitlines()
    assert lines[2] == "| Method | NDCG@10 | HR@10 | MRR | Recall@100 | Recall@500 | Coverage@10 |"
    assert lines[4].startswith(r"| a\|b | 0.5000 [0.5000, 0.5000] |")
    assert lines[5].startswith("| **full** | **1.0000 [1.0000, 1.0000]** |")
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines[2:6]} == {8}


def test_cohorts_side_by_side_then_one_by_one() -> None:
    lines = cohorts_markdown(make({**TWO, "a|b": ("single", [0, 0, 3, 0, 0, 0, 0, 0])})).splitlines()
    table = lines[lines.index("| Cohort | Events | Users | popular | **full** | a\\|b |") :][: 2 + len(SEGMENTS)]
    assert table[1] == "|:--|--:|--:|--:|--:|--:|"
    assert table[2:] == [
        "| all | 8 | 4 | 0.5000 | **1.0000** | 0.0625 |",
        "| warm | 8 | 4 | 0.5000 | **1.0000** | 0.0625 |",
        "| cold | 0 | 0 | n/a | **n/a** | n/a |",
        "| liked | 8 | 4 | 0.5000 | **1.0000** | 0.0625 |",
        "| history 1-5 | 1 | 1 | 0.5000 | **1.0000** | 0.0000 |",
        "| history 6-20 | 1 | 1 | 0.5000 | **1.0000** | 0.0000 |",
        "| history 21-100 | 6 | 4 | 0.5000 | **1.0000** | 0.0833 |",
        "| history over 100 | 0 | 0 | n/a | **n/a** | n/a |",
        "| return visit | 1 | 1 | 0.5000 | **1.0000** | 0.5000 |",
        "| new user | 2 | 1 | 0.5000 | **1.0000** | 0.0000 |",
        "| new item | 0 | 0 | n/a | **n/a** | n/a |",
        "| rare item | 2 | 2 | 0.5000 | **1.0000** | 0.0000 |",
    ]
    assert [line[3:] for line in lines if line.startswith("## ")] == list(SEGMENTS)[1:]
    assert sum(line.startswith("| **full** |") for line in lines) == len(SEGMENTS) - 1


def test_beyond_accuracy_to_the_character() -> None:
    lines = beyond_accuracy_markdown(make(TWO)).splitlines()
    assert lines[4:] == [
        "| Method | Coverage@10 | Novelty@10, bits | Diversity@10 | Popularity@10, percentile | Gini@10 |",
        "|:--|--:|--:|--:|--:|--:|",
        "| popular | 0.5 | 0.5 | 1.5 | 2.5 | 3.5 |",
        "| **full** | **0.5** | **1.5** | **n/a** | **3.5** | **4.5** |",
    ]


def test_a_nasty_name_stays_text() -> None:
    leaderboard = make({NASTY: ("single", [3] * 8), NASTY + "2": ("system", [1] * 8)}, name=NASTY, synthetic=True)
    for table in (text_table(leaderboard), differences_table(leaderboard)):
        assert "\x1b" not in table
    for table in (markdown_table(leaderboard), cohorts_markdown(leaderboard), beyond_accuracy_markdown(leaderboard)):
        assert "<script" not in table
        assert "\x1b" not in table


def test_differences_table() -> None:
    lines = differences_table(make(TWO)).splitlines()
    assert lines[0] == "full minus each other method, the same events, ml-1m"
    assert lines[3].split() == ["popular", "NDCG@10", "+0.5000", "+0.5000", "to", "+0.5000", "<", "0.005"]
    assert lines[4].split() == ["popular", "HR@10", "+0.0000", "+0.0000", "to", "+0.0000", "1.000"]
    assert differences_table(make({"a": ("single", [1] * 8)})).startswith("No differences")


@pytest.mark.parametrize(
    ("ranks", "users", "says"),
    [
        (
            [1] * 8,
            4,
            r"full reaches NDCG@10 1\.0000 .*best single retriever is popular at 0\.5000.*the system is ahead",
        ),
        ([0] * 8, 4, r"difference -0\.5000: the system is behind"),
        ([1, 0, 3, 7, 1, 0, 3, 7], 4, "these data do not tell them apart"),
        ([1] * 8, 1, "it rests on one user, so its interval says nothing"),
    ],
)
def test_the_finding_says_what_the_interval_allows(ranks: list[int], users: int, says: str) -> None:
    leaderboard = make(
        {"worse": ("single", [7] * 8), "popular": ("single", [3] * 8), "full": ("system", ranks)}, users=users
    )
    assert re.search(says, finding(leaderboard))


def test_the_finding_without_a_system_or_without_events() -> None:
    assert finding(make({"a": ("single", [3] * 8), "b": ("single", [1] * 8)})).startswith("Over all test events, b ")
    leaderboard = make(TWO)
    for method in leaderboard["methods"]:
        method["segments"]["all"]["metrics"] = dict.fromkeys(method["segments"]["all"]["metrics"])
    assert finding(leaderboard) == "There was no test event, so nothing was measured."


def test_one_user_is_flagged_in_every_table() -> None:
    leaderboard = make(TWO, users=1)
    assert "0.5000 [one user]" in text_table(leaderboard)
    assert "one user" in differences_table(leaderboard)


def test_the_last_line_says_how_it_was_measured() -> None:
    about = {"versions": "torch 2", "date (UTC)": "2020-01-01", "mood": "good", "code": "abc", "command": "recsys x"}
    text = with_facts("# Table\n\n| a |\n", about)
    line = "Measured: command: recsys x; code: abc; date (UTC): 2020-01-01; versions: torch 2."
    assert text == f"# Table\n\n| a |\n\n{line}\n"
    assert with_facts("# Table\n", {"mood": "good"}) == "# Table\n"
    assert "<script" not in with_facts("", {"command": NASTY})


@pytest.mark.parametrize(
    ("about", "bundle"),
    [
        ({"bundle": "b.1_x-2"}, "b.1_x-2"),
        ({"command": "c", "bundle": "b1", "code": "d"}, "b1"),
        ({"command": "c", "code": "d"}, ""),
        ({}, None),
    ],
)
def test_the_bundle_is_read_from_the_last_line(about: dict[str, str], bundle: str | None) -> None:
    assert bundle_of(with_facts("# Table\n", about)) == bundle
    assert bundle_of(with_facts("# Table\n", about) + "\nMore.\n") is None
    assert bundle_of("") is None
