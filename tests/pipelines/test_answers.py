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
from tests.pipelines.cycle_world import CLUSTER, USERS, in_a

pytestmark = pytest.mark.usefixtures("small_settings")


def batch(root: Path, name: str, out: Path, k: int, *options: str) -> pd.DataFrame:
    """What `recsys batch` writes: k unseen items for every user of the directory, or what is left of the catalogue;
    ranks 1..k, best first."""
    code, stdout, stderr = run_command(
        "batch", "--out", out, "--home", root, "--dataset", name, "--k", str(k), *options
    )
    assert code == 0, stderr
    assert stdout == "", "nothing but the file"
    table = pq.read_table(out)
    types = [("user_id", pa.int64()), ("rank", pa.int32()), ("item_id", pa.int64()), ("score", pa.float32())]
    assert table.schema.equals(pa.schema(types))
    frame = table.to_pandas()
    assert f"{len(frame):,} rows for" in stderr
    tables = load_tables(Workspace(root).dataset(name).data)
    assert set(frame["user_id"]) == set(tables.users["user_id"])
    seen = tables.events.groupby("user_id")["item_id"].agg(set).to_dict()
    for user, part in frame.groupby("user_id", sort=False):
        left = set(tables.items["item_id"]) - seen.get(user, set())
        assert part["rank"].tolist() == list(range(1, min(k, len(left)) + 1))
        assert part["item_id"].is_unique
        assert set(part["item_id"]) <= left
        assert part["score"].is_monotonic_decreasing
    return frame


def test_batch_is_the_same_again_and_knows_users_who_never_rated(trained_home: TrainedHome, tmp_path: Path) -> None:
    lists = [batch(trained_home.root, trained_home.name, tmp_path / f"{n}.parquet", 10) for n in range(2)]
    pd.testing.assert_frame_equal(*lists)
    assert set(SILENT_USERS) <= set(lists[0]["user_id"])
    assert len(lists[0]) == 10 * (120 + len(SILENT_USERS))


def test_batch_gives_who_has_seen_their_cluster_the_other_one(cycle_home: CycleHome, tmp_path: Path) -> None:
    """As of a later moment, and more items than are left."""
    at = str(int(load_tables(cycle_home.dataset.data).events["timestamp"].max()) + 400 * 86_400)
    frame = batch(cycle_home.root, "cycle", tmp_path / "lists.parquet", 500, "--at", at)
    for user, part in frame.groupby("user_id"):
        if user <= USERS:
            assert len(part) == CLUSTER
            assert {item <= CLUSTER for item in part["item_id"]} == {not in_a(int(user))}


