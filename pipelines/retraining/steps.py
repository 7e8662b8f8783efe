"""The way of a new version: trained -> gated -> shadow -> canary -> champion, or refused, or rolled back.

Each step is a tag of the model version with its moment and reason, written after what the step does. What it does can
be done twice: whoever finds a version on its way goes on from its last tag, and a killed run leaves the champion
serving.
"""

from datetime import UTC, datetime
from typing import Final

import pandas as pd

from pipelines.pipeline import Pipeline
from pipelines.retraining.comparison import newest_difference
from pipelines.retraining.guardrail import Finding, guardrail
from pipelines.retraining.policy import RetrainPolicy
from recsys.columns import CHAMPION, ITEM_ID, USER_ID
from recsys.data.tables import load_tables
from recsys.events import RATING_KIND
from recsys.experiments.assignment import Arm, Experiment
from recsys.monitoring.outcomes import outcomes
from recsys.monitoring.prediction_log import predictions_folder, read_answers
from recsys.registry import Registry, Step, VersionInfo
from recsys.registry.traffic import Traffic

TRAINED, GATED, SHADOW, CANARY, CHAMPION_STEP = "trained", "gated", "shadow", "canary", "champion"
REFUSED, ROLLED_BACK = "refused", "rolled_back"
FINAL: Final = (CHAMPION_STEP, REFUSED, ROLLED_BACK)


def champion_of(registry: Registry) -> VersionInfo | None:
    return next((version for version in registry.versions() if CHAMPION in version.aliases), None)


def on_its_way(registry: Registry) -> VersionInfo | None:
    """The version that retraining has not brought to an end."""
    return next((v for v in registry.versions() if v.steps and v.steps[-1].name not in FINAL), None)


def at(name: str, now: float, reason: str) -> Step:
    return Step(name, datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds"), reason)


def advance(pipeline: Pipeline, version: VersionInfo, policy: RetrainPolicy, now: float) -> VersionInfo:
    """Do the next step, if it is time; the version with the steps that it has then. `now`: seconds UTC."""
    registry, champion = pipeline.registry, champion_of(pipeline.registry)
    last = version.steps[-1]
    step: Step | None
    if last.name == TRAINED:
        step = _judge(pipeline, version, champion, policy, now)
    elif champion is None or champion.version == version.version:
        step = _promote(
            registry, version, now, "there was no champion" if champion is None else "it is champion already"
        )
    elif last.name == GATED:
        traffic = registry.traffic()
        registry.set_traffic(Traffic(version.version, traffic.experiment))
        step = at(SHADOW, now, f"scored beside version {champion.version}, shown to nobody")
    else:
        step = _next(pipeline, version, champion, policy, now)
    if step is None:
        return version
    pipeline.report(f"retrain: version {version.version} is {step.name}: {step.reason}")
    return registry.record_step(version.version, step)


def _judge(
    pipeline: Pipeline, version: VersionInfo, champion: VersionInfo | None, policy: RetrainPolicy, now: float
) -> Step:
    paired = None
    if champion is not None:
        try:
            paired = newest_difference(pipeline, version, champion)
        except ValueError as error:
            return at(REFUSED, now, f"it cannot be compared with version {champion.version}: {error}")
    result = pipeline.registry.judge(version.version, latency_budget_ms=policy.latency_budget_ms, paired=paired)
    reason = " ".join(check.sentence for check in result.checks) if result.passed else " ".join(result.reasons)
    return at(GATED if result.passed else REFUSED, now, reason)


def _next(
    pipeline: Pipeline, version: VersionInfo, champion: VersionInfo, policy: RetrainPolicy, now: float
) -> Step | None:
    """From shadow to canary, from canary to champion, or back; None where it is too early."""
    registry, name = pipeline.registry, version.steps[-1].name
    since = datetime.fromisoformat(version.steps[-1].moment_utc).timestamp()
    hours, answers = {
        SHADOW: (policy.shadow_hours, policy.shadow_answers),
        CANARY: (policy.canary_hours, policy.canary_answers),
    }[name]
    finding = _look(pipeline, version, champion, policy, since, now)
    failures = list(finding.failures)
    enough = finding.n_answers >= answers
    if not enough and now - since > policy.longest_days * 86_400:
        failures.append(f"{finding.n_answers:,} answers in {policy.longest_days:g} days, {answers:,} are needed")
    if failures:
        _leave_traffic(registry, version)
        return at(ROLLED_BACK, now, f"in {name}: " + "; ".join(failures))
    if not enough or now - since < hours * 3_600:
        return None
    done = f"{finding.n_answers:,} answers in {name} without a failure of the guardrail"
    if name == CANARY:
        return _promote(registry, version, now, done)
    traffic = registry.traffic()
    if traffic.experiment is not None and traffic.experiment.name != canary_name(version):
        return None  # people's own experiment ends first
    share = policy.canary_share
    arms = (Arm("champion", 1 - share), Arm("canary", share, version.version))
    registry.set_traffic(Traffic(None, Experiment(canary_name(version), arms)))
    return at(CANARY, now, f"shown to {share:.0%} of the users: {done}")


def canary_name(version: VersionInfo) -> str:
    return f"canary-{version.version}"


def _promote(registry: Registry, version: VersionInfo, now: float, reason: str) -> Step:
    registry.promote(version.version)
    _leave_traffic(registry, version)
    return at(CHAMPION_STEP, now, reason)


def _leave_traffic(registry: Registry, version: VersionInfo) -> None:
    traffic = registry.traffic()
    shadow = None if traffic.shadow == version.version else traffic.shadow
    canary = traffic.experiment is not None and traffic.experiment.name == canary_name(version)
    left = Traffic(shadow, None if canary else traffic.experiment)
    if left != traffic:
        registry.set_traffic(left)


def _look(
    pipeline: Pipeline,
    version: VersionInfo,
    champion: VersionInfo,
    policy: RetrainPolicy,
    since: float,
    now: float,
) -> Finding:
    """What the guardrail finds in the answers since the step began."""
    rows = read_answers(predictions_folder(pipeline.home), since=since)
    shown = rows[rows["role"] == "shown"]
    if version.steps[-1].name == SHADOW:
        ours = rows[(rows["role"] == "shadow") & (rows["version"] == version.version)]
    else:
        shown = shown[shown["experiment"] == canary_name(version)]
        shown = outcomes(shown, pipeline.event_table, until=int(now))[0] if len(shown) else shown
        ours = shown[shown["version"] == version.version]
    return guardrail(ours, shown[shown["version"] == champion.version], rated_pairs(pipeline), policy)


def rated_pairs(pipeline: Pipeline) -> pd.DataFrame:
    """user_id, item_id and the event of the table that rated it; 0 for the data set."""
    recorded = load_tables(pipeline.home.data).events[[USER_ID, ITEM_ID]].assign(seq=0)
    events = (event for event in pipeline.event_table.read() if event.kind == RATING_KIND)
    later = pd.DataFrame([(e.user_id, e.item_id, e.seq) for e in events], columns=[USER_ID, ITEM_ID, "seq"])
    return pd.concat([recorded, later.astype("int64")], ignore_index=True)
