"""The page: embedded pictures, escaped names, nothing loaded, nothing run."""

from base64 import b64encode
from html.parser import HTMLParser
from typing import Any

import pytest

from recsys.evaluation.beyond_accuracy import BEYOND_ACCURACY
from recsys.evaluation.cohorts import SEGMENTS
from recsys.evaluation.plots import leaderboard_png
from recsys.evaluation.report_html import report_html
from tests.evaluation.leaderboards import NASTY, TWO, make


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


def page_of(leaderboard: dict[str, Any], **options: Any) -> Page:
    return Page(report_html(leaderboard, **{"pictures": {}, "about": {}, "stages": {}, **options}))


def test_the_page_holds_pictures_facts_and_every_cohort() -> None:
    leaderboard = make(TWO)
    pictures = {"leaderboard": leaderboard_png(leaderboard), "cohorts": b"cohorts"}
    stages = {"data": 1.25, "train": 1000.0}
    read = page_of(leaderboard, pictures=pictures, about={"Machine": "2 cores"}, stages=stages)
    expected = ["Machine", "2 cores", "1,000.0", "1,001.2", "1970-01-01 00:16:39 UTC", "a" * 64]
    assert all(text in read.text for text in (*expected, "Return visit: first events after a pause", *SEGMENTS))
    assert [tag for tag, _ in read.tags].count("details") == len(SEGMENTS) - 1
    assert all(label in read.text for label in BEYOND_ACCURACY.values())
    images = [str(attributes["src"]) for tag, attributes in read.tags if tag == "img"]
    assert images == [f"data:image/png;base64,{b64encode(png).decode()}" for png in pictures.values()]


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    read = page_of(make(TWO), pictures={"leaderboard": b"png"})
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "a"}
    assert all(str(v).startswith("data:") for _, attributes in read.tags for k, v in attributes.items() if k == "src")


@pytest.mark.parametrize("synthetic", [True, False])
def test_the_banner_is_there_for_synthetic_data_only(synthetic: bool) -> None:
    read = page_of(make(TWO, synthetic=synthetic))
    assert any(attributes.get("class") == "banner" for _, attributes in read.tags) is synthetic
    assert ("not results on MovieLens" in read.text) is synthetic


def test_a_nasty_name_stays_text_everywhere() -> None:
    leaderboard = make({NASTY: ("single", [3] * 8), NASTY + "2": ("system", [1] * 8)}, name=NASTY, synthetic=True)
    text = report_html(leaderboard, {}, about={NASTY: NASTY}, stages={NASTY: 1.0})
    assert "<script" not in text
    read = Page(text)
    assert all(tag != "script" for tag, _ in read.tags)
    assert read.text.count('<script>alert("x")</script>') >= 8
    assert len(read.text.split("$\\frac{1 | {0} %s")) > 8  # neither a format string nor a formula
