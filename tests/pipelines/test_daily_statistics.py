"""What is rated today is popular tomorrow: the features stage again, and the running service takes its result up."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from recsys.events import NewEvent
from recsys.settings import Settings
from serving.app import create_app
from serving.observability.metrics import Metrics
from serving.recommending.service import Service
from serving.settings import ServiceSettings
from tests.conftest import TrainedHome, use_small_settings
from tests.serving.serving_client import running

DAY = 86_400


@pytest.fixture
def home(trained_home: TrainedHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainedHome:
    """A copy that may change."""
    use_small_settings(monkeypatch)
    shutil.copytree(trained_home.root, tmp_path / "home")
    return TrainedHome(tmp_path / "home", trained_home.raw)


@pytest.fixture
def client(home: TrainedHome, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """A service that looks for news every so many seconds; never, if not told otherwise."""
    reload_s = getattr(request, "param", 0.0)
    settings = ServiceSettings.build(Settings(home=home.root), home.dataset, budget_ms=60_000.0, reload_s=reload_s)
    with running(create_app(settings, Service.load(settings, Metrics())), settings) as client:
        yield client


def test_the_daily_run_reaches_a_running_service(home: TrainedHome, client: httpx.Client) -> None:
    item = int(home.events["item_id"].mode()[0])
    known = int((home.events["item_id"] == item).sum())
    card = client.get("/v1/model").json()
    assert client.get(f"/v1/items/{item}").json()["n_ratings"] == known
    rater, rated_at = _log_a_rating(home, item)

    assert client.post("/v1/admin/reload").json()["outcome"] == "unchanged"
    assert client.get(f"/v1/items/{item}").json()["n_ratings"] == known, "statistics are of the tables, not the log"
    assert client.get("/v1/model").json()["item_statistics_day"] == card["item_statistics_day"]

    assert home.run("train", "--only", "features", "--force") == 0
    assert client.get(f"/v1/items/{item}").json()["n_ratings"] == known, "nobody has looked yet"
    assert client.post("/v1/admin/reload").json()["outcome"] == "unchanged", "the model is the same"
    item_now = client.get(f"/v1/items/{item}").json()
    assert item_now["n_ratings"] == known + 1
    stars = float(home.events.loc[home.events["item_id"] == item, "rating"].sum())
    assert item_now["mean_rating"] == pytest.approx((stars + 5.0) / (known + 1), abs=1e-3)
    after = client.get("/v1/model").json()
    assert after["version"] == card["version"]
    day_after = (rated_at // DAY + 1) * DAY
    assert after["item_statistics_day"] == datetime.fromtimestamp(day_after, UTC).date().isoformat()
    answer = client.get(f"/v1/users/{rater}/recommendations").json()
    assert answer["degraded"] == []
    assert item not in [item["item_id"] for item in answer["items"]]


@pytest.mark.parametrize("client", [0.2], indirect=True)
def test_a_service_that_follows_sees_new_tables_by_itself(home: TrainedHome, client: httpx.Client) -> None:
    """Each worker does: a POST would reach one of them."""
    item = int(home.items["item_id"].iloc[0])
    known = client.get(f"/v1/items/{item}").json()["n_ratings"]
    _log_a_rating(home, item)
    # In a process of its own, as a person does: here, stage and service would share ibis's one DuckDB connection.
    command = [sys.executable, "-m", "recsys", "train", "--only", "features", "--force", "--home", str(home.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    until = time.monotonic() + 20
    while client.get(f"/v1/items/{item}").json()["n_ratings"] != known + 1:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert client.get("/v1/model").json()["reload"]["last_failure"] is None


def _log_a_rating(home: TrainedHome, item: int) -> tuple[int, int]:
    """Five stars from somebody who had not rated the item, received two days ago: what is received today counts from
    tomorrow on. The user and the moment."""
    raters = set(home.events.loc[home.events["item_id"] == item, "user_id"])
    user = next(int(user) for user in home.users["user_id"] if user not in raters)
    moment = int(time.time()) - 2 * DAY
    table = Settings(home=home.root).event_table(home.dataset)
    table.append([NewEvent("one", user, item, "rating", 5.0, moment, moment)])
    table.close()
    return user, moment
