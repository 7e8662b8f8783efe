"""The way of a version: the story that its tags tell, what ends it, and that no kill takes the champion away."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.pipeline import Pipeline
from pipelines.retraining import run, steps
from pipelines.retraining.policy import RetrainPolicy, decide
from pipelines.retraining.steps import advance
from recsys.atomic_io import write_json
from recsys.errors import ConfigError
from recsys.evaluation.bootstrap import PairedDifference
from recsys.events import NewEvent
from recsys.experiments.assignment import Arm, Experiment
from recsys.registry import Traffic, VersionInfo

from .retrain_world import EQUAL, NOW, POLICY, answer, moment, new_version, open_home, quiet_hour, write_log

ROOT = Path(__file__).resolve().parents[3]
HOUR_S = 3_600


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def pipeline(home: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A home whose champion is version 1, and version 2 just trained. `home`: a registry without versions."""
    monkeypatch.setattr(steps, "newest_difference", lambda *_: EQUAL)
    opened = open_home(home.parent, lines)
    new_version(opened, "the first", NOW - 40 * 24 * HOUR_S)
    opened.registry.promote(1)
    opened.registry.record_step(1, steps.at("champion", NOW - 40 * 24 * HOUR_S, "the first"))
    new_version(opened, "10,000 new events", NOW)
    return opened


def lead(pipeline: Pipeline, hours: float, policy: RetrainPolicy = RetrainPolicy(**POLICY)) -> VersionInfo:  # noqa: B008
    """Version 2 after as many steps as it can take at a moment."""
    version = pipeline.registry.resolve(2)
    while version.steps[-1].name not in steps.FINAL:
        then = advance(pipeline, version, policy, NOW + hours * HOUR_S)
        if then.steps == version.steps:
            break
        version = then
    return version


def names(version: VersionInfo) -> list[str]:
    return [step.name for step in version.steps]


def test_the_tags_tell_the_story_of_a_version_that_becomes_champion(pipeline: Pipeline, lines: list[str]) -> None:
    registry = pipeline.registry
    assert names(lead(pipeline, 0)) == ["trained", "gated", "shadow"]
    assert registry.traffic() == Traffic(2, None)
    assert names(lead(pipeline, 10)) == ["trained", "gated", "shadow"], "nobody has asked yet"
    quiet_hour(pipeline, NOW + 11 * HOUR_S)
    assert names(lead(pipeline, 11))[-1] == "canary"
    arms = (Arm("champion", 0.9), Arm("canary", 0.1, 2))
    assert registry.traffic() == Traffic(None, Experiment("canary-2", arms))
    quiet_hour(pipeline, NOW + 12 * HOUR_S)
    version = lead(pipeline, 12)
    assert version.aliases == ("champion",)
    assert registry.traffic() == Traffic()
    assert [step.moment_utc for step in version.steps[-2:]] == [moment(NOW + n * HOUR_S) for n in (11, 12)]
    assert [step.reason for step in version.steps if step.name != "gated"] == [
        "10,000 new events",
        "scored beside version 1, shown to nobody",
        "shown to 10% of the users: 400 answers in shadow without a failure of the guardrail",
        "400 answers in canary without a failure of the guardrail",
    ]
    assert "the difference is +0.0000 (95 % interval -0.0100 to +0.0100), not below zero." in version.steps[1].reason
    assert lines[-1].startswith("retrain: version 2 is champion: 400 answers")


@pytest.mark.parametrize(
    ("difference", "reason"),
    [
        (PairedDifference(-0.05, -0.06, -0.04, 1.0, 100, 50), "the difference is -0.0500"),
        (ValueError("other events"), "it cannot be compared with version 1: other events"),
    ],
)
def test_a_ranker_of_shuffled_labels_ends_at_the_gate(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, difference: Any, reason: str
) -> None:
    def replayed(*_: object) -> PairedDifference:
        if isinstance(difference, ValueError):
            raise difference
        return difference  # type: ignore[no-any-return]

    monkeypatch.setattr(steps, "newest_difference", replayed)
    version = lead(pipeline, 0)
    assert names(version) == ["trained", "refused"]
    assert reason in version.steps[-1].reason
    assert pipeline.registry.traffic() == Traffic()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"total_ms": 30.0}, "its p99 is 30.0 ms, the champion's 12.0 ms (1.5 times as long is allowed)"),
        ({"degraded": "ranker"}, "100.0% of its answers were degraded, 0.0% of the champion's"),
        ({"item_id": 1}, "of the items that it listed had been rated by the user before"),
    ],
)
@pytest.mark.parametrize("step", ["shadow", "canary"])
def test_a_bad_version_is_rolled_back(pipeline: Pipeline, bad: dict[str, Any], reason: str, step: str) -> None:
    """Three times slower, degraded, or with items that were rated: version 1 serves, and the tag says why."""
    pipeline.event_table.append([NewEvent(f"e{n}", n, 1, "rating", 4.0, 10, 10.0) for n in range(800)])
    lead(pipeline, 0)
    if step == "canary":
        quiet_hour(pipeline, NOW + HOUR_S)
        lead(pipeline, 1)
    quiet_hour(pipeline, NOW + 2 * HOUR_S, state_seq=800, **bad)
    version = lead(pipeline, 2)
    assert names(version)[-2:] == [step, "rolled_back"]
    assert version.steps[-1].reason.startswith(f"in {step}: ")
    assert reason in version.steps[-1].reason
    assert pipeline.registry.traffic() == Traffic()
    assert pipeline.registry.resolve("champion").version == 1


