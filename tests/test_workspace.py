"""Places below the home folder."""

from pathlib import Path

import pytest

from recsys.errors import ConfigError
from recsys.workspace import DatasetWorkspace, Workspace


def test_every_place_lies_below_its_data_set(tmp_path: Path) -> None:
    home = Workspace(tmp_path).dataset("ml-100k")
    assert home == DatasetWorkspace(tmp_path / "ml-100k", "ml-100k")
    places = ("data", "raw", "features", "feast", "stages", "work", "bundles", "reports")
    assert [getattr(home, p) for p in places] == [tmp_path / "ml-100k" / p for p in places]
    assert Workspace(tmp_path).mlflow == tmp_path / "mlflow"
    assert list(tmp_path.iterdir()) == [], "nothing is created"


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m", "synthetic.small", "0", "a_b-c.d"])
def test_names_that_are_allowed(name: str, tmp_path: Path) -> None:
    assert Workspace(tmp_path).dataset(name).root.parent == tmp_path


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "-x", "_x", "ML-1M", "a b", "a\n", "ä", "mlflow", "current.json"],
)
def test_names_that_could_leave_the_home_or_collide_with_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name a data set"):
        Workspace(tmp_path).dataset(name)


def test_the_last_one_used_is_chosen(tmp_path: Path) -> None:
    home = Workspace(tmp_path / "deep")
    for name in ("ml-1m", "ml-100k"):
        home.dataset(name).data.mkdir(parents=True)
        home.remember(name)
    assert home.choose(None).name == "ml-100k"
    assert home.choose("ml-1m").name == "ml-1m"
    home.remember("ml-1m")
    assert home.choose(None) == home.dataset("ml-1m")


def test_without_any_data_set_the_error_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no data set yet\. Run `recsys data --dataset ml-100k` first"):
        Workspace(tmp_path).choose(None)


@pytest.mark.parametrize("named", [True, False])
def test_a_data_set_that_is_not_there_is_named(named: bool, tmp_path: Path) -> None:
    home = Workspace(tmp_path)
    home.remember("ml-25m")
    with pytest.raises(ConfigError, match=r"no data set 'ml-25m' in .* Run `recsys data --dataset ml-25m` first"):
        home.choose("ml-25m" if named else None)
