"""What a trained home answers: batch, recommend, evaluate --dump, models."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.atomic_io import read_json
from recsys.data.tables import load_tables
from recsys.evaluation.metrics import METRICS
from recsys.evaluation.replay import FULL_SYSTEM
from recsys.recommender import Recommender
from recsys.workspace import Workspace
from tests.conftest import SILENT_USERS, TrainedHome
from tests.pipelines.conftest import CycleHome, run_command, snapshot
from tests.pipelines.cycle_world import CLUSTER, SILENT, USERS, in_a

pytestmark = pytest.mark.usefixtures("small_settings")


def batch(root: Path, out: Path, *options: str) -> pd.DataFrame:
    code, said, told = run_command("batch", "--out", out, "--home", root, *options)
    assert code == 0, told
    assert said == "", "nothing but the file"
    table = pq.read_table(out)
    types = [("user_id", pa.int64()), ("rank", pa.int32()), ("item_id", pa.int64()), ("score", pa.float32())]
    assert table.schema.equals(pa.schema(types))
    frame = table.to_pandas()
    assert f"{len(frame):,} rows for" in told
    return frame


def check_batch(frame: pd.DataFrame, root: Path, name: str, k: int) -> None:
    """k unseen items for every user of the directory, or what is left of the catalogue; ranks 1..k, best first."""
    tables = load_tables(Workspace(root).dataset(name).data)
    assert set(frame["user_id"]) == set(tables.users["user_id"])
    seen = tables.events.groupby("user_id")["item_id"].agg(set).to_dict()
    catalogue = set(tables.items["item_id"])
    for user, part in frame.groupby("user_id", sort=False):
        left = catalogue - seen.get(user, set())
        assert part["rank"].tolist() == list(range(1, min(k, len(left)) + 1))
        assert part["item_id"].is_unique
        assert set(part["item_id"]) <= left
        assert part["score"].is_monotonic_decreasing
        assert part["score"].notna().all()


# ---- batch


def test_batch_of_the_synthetic_world(trained_home: TrainedHome, tmp_path: Path) -> None:
    frame = batch(trained_home.root, tmp_path / "lists.parquet", "--k", "10", "--dataset", trained_home.name)
    check_batch(frame, trained_home.root, trained_home.name, 10)
    assert len(frame) == 10 * (120 + len(SILENT_USERS))
    again = batch(trained_home.root, tmp_path / "again.parquet", "--k", "10", "--dataset", trained_home.name)
    pd.testing.assert_frame_equal(frame, again)


def test_batch_for_users_who_never_rated(cycle_home: CycleHome, tmp_path: Path) -> None:
    """A data set whose users.dat lists users without ratings."""
    frame = batch(cycle_home.root, tmp_path / "lists.parquet", "--k", "10", "--dataset", "cycle")
    check_batch(frame, cycle_home.root, "cycle", 10)
    assert set(SILENT) <= set(frame["user_id"])
    assert len(frame) == 10 * (USERS + len(SILENT))


def test_batch_without_a_users_file(cycle_home: CycleHome, csv_home: Path, tmp_path: Path) -> None:
    frame = batch(csv_home, tmp_path / "lists.parquet", "--k", "10", "--dataset", "cycle-csv")
    check_batch(frame, csv_home, "cycle-csv", 10)
    assert len(frame) == 10 * USERS
    assert cycle_home.dataset.data.exists()


def test_batch_gives_what_is_left_to_who_has_seen_almost_everything(cycle_home: CycleHome, tmp_path: Path) -> None:
    frame = batch(cycle_home.root, tmp_path / "lists.parquet", "--k", "500", "--dataset", "cycle")
    check_batch(frame, cycle_home.root, "cycle", 500)
    assert frame.groupby("user_id").size().loc[1] == CLUSTER


def test_batch_as_of_another_moment_knows_the_same_users(cycle_home: CycleHome, tmp_path: Path) -> None:
    at = str(int(load_tables(cycle_home.dataset.data).events["timestamp"].max()) + 400 * 86_400)
    frame = batch(cycle_home.root, tmp_path / "lists.parquet", "--k", "3", "--at", at, "--dataset", "cycle")
    check_batch(frame, cycle_home.root, "cycle", 3)


def test_a_failure_leaves_the_file_as_it_was(
    cycle_home: CycleHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "lists.parquet"
    out.write_bytes(b"old")
    answers: Callable[..., object] = Recommender.recommend
    calls: list[int] = []

    def fails_later(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the store went away")
        return answers(*arguments)

    monkeypatch.setattr("pipelines.recommending.BATCH", 50)
    monkeypatch.setattr(Recommender, "recommend", fails_later)
    with pytest.raises(RuntimeError, match="went away"):
        run_command("batch", "--out", out, "--home", cycle_home.root, "--dataset", "cycle")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


# ---- recommend


def test_recommend_prints_titles(trained_home: TrainedHome, tmp_path: Path) -> None:
    asked = ("--k", "5", "--at", str(trained_home.events["timestamp"].max() + 1), "--dataset", trained_home.name)
    lists = batch(trained_home.root, tmp_path / "lists.parquet", *asked)
    items = trained_home.items.set_index("item_id")
    for user in (1, SILENT_USERS[0]):
        code, said, _ = run_command("recommend", "--user", str(user), *asked, "--home", trained_home.root)
        assert code == 0
        head, *lines = said.splitlines()
        assert head.startswith("synthetic (synthetic, not MovieLens), synthetic-")
        assert f"user {user}" in head
        assert ("newcomer" in head) == (user in SILENT_USERS)
        expected = lists.loc[lists["user_id"] == user, "item_id"].tolist()
        assert len(lines) == len(expected) == 5
        for rank, (line, item) in enumerate(zip(lines, expected, strict=True), start=1):
            assert re.match(rf"\s*{rank}\s+\S+\s+{item}\s", line)
            assert items.loc[item, "title"] in line
            assert all(genre in line for genre in items.loc[item, "genres"])
            assert re.search(r"  watch \d+\.\d%, like \d+%$", line)


@pytest.mark.parametrize("command", [("recommend", "--user", "1"), ("batch", "--out", "lists.parquet")], ids=" ".join)
def test_a_moment_in_the_past_is_refused(command: tuple[str, ...], trained_home: TrainedHome) -> None:
    before = str(trained_home.events["timestamp"].max())
    code, _, told = run_command(*command, "--at", before, "--home", trained_home.root, "--dataset", trained_home.name)
    assert code == 2
    assert "lies before the last event that synthetic-" in told
    assert not Path("lists.parquet").exists()


def test_recommend_for_somebody_unknown(trained_home: TrainedHome) -> None:
    at = ("--home", trained_home.root, "--dataset", trained_home.name)
    code, said, _ = run_command("recommend", "--user", "987654", *at)
    assert code == 0
    assert "user 987654 (unknown: the answer for a newcomer)" in said
    assert len(said.splitlines()) == 11


def test_recommendations_stay_in_the_users_cluster(cycle_home: CycleHome, tmp_path: Path) -> None:
    """Users of the last days are half way through their cluster: its other items come first."""
    events = load_tables(cycle_home.dataset.data).events
    frame = batch(cycle_home.root, tmp_path / "lists.parquet", "--k", "10", "--dataset", "cycle")
    complete = events.groupby("user_id").size()
    assert (complete == CLUSTER).all(), "so everybody has seen their own cluster, and gets the other"
    for user, part in frame.groupby("user_id"):
        if user <= USERS:
            assert {item <= CLUSTER for item in part["item_id"]} == {not in_a(int(user))}


# ---- evaluate --dump


def test_evaluate_dumps_what_anyone_can_score(trained_home: TrainedHome, tmp_path: Path) -> None:
    dump = tmp_path / "ranks.parquet"
    before = read_json(trained_home.dataset.reports / "leaderboard.json")
    files = snapshot(trained_home.dataset.root)
    code, _, told = run_command("evaluate", "--dump", dump, "--home", trained_home.root, "--dataset", trained_home.name)
    assert code == 0
    assert f"lists of every test event: {dump}" in told
    assert FULL_SYSTEM in told
    table = pq.read_table(dump)
    assert table.schema.names == ["user_id", "timestamp", "item_id", "ranked"]
    rows = table.to_pylist()
    t2 = before["protocol"]["t2"]
    events = trained_home.events
    test = events[events["timestamp"] > t2]
    key = ["user_id", "timestamp", "item_id"]
    assert sorted((r["user_id"], r["timestamp"], r["item_id"]) for r in rows) == sorted(
        test[key].itertuples(index=False, name=None)
    )
    catalogue = set(trained_home.items["item_id"])
    by_user = dict(iter(events.groupby("user_id")))
    ranks = []
    for row in rows:
        mine = by_user[row["user_id"]]
        history = set(mine.loc[mine["timestamp"] < row["timestamp"], "item_id"])
        assert len(set(row["ranked"])) == len(row["ranked"])
        assert set(row["ranked"]) == catalogue - history
        ranks.append(row["ranked"].index(row["item_id"]) + 1)
    measured = {m["name"]: m for m in before["methods"]}[FULL_SYSTEM]["segments"]["all"]["metrics"]
    for name, metric in METRICS.items():
        assert metric(pd.Series(ranks).to_numpy()).mean() == pytest.approx(measured[name]["mean"], abs=1e-12), name
    again = read_json(trained_home.dataset.reports / "leaderboard.json")
    assert again == before, "the same events, the same model, the same leaderboard"
    written = {name for name, stat in snapshot(trained_home.dataset.root).items() if files.get(name) != stat}
    assert {name.split("/")[0] for name in written} == {"reports"}, "nothing is trained"


# ---- models (in this order: each test leaves version 2 champion)


def test_models_list(cycle_home: CycleHome) -> None:
    code, said, _ = run_command("models", "list", "--home", cycle_home.root, "--dataset", "cycle")
    assert code == 0
    head, *lines = said.splitlines()
    assert head.split() == ["version", "alias", "NDCG@10", "(95", "%)", "gate", "code", "created", "data", "set"]
    rows = [line.split() for line in lines if line.split()[0].isdecimal()]
    assert [r[0] for r in rows] == ["2", "1"]
    assert rows[0][1] == "champion"
    assert all(r[-1] == "cycle" for r in rows)
    ndcg = read_json(cycle_home.dataset.reports / "leaderboard.json")["methods"]
    shown = {m["name"]: m for m in ndcg}[FULL_SYSTEM]["segments"]["all"]["metrics"]["ndcg@10"]["mean"]
    assert all(f"{shown:.4f}" in line for line in lines if line.split()[0].isdecimal())


def test_models_compare(cycle_home: CycleHome) -> None:
    code, said, _ = run_command("models", "compare", "1", "champion", "--home", cycle_home.root, "--dataset", "cycle")
    assert code == 0
    assert "version 1" in said.splitlines()[0]
    assert "version 2" in said.splitlines()[0]
    assert re.search(r"ndcg@10 +(\S+) +\1 +\+0\.0000", said)
    assert "Versions 1 and 2 cannot be told apart" in said.splitlines()[-1]


def test_models_promote_and_roll_back(cycle_home: CycleHome) -> None:
    at = ("--home", cycle_home.root, "--dataset", "cycle")

    def champion() -> str:
        lines = run_command("models", "list", *at)[1].splitlines()
        return next(line.split()[0] for line in lines if "champion" in line.split()[1:2])

    assert run_command("models", "promote", "1", *at)[:2] == (
        0,
        "version 1 of recsys-cycle is champion; a running service swaps within seconds\n",
    )
    assert champion() == "1"
    assert run_command("models", "rollback", *at)[:2] == (
        0,
        "version 2 of recsys-cycle is champion again; a running service swaps to it\n",
    )
    assert champion() == "2"
    code, _, told = run_command("models", "promote", "9", *at)
    assert (code, champion()) == (2, "2")
    assert "has no version 9. It has 1" in told
