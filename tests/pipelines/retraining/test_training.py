"""`recsys retrain --once` with real stages: trained on what came since, and compared on exactly that."""

import json

import pytest

from pipelines.pipeline import open_pipeline
from pipelines.retraining.comparison import newest_difference, with_newest_test
from recsys.bundle import read_facts
from recsys.errors import DataError
from recsys.events import EventTable, NewEvent, sqlite_url
from recsys.settings import Settings
from tests.conftest import TrainedHome
from tests.pipelines.conftest import run_command

POLICY = {"new_events": 500, "fewest_new_events": 100, "latency_budget_ms": 60_000}


def test_the_new_version_is_compared_on_the_events_that_neither_has_seen(changed_home: TrainedHome) -> None:
    home, at = changed_home.dataset, ("--home", changed_home.root, "--dataset", changed_home.name)
    settings = Settings(home=changed_home.root)
    pipeline = open_pipeline(changed_home.name, settings)
    champion = pipeline.registry.resolve("champion")
    last = int(changed_home.events["timestamp"].max())
    assert champion.trained_through == last
    with pytest.raises(DataError, match="there is nothing to compare a new version on"):
        with_newest_test(pipeline.data, champion)
    (home.root / "retrain.json").write_text(json.dumps(POLICY))
    code, _, output = run_command("retrain", "--once", *at)
    assert (code, output) == (0, "retrain: not now (0 new events)\n")

    item_ids = changed_home.items["item_id"].tolist()
    pairs = [(user, item_ids[(7 * user + place) % len(item_ids)]) for user in range(1, 51) for place in range(10)]
    table = EventTable(sqlite_url(home.root / "events.db"))
    table.append(
        [
            NewEvent(f"event {n}", user, item, "rating", 4.5, last + 1 + 60 * n, float(last + n))
            for n, (user, item) in enumerate(pairs)
        ]
    )
    table.close()
    code, _, output = run_command("retrain", "--once", *at)
    assert code == 0, output
    assert "retrain: 500 new events, 500 are enough" in output
    version = pipeline.registry.resolve(2)
    assert [step.name for step in version.steps][:2] == ["trained", version.gate.replace("passed", "gated")]
    assert version.through_seq == 500
    sibling = next(
        facts
        for facts in map(read_facts, home.bundles.iterdir())
        if facts.bundle_id == read_facts(home.bundles / version.bundle_id).sibling_id
    )
    assert sibling.trained_through == last, "frozen where the champion's knowledge ends"
    assert sibling.metrics["n_events"] <= 500
    difference = newest_difference(open_pipeline(changed_home.name, settings), version, champion)
    assert difference.n_events == sibling.metrics["n_events"], "the champion was replayed on all of them"
    assert version.ndcg is not None
    assert 0 <= version.ndcg.mean - difference.mean <= 1
    assert pipeline.registry.resolve("champion").version == 1
    code, _, output = run_command("retrain", "--once", *at)
    assert code == 0
    assert "[1/10]" not in output, "nothing new has come: no second training"
    code, _, output = run_command("retrain", *at)
    assert code == 2
