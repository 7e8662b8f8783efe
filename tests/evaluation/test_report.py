"""What people read: tables to the character, the sentence of the finding, an escaped page, pictures on disk."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys.data.tables import Source
from recsys.evaluation.ladder import MethodRanks, build_ladder
from recsys.evaluation.plots import importance_png, ladder_png, retrieval_png
from recsys.evaluation.report import differences_table, finding, markdown_table, text_table, write_report

NASTY = """<script>alert("x")</script> & 'q' $\\frac{1 | {0} %s \x1b[31m 日本"""
PNG = b"\x89PNG\r\n\x1a\n"


def make(
    ranks: dict[str, tuple[str, list[int]]], *, name: str = "ml-1m", synthetic: bool = False, users: int = 4
) -> dict[str, Any]:
    """A ladder of eight events spread over `users` users, none of them cold."""
    n = 8
    frame = pd.DataFrame(
        {
            "user_id": np.arange(n) % users,
            "timestamp": np.arange(n) + 1000,
            "item_id": np.arange(n),
            "rating": np.full(n, 4, dtype=np.float32),
            "cold": False,
        }
    )
    kinds: dict[str, Any] = {"single": "single", "system": "system"}
    methods = [
        MethodRanks(title, frame.assign(rank=np.array(values)), np.arange(5), 10, kinds[kind], f"about {title}")
        for title, (kind, values) in ranks.items()
    ]
    return build_ladder(methods, Source(name, synthetic, "ml-1m", "a" * 64, 9, 10, 9), 500, 999, n_boot=200)


TWO = {"popular": ("single", [3] * 8), "full": ("system", [1] * 8)}


class Page(HTMLParser):
    """Tags, their attributes, and the text outside of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


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
    table = text_table(make(TWO), "cold")
    assert "0 cold events of 0 users" in table
    assert "* full         n/a    n/a  n/a         n/a         n/a" in table
    assert "Coverage" not in table  # known over all events only
    assert "| popular | n/a |" in markdown_table(make(TWO), "cold")


def test_markdown_table_marks_the_system_and_keeps_its_columns() -> None:
    ladder = make({"a|b": ("single", [3] * 8), "full": ("system", [1] * 8)})
    lines = markdown_table(ladder).splitlines()
    assert lines[2] == "| Method | NDCG@10 | HR@10 | MRR | Recall@100 | Recall@500 | Coverage@10 |"
    assert lines[4].startswith(r"| a\|b | 0.5000 [0.5000, 0.5000] |")
    assert lines[5].startswith("| **full** | **1.0000 [1.0000, 1.0000]** |")
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines[2:6]} == {8}


def test_differences_table() -> None:
    lines = differences_table(make(TWO)).splitlines()
    assert lines[0] == "full minus each other method, the same events, ml-1m"
    assert lines[3].split() == ["popular", "NDCG@10", "+0.5000", "+0.5000", "to", "+0.5000", "<", "0.005"]
    assert lines[4].split() == ["popular", "HR@10", "+0.0000", "+0.0000", "to", "+0.0000", "1.000"]
    assert differences_table(make({"a": ("single", [1] * 8)})).startswith("No differences")


@pytest.mark.parametrize(
    ("ranks", "users", "says"),
    [
        ([1] * 8, 4, r"full reaches NDCG@10 1\.0000 .*best single source is popular at 0\.5000.*the system is ahead"),
        ([0] * 8, 4, r"difference -0\.5000: the system is behind"),
        ([1, 0, 3, 7, 1, 0, 3, 7], 4, "these data do not tell them apart"),
        ([1] * 8, 1, "it rests on one user, so its interval says nothing"),
    ],
)
def test_the_finding_says_what_the_interval_allows(ranks: list[int], users: int, says: str) -> None:
    ladder = make(
        {"worse": ("single", [7] * 8), "popular": ("single", [3] * 8), "full": ("system", ranks)}, users=users
    )
    assert re.search(says, finding(ladder))


def test_the_finding_without_a_system_or_without_events() -> None:
    assert finding(make({"a": ("single", [3] * 8), "b": ("single", [1] * 8)})).startswith("Over all test events, b ")
    ladder = make(TWO)
    for method in ladder["methods"]:
        method["segments"]["all"]["metrics"] = dict.fromkeys(method["segments"]["all"]["metrics"])
    assert finding(ladder) == "There was no test event, so nothing was measured."


def test_one_user_is_flagged_in_every_table() -> None:
    ladder = make(TWO, users=1)
    assert "0.5000 [one user]" in text_table(ladder)
    assert "one user" in differences_table(ladder)


def test_report_writes_the_page_and_every_picture(tmp_path: Path) -> None:
    page = write_report(
        tmp_path / "out",
        make(TWO),
        retrieval_ranks={"popular": np.arange(1, 9)},
        importance={"source_score": 3.0, "age_days": 1.0},
        about={"Machine": "2 cores", "Command": "recsys evaluate"},
        stages={"data": 1.25, "train": 1000.0},
    )
    assert page == tmp_path / "out" / "report.html"
    assert sorted(p.name for p in page.parent.iterdir()) == [
        "importance.png",
        "ladder.png",
        "report.html",
        "retrieval.png",
    ]
    for picture in page.parent.glob("*.png"):
        assert picture.read_bytes().startswith(PNG)
        width, height = np.frombuffer(picture.read_bytes()[16:24], dtype=">u4")
        assert (width, height) > (1000, 300)
    read = Page(page.read_text(encoding="utf-8"))
    for expected in (
        "Machine",
        "2 cores",
        "recsys evaluate",
        "1,000.0",
        "1,001.2",
        "1970-01-01 00:16:39 UTC",
        "a" * 64,
    ):
        assert expected in read.text
    images = [str(attributes["src"]) for tag, attributes in read.tags if tag == "img"]
    assert len(images) == 3
    assert all(src.startswith("data:image/png;base64,iVBOR") for src in images)


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    read = Page(write_report(tmp_path, make(TWO)).read_text(encoding="utf-8"))
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "a"}
    assert all(str(v).startswith("data:") for _, attributes in read.tags for k, v in attributes.items() if k == "src")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ladder.png", "report.html"]  # no data, no picture


