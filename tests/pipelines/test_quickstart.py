"""Quickstart without a network: said plainly, on with the synthetic world, and an answer over real HTTP."""

import re
import socket
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from urllib3.connection import HTTPConnection
from urllib3.exceptions import NameResolutionError

from pipelines import obtain, quickstart
from recsys.data.synthetic import WorldSize
from recsys.errors import RecsysError
from recsys.settings import Settings
from tests.conftest import TrainedHome
from tests.pipelines.conftest import run_command

pytestmark = pytest.mark.usefixtures("small_settings", "no_network")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """MovieLens' host has no address, as behind a wall; and the world that takes its place is tiny."""

    def unreachable(*_: object, **__: object) -> None:
        reason = socket.gaierror(-3, "Temporary failure in name resolution")
        raise requests.ConnectionError(NameResolutionError("host", HTTPConnection("host"), reason))

    def tiny(n_users: int = 30, n_items: int = 60, n_events: int = 900) -> WorldSize:
        return WorldSize(n_users, n_items, n_events)

    monkeypatch.setattr(requests, "get", unreachable)
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setattr(obtain, "WorldSize", tiny)


def test_the_synthetic_world_takes_the_place_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(home=tmp_path / "home")
    assert obtain.obtain_or_synthetic(settings, "ml-100k") == "synthetic"
    said = capsys.readouterr().err
    assert "Could not download https://files.grouplens.org/datasets/movielens/ml-100k.zip" in said
    assert "its name cannot be resolved (3 tries)" in said
    assert "Going on with the SYNTHETIC world. Its numbers are not results on MovieLens." in said
    assert "do not pass it on" in said, "the licence of what was asked for"
    assert "synthetic (synthetic, not MovieLens): 900 events, 60 items, 30 users" in said
    home = settings.paths()
    assert home.choose(None).name == "synthetic"
    assert not home.dataset("ml-100k").root.exists(), "an empty folder would look as if there were data"
    assert obtain.obtain_or_synthetic(settings, "ml-100k") == "synthetic"
    assert "making a synthetic world" not in capsys.readouterr().err, "it is there already"


def test_the_other_commands_do_not_change_the_data_behind_ones_back(tmp_path: Path) -> None:
    for name in ("data", "train"):
        code, _, said = run_command(name, "--dataset", "ml-100k", "--home", tmp_path / "home")
        assert code == 2
        assert "Could not download" in said
        assert "--dataset synthetic makes data of its own" in said
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_quickstart_ends_with_recommendations_over_http(trained_home: TrainedHome) -> None:
    """The whole command. The world is the trained one, so its stages are up to date; the service is a real process."""
    code, said, told = run_command("quickstart", "--home", trained_home.root)
    assert code == 0, told
    assert "Could not download" in told
    assert "Going on with the SYNTHETIC world" in told
    assert "done in" not in told, "the second run of a trained home repeats nothing"
    assert re.search(r"starting the service: recsys serve --port \d+", told)

    asked = re.search(r"GET (http://127\.0\.0\.1:\d+)/v1/users/(\d+)/recommendations\?k=10", said)
    assert asked
    url, user = asked[1], int(asked[2])
    events, titles = trained_home.events, trained_home.items.set_index("item_id")["title"]
    assert user == events["user_id"].iloc[-1], "the user of the last event"
    assert "data set synthetic (synthetic, not MovieLens), model version 1" in said

    lines = said.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"what user {user} rated last"))
    table = lines[at + 1 : at + 11]
    mine = events[events["user_id"] == user].sort_values(["timestamp", "item_id"])
    by_title = {title: item for item, title in titles.items()}
    shown = [re.match(r".{44}  \s*(\d+)\. (.*?)  \[", line) for line in table]
    assert [int(m[1]) for m in shown if m] == list(range(1, 11)), table
    recommended = {by_title[m[2]] for m in shown if m}
    assert len(recommended - set(mine["item_id"])) == 10, "nothing that the user has rated"
    rated = {f"{row.rating:.1f}  {titles[row.item_id]}"[:42].strip() for row in mine.tail(10).itertuples()}
    assert {line[:42].strip() for line in table} == rated

    for hint in ("report.html", "recsys serve", "recsys batch", "recsys bench latency", "pipelines/stages.py"):
        assert hint in said
    assert f"--home {trained_home.root}" in said
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/readyz", timeout=2)


def test_a_service_that_dies_is_told_with_its_log(trained_home: TrainedHome, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=trained_home.root)
    monkeypatch.setattr(quickstart.sys, "executable", "/bin/echo")
    log = trained_home.dataset.reports / "service.log"
    with (
        pytest.raises(RecsysError, match=r"The service did not become ready; its output is in .*service\.log"),
        quickstart.service(trained_home.dataset, settings),
    ):
        pass
    assert "recsys serve" in log.read_text()
