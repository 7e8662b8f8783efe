"""What is rated today is popular tomorrow: the features stage again, and the running service takes its result up."""

import subprocess
import sys
import time

import pytest

from recsys.events import NewEvent
from recsys.settings import Settings
from serving.app import create_app
from serving.observability.metrics import Metrics
from serving.recommending.service import Service
from serving.settings import ServiceSettings
from tests.conftest import TrainedHome
from tests.serving.serving_client import running

DAY = 86_400


@pytest.mark.parametrize("reload_s", [0.0, 0.2], ids=["asked to reload", "following by itself"])
def test_the_daily_run_reaches_a_running_service(changed_home: TrainedHome, reload_s: float) -> None:
    home, settings = changed_home, Settings(home=changed_home.root)
    item = int(home.events["item_id"].mode()[0]) + int(reload_s > 0)
    raters = set(home.events.loc[home.events["item_id"] == item, "user_id"])
    user = next(int(user) for user in home.users["user_id"] if user not in raters)
    two_days_ago = int(time.time()) - 2 * DAY  # what is received today counts from tomorrow on
    of_service = ServiceSettings.build(settings, home.dataset, budget_ms=60_000.0, reload_s=reload_s)
    with running(create_app(of_service, Service.load(of_service, Metrics())), of_service) as client:
        known = client.get(f"/v1/items/{item}").json()["n_ratings"]
        card = client.get("/v1/model").json()
        table = settings.event_table(home.dataset)
        table.append([NewEvent(f"of {reload_s}", user, item, "rating", 5.0, two_days_ago, two_days_ago)])
        table.close()
        assert client.get(f"/v1/items/{item}").json()["n_ratings"] == known, "statistics are of the tables"

        # In a process of its own, as a person does: here, stage and service would share ibis's one DuckDB connection.
        command = [sys.executable, "-m", "recsys", "train", "--only", "features", "--force", "--home", str(home.root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if not reload_s:
            assert client.get(f"/v1/items/{item}").json()["n_ratings"] == known, "nobody has looked yet"
            assert client.post("/v1/admin/reload").json()["outcome"] == "unchanged", "the model is the same"
        until = time.monotonic() + 20
        while client.get(f"/v1/items/{item}").json()["n_ratings"] != known + 1:
            assert time.monotonic() < until
            time.sleep(0.05)
        stars = float(home.events.loc[home.events["item_id"] == item, "rating"].sum())
        mean = client.get(f"/v1/items/{item}").json()["mean_rating"]
        assert mean == pytest.approx((stars + 5.0) / (known + 1), abs=1e-3)
        assert client.get("/v1/model").json()["version"] == card["version"]
        answer = client.get(f"/v1/users/{user}/recommendations").json()
        assert answer["degraded"] == []
        assert item not in [shown["item_id"] for shown in answer["items"]]