@pytest.mark.parametrize("synthetic", [True, False])
def test_the_banner_is_there_for_synthetic_data_only(tmp_path: Path, synthetic: bool) -> None:
    read = Page(write_report(tmp_path, make(TWO, synthetic=synthetic)).read_text(encoding="utf-8"))
    assert any(attributes.get("class") == "banner" for _, attributes in read.tags) is synthetic
    assert ("not results on MovieLens" in read.text) is synthetic


def test_a_nasty_name_stays_text_everywhere(tmp_path: Path) -> None:
    ladder = make({NASTY: ("single", [3] * 8), NASTY + "2": ("system", [1] * 8)}, name=NASTY, synthetic=True)
    page = write_report(
        tmp_path, ladder, retrieval_ranks={NASTY: np.array([1, 0])}, importance={NASTY: 1.0}, about={NASTY: NASTY},
        stages={NASTY: 1.0},
    )  # fmt: skip
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    read = Page(text)
    assert all(tag != "script" for tag, _ in read.tags)
    assert read.text.count('<script>alert("x")</script>') >= 8
    assert len(read.text.split("$\\frac{1 | {0} %s")) > 8  # neither a format string nor a formula
    for table in (text_table(ladder), differences_table(ladder)):
        assert "\x1b" not in table
    assert "<script" not in markdown_table(ladder)


def test_pictures_are_the_same_bytes_each_time() -> None:
    ladder = make(TWO)
    assert ladder_png(ladder) == ladder_png(ladder)
    assert ladder_png(ladder, "hr@10", "liked") != ladder_png(ladder)
    assert ladder_png(ladder, segment="cold").startswith(PNG)  # "no events" in place of bars


def test_synthetic_data_change_the_pictures() -> None:
    plain, synthetic = make(TWO)["data"], make(TWO, synthetic=True)["data"]
    ranks = {"a": np.array([1, 20, 0]), "b": np.array([0, 0, 0])}
    assert retrieval_png(ranks, plain) != retrieval_png(ranks, synthetic)
    assert importance_png({"f": 0.0}, plain) != importance_png({"f": 0.0}, synthetic)


def test_more_lines_and_features_than_colours_and_rows() -> None:
    data = make(TWO)["data"]
    assert retrieval_png({f"m{i}": np.array([i + 1]) for i in range(16)}, data).startswith(PNG)
    assert importance_png({f"f{i}": float(i) for i in range(40)}, data, top=3).startswith(PNG)


def test_pictures_of_nothing_are_refused() -> None:
    data = make(TWO)["data"]
    with pytest.raises(ValueError, match="at least one method"):
        retrieval_png({}, data)
    with pytest.raises(ValueError, match="at least one event"):
        retrieval_png({"a": np.array([], dtype=np.int64)}, data)
    for gains in ({}, {"a": -1.0}, {"a": float("nan")}):
        with pytest.raises(ValueError, match="Feature gains"):
            importance_png(gains, data)
    with pytest.raises(ValueError, match="`top` at least 1"):
        importance_png({"a": 1.0}, data, top=0)


def test_importing_the_report_loads_no_matplotlib() -> None:
    code = "import sys, recsys.evaluation.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
