"""The catalogue of official data sets."""

import re

import pytest

from recsys.data.datasets import DATASETS, dataset_called
from recsys.errors import ConfigError


def test_the_eight_official_sets_are_there() -> None:
    assert list(DATASETS) == [
        "ml-100k",
        "ml-1m",
        "ml-10m",
        "ml-20m",
        "ml-25m",
        "ml-32m",
        "ml-latest-small",
        "ml-latest",
    ]
    for name, dataset in DATASETS.items():
        assert dataset.url == f"https://files.grouplens.org/datasets/movielens/{name}.zip"
        assert (dataset.md5 is None) == name.startswith("ml-latest")
        assert dataset.md5 is None or re.fullmatch("[0-9a-f]{32}", dataset.md5)
        assert "10.1145/2827872" in dataset.terms


def test_terms_follow_the_readme_of_each_archive() -> None:
    assert "do not pass it on without separate permission" in DATASETS["ml-100k"].terms
    assert "pass it on under these same terms only" in DATASETS["ml-latest-small"].terms


def test_an_unknown_name_lists_the_known_ones() -> None:
    assert dataset_called("ml-1m").layout == "ml-1m"
    with pytest.raises(ConfigError, match=r"'ml-2m'.*ml-100k, ml-1m"):
        dataset_called("ml-2m")