def test_a_failure_leaves_the_file_as_it_was(
    cycle_home: CycleHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "lists.parquet"
    out.write_bytes(b"old")
    recommend: Callable[..., object] = Recommender.recommend
    calls: list[int] = []

    def fails_later(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the store went away")
        return recommend(*arguments)

    monkeypatch.setattr("pipelines.recommending.BATCH", 50)
    monkeypatch.setattr(Recommender, "recommend", fails_later)
    with pytest.raises(RuntimeError, match="went away"):
        run_command("batch", "--out", out, "--home", cycle_home.root, "--dataset", "cycle")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_recommend_prints_titles(trained_home: TrainedHome, tmp_path: Path) -> None:
    at = ("--at", str(trained_home.events["timestamp"].max() + 1))
    lists = batch(trained_home.root, trained_home.name, tmp_path / "lists.parquet", 5, *at)
    items = trained_home.items.set_index("item_id")
    here = ("--home", trained_home.root, "--dataset", trained_home.name)
    for user in (1, SILENT_USERS[0]):
        code, stdout, _ = run_command("recommend", "--user", str(user), "--k", "5", *at, *here)
        assert code == 0
        head, *lines = stdout.splitlines()
        assert head.startswith("synthetic (synthetic, not MovieLens), synthetic-")
        assert f"user {user}" in head
        assert ("newcomer" in head) == (user in SILENT_USERS)
        expected = lists.loc[lists["user_id"] == user, "item_id"].tolist()
        for rank, (line, item) in enumerate(zip(lines, expected, strict=True), start=1):
            assert re.match(rf"\s*{rank}\s+\S+\s+{item}\s", line)
            assert items.loc[item, "title"] in line
            assert all(genre in line for genre in items.loc[item, "genres"])
            assert re.search(r"  watch \d+\.\d%, like \d+%$", line)
    code, stdout, _ = run_command("recommend", "--user", "987654", *here)
    assert code == 0
    assert "user 987654 (unknown: the answer for a newcomer)" in stdout
    assert len(stdout.splitlines()) == 11


@pytest.mark.parametrize("command", [("recommend", "--user", "1"), ("batch", "--out", "lists.parquet")], ids=" ".join)
def test_a_moment_in_the_past_is_refused(command: tuple[str, ...], trained_home: TrainedHome) -> None:
    before = str(trained_home.events["timestamp"].max())
    code, _, stderr = run_command(*command, "--at", before, "--home", trained_home.root, "--dataset", trained_home.name)
    assert code == 2
    assert "lies before the last event that synthetic-" in stderr
    assert not Path("lists.parquet").exists()


def test_evaluate_dumps_what_anyone_can_score(trained_home: TrainedHome, tmp_path: Path) -> None:
    dump = tmp_path / "ranks.parquet"
    before = read_json(trained_home.dataset.reports / "leaderboard.json")
    files = snapshot(trained_home.dataset.root)
    here = ("--home", trained_home.root, "--dataset", trained_home.name)
    code, _, stderr = run_command("evaluate", "--dump", dump, *here)
    assert code == 0
    assert f"lists of every test event: {dump}" in stderr
    rows = pq.read_table(dump).to_pylist()
    events = trained_home.events
    test = events[events["timestamp"] > before["protocol"]["t2"]]
    key = ["user_id", "timestamp", "item_id"]
    assert [*rows[0]] == [*key, "ranked"]
    dumped = sorted((r["user_id"], r["timestamp"], r["item_id"]) for r in rows)
    assert dumped == sorted(test[key].itertuples(index=False, name=None))
    catalogue, by_user = set(trained_home.items["item_id"]), dict(iter(events.groupby("user_id")))
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


def test_models_are_listed_compared_promoted_and_rolled_back(cycle_home: CycleHome) -> None:
    at = ("--home", cycle_home.root, "--dataset", "cycle")
    head, *lines = run_command("models", "list", *at)[1].splitlines()
    assert head.split() == ["version", "alias", "NDCG@10", "(95", "%)", "gate", "code", "created", "data", "set"]
    rows = [line.split() for line in lines if line.split()[0].isdecimal()]
    assert [r[0] for r in rows] == ["2", "1"]
    assert rows[0][1] == "champion"
    assert all(r[-1] == "cycle" for r in rows)
    methods = {m["name"]: m for m in read_json(cycle_home.dataset.reports / "leaderboard.json")["methods"]}
    ndcg = methods[FULL_SYSTEM]["segments"]["all"]["metrics"]["ndcg@10"]["mean"]
    assert sum(f"{ndcg:.4f}" in line for line in lines) == 2

    code, stdout, _ = run_command("models", "compare", "1", "champion", *at)
    assert code == 0
    assert re.search(r"ndcg@10 +(\S+) +\1 +\+0\.0000", stdout)
    assert "Versions 1 and 2 cannot be told apart" in stdout.splitlines()[-1]

    def champion() -> str:
        lines = run_command("models", "list", *at)[1].splitlines()
        return next(line.split()[0] for line in lines if "champion" in line.split()[1:2])

    promoted = "version 1 of recsys-cycle is champion; a running service swaps within seconds\n"
    assert run_command("models", "promote", "1", *at)[:2] == (0, promoted)
    assert champion() == "1"
    back = "version 2 of recsys-cycle is champion again; a running service swaps to it\n"
    assert run_command("models", "rollback", *at)[:2] == (0, back)
    code, _, stderr = run_command("models", "promote", "9", *at)
    assert (code, champion()) == (2, "2")
    assert "has no version 9. It has 1" in stderr