def test_a_version_that_answers_nobody_is_rolled_back(pipeline: Pipeline) -> None:
    lead(pipeline, 0)
    assert lead(pipeline, 8 * 24).steps[-1].reason == "in shadow: 0 answers in 7 days, 300 are needed"


def test_an_experiment_of_people_is_waited_for_and_kept(pipeline: Pipeline) -> None:
    own = Experiment("diversity", (Arm("control", 0.5), Arm("varied", 0.5, settings={"diversity": 0.3})))
    pipeline.registry.set_traffic(Traffic(None, own))
    lead(pipeline, 0)
    assert pipeline.registry.traffic() == Traffic(2, own)
    quiet_hour(pipeline, NOW + HOUR_S)
    assert names(lead(pipeline, 1))[-1] == "shadow"
    write_log(pipeline, [answer(n, 2, NOW + HOUR_S, role="shadow", degraded="ranker") for n in range(300)])
    assert names(lead(pipeline, 2))[-1] == "rolled_back"
    assert pipeline.registry.traffic() == Traffic(None, own)


def test_the_situation_is_read_from_registry_events_log_and_report(pipeline: Pipeline) -> None:
    """Version 1 showed a film to 100 users 20 days ago, half of whom liked it, and to 100 others 3 days ago."""
    then, lately = (int(NOW - days * 24 * HOUR_S) for days in (20, 3))
    liked = [NewEvent(f"e{n}", n, 900, "rating", 5.0, then + 60 + n, float(then)) for n in range(0, 100, 2)]
    pipeline.event_table.append(liked)
    write_log(pipeline, [answer(n, 1, then + n) for n in range(100)])
    write_log(pipeline, [answer(n, 1, lately + n) for n in range(100, 200)])
    report = pipeline.home.reports / "monitor.json"
    compared = [{"name": "age", "alarm": True}, {"name": "decade", "alarm": False}]
    write_json(report, {"inputs": {"compared": compared}, "alarms": ["age has shifted", "5 % are degraded"]})
    os.utime(report, (NOW, NOW))
    policy = RetrainPolicy(fewest_new_events=50)
    situation = run.observe(pipeline, policy, NOW)
    assert (situation.age_days, situation.new_events, situation.drift) == (40.0, 50, ("age",))
    assert situation.liked_rate is not None
    assert (situation.liked_rate.control, situation.liked_rate.treatment) == (0.5, 0.0)
    assert len(decide(policy, situation)) == 3
    os.utime(report, (NOW - 41 * 24 * HOUR_S,) * 2)
    assert not run.observe(pipeline, policy, NOW).drift, "it was about a model before"


def test_one_run_at_a_time(pipeline: Pipeline) -> None:
    with (pipeline.home.root / "retrain.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="Another `recsys retrain` works on demo"):
            run.once("demo", pipeline.settings)


def test_a_killed_run_leaves_the_champion_and_the_next_one_takes_over(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.pipelines.retraining.retrain_world", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4_000:]
    runs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [run["code"] for run in runs] == [-9, -9, -9, 0, -9, 0, -9, 0]
    assert [run["champion"] for run in runs] == [1, 1, 1, 1, 1, 1, 2, 2]
    assert [run["shadow"] for run in runs] == [None, None, 2, 2, None, None, None, None]
    assert [run["experiment"] for run in runs] == [*[None] * 4, "canary-2", "canary-2", None, None]
    way = ["trained", "gated", "shadow", "canary", "champion"]
    assert [run["steps"] for run in runs] == [way[:n] for n in (0, 1, 2, 3, 3, 4, 4, 5)]
