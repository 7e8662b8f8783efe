"""Places below the home folder."""

from pathlib import Path

import pytest

from recsys.errors import ConfigError
from recsys.workspace import DatasetWorkspace, Workspace


@pytest.mark.parametrize("name", ["ml-100k", "synthetic.small", "0", "a_b-c.d"])
def test_every_place_lies_below_its_data_set(name: str, tmp_path: Path) -> None:
    home = Workspace(tmp_path).dataset(name)
    assert home == DatasetWorkspace(tmp_path / name, name)
    assert (home.data, home.reports) == (tmp_path / name / "data", tmp_path / name / "reports")
    assert list(tmp_path.iterdir()) == [], "nothing is created"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "-x", "ML-1M", "a b", "a\n", "ä", "mlflow", "current.json"],
)
def test_names_that_could_leave_the_home_or_collide_with_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name a data set"):
        Workspace(tmp_path).dataset(name)


def test_the_last_one_used_is_chosen(tmp_path: Path) -> None:
    home = Workspace(tmp_path / "deep")
    with pytest.raises(ConfigError, match=r"holds no data set yet\. Run `recsys data --dataset ml-100k` first"):
        home.choose(None)
    for name in ("ml-1m", "ml-100k"):
        home.dataset(name).data.mkdir(parents=True)
        home.remember(name)
    assert home.choose(None).name == "ml-100k"
    assert home.choose("ml-1m").name == "ml-1m"
    home.remember("ml-25m")
    for named in (None, "ml-25m"):
        with pytest.raises(ConfigError, match=r"no data set 'ml-25m' in .* Run `recsys data --dataset ml-25m` first"):
            home.choose(named)
    (home.root / "current.json").write_text("[]")
    with pytest.raises(ConfigError, match="names no data set"):
        home.choose(None)
