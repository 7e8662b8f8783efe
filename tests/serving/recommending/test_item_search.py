"""The search by title."""

from dataclasses import replace

import httpx
import numpy as np
import pytest

from serving.recommending.item_search import ItemSearch
from serving.recommending.service import Service
from tests.planted import planted_catalogue
from tests.serving.serving_world import ITEMS

TITLES = (
    "Empire Strikes Back, The (1980)",
    "Star Wars: Episode V - The Empire Strikes Back (1980)",
    "Fabuleux destin d'Amélie Poulain, Le (2001)",
    "One Two Three Four Five Six Seven (2001)",
    "Seven (1995)",
    "七人の侍 (1954)",
    "ЁЛКИ (2010)",
    "ﬁlm №1 Straße (1999)",
    "(1984)",
)


@pytest.fixture(scope="module")
def search() -> ItemSearch:
    catalogue = planted_catalogue()
    return ItemSearch(replace(catalogue, titles=(*TITLES, *catalogue.titles[len(TITLES) :])))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("empire strikes back", [0, 1]),
        ("back empire the", [0, 1]),
        ("star emp", [1]),
        ("amélie", [2]),
        ("ame\u0301lie", [2]),
        ("AMELIE", [2]),
        ("seven", [3, 4]),
        ("one two three four five six seven", [3]),
        ("seven 1995", [4]),
        ("七人", [5]),
        ("елки", [6]),
        ("film strasse", [7]),
        ("1984", [8]),
        ("empire amelie", []),
        ("!? -", []),
    ],
)
def test_every_word_of_a_title_is_found_in_any_form(search: ItemSearch, text: str, rows: list[int]) -> None:
    assert search.search(text, np.zeros(40, np.float32)).tolist() == rows


def test_search_over_http(client: httpx.Client, service: Service) -> None:
    ratings = service.champion.model.stats.n_ratings
    everything = client.get("/v1/items", params={"q": "FIL", "k": 100}).json()
    assert everything["found"] == ITEMS - 1
    order = sorted(range(1, ITEMS), key=lambda idx: (-ratings[idx], idx))
    assert [item["item_id"] for item in everything["items"]] == [idx + 1 for idx in order]
    assert [m["item_id"] for m in client.get("/v1/items", params={"q": "quoted bo"}).json()["items"]] == [1]
