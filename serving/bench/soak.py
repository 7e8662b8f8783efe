"""`recsys bench soak`: minutes of load with everything that may happen to a service, and what must hold throughout.

Stage: serving (soak test). In: `ServiceSettings` of a trained home. Out: one plain dict, written as `soak.json`: what
was done, what was counted, and a list of checks. Absent: the user's own home, which is copied; and speed, which is told
but not judged (`latency` does that).

While an open loop runs at 60 % of saturation, another version is promoted again and again, the online store is taken
away and given back, and a hundredth of the requests is malformed (`soak_load`).
`soak_checks` says what must hold.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recsys.columns import CHAMPION
from recsys.errors import ConfigError, RecsysError
from recsys.evaluation.about import about, load_average, processor
from recsys.feature_store import FeatureStore
from serving.bench.enlarge import sibling
from serving.bench.generator import generate, in_own_process
from serving.bench.homes import fill_store, register, registry_of, temporary_home
from serving.bench.load import Plan
from serving.bench.outage import store_away
from serving.bench.soak_checks import checks
from serving.bench.soak_load import SoakPlan
from serving.bench.sweep import sweep
from serving.bench.target import Target, own_service, recommendation_paths, users_of
from serving.settings import ServiceSettings

SHARE = 0.6  # of saturation
USERS = 1_000
RELOAD_S = 1.0  # the service looks for a new champion this often
RELOAD_LIMIT_S = 60.0  # by then a promotion is seen, or it counts as missed
SAMPLE_S = 0.5
OUTAGE_AT, OUTAGE_SHARE, LONGEST_OUTAGE_S = 0.5, 0.05, 10.0


@dataclass(frozen=True)
class SoakOptions:
    """`rate` None finds saturation first and asks SHARE of it."""

    minutes: float = 10.0
    reloads: int = 20
    k: int = 10
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.minutes * 60 < 2 * (self.reloads + 1):
            raise ConfigError(f"soak: {self.reloads} reloads in {self.minutes:g} minutes leave no time for each")


@dataclass
class Timeline:
    """What was done to the service, and its memory; filled on a thread beside the load."""

    memory: list[tuple[float, float]] = field(default_factory=list)  # (seconds, MiB)
    reloads: list[dict[str, Any]] = field(default_factory=list)
    outage: tuple[float, float] | None = None
    failure: Exception | None = None


def run(settings: ServiceSettings, options: SoakOptions, command: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Soak a service in a copy of the home. Raises RecsysError where the home has no champion, or a part fails that is
    not under test."""
    report: dict[str, Any] = {
        "about": {**about(command), "processor": processor(), "load_average_before": load_average()},
        "options": {**asdict(options), "share": SHARE, "budget_ms": settings.budget_ms},
    }
    user_ids = users_of(settings.home, USERS)
    say("soak: copying the home")
    with temporary_home(settings) as there:
        versions = register(there, _two_bundles(settings, there))
        fill_store(there)
        seen = _histories(there, user_ids)
        with own_service(there, "--reload-s", str(RELOAD_S)) as target:
            say(f"soak: ready after {target.ready_s:.1f} s")
            rate = options.rate or SHARE * _saturation(target, there, user_ids, options.k, say)
            say(f"soak: {options.minutes:g} minutes at {rate:.0f}/s, {options.reloads} reloads, one outage")
            before = counters(target)
            plan = SoakPlan(target.url, rate, options.minutes * 60, options.k, seen, versions)
            timeline, result = _soaked(target, there, plan, options, say)
            after = counters(target)
            card = target.card()
    report["about"] |= {"load_average_after": load_average()}
    report |= {
        "dataset": card["dataset"],
        "model": {"version": card["version"], "bundle_id": card["bundle_id"]},
        "rate": rate,
        "result": result,
        "memory_mib": [[round(at, 1), round(mib, 1)] for at, mib in timeline.memory],
        "reloads": timeline.reloads,
        "outage_s": timeline.outage,
        "counted": {name: after.get(name, 0) - before.get(name, 0) for name in sorted(after)},
    }
    report["checks"] = checks(report)
    report["passed"] = all(check["passed"] for check in report["checks"])
    return report


def _two_bundles(settings: ServiceSettings, there: ServiceSettings) -> list[Path]:
    """The champion, and the newest other version; where there is none, a copy of the champion under another name."""
    registry = registry_of(settings)
    made = there.home.root.parent / "made"
    champion = registry.download(CHAMPION, to=made)
    own = registry.resolve(CHAMPION).version
    other = next((v.version for v in registry.versions() if v.version != own), None)
    if other is not None:
        return [champion, registry.download(other, to=made)]
    return [champion, sibling(champion, made / f"{champion.name}-again")]


def _histories(settings: ServiceSettings, user_ids: list[int]) -> dict[int, list[int]]:
    """Every item that each user has rated, as the store holds it."""
    store = FeatureStore(settings.feature_store)
    try:
        stored = store.online_states(user_ids)
    finally:
        store.close()
    known = {user_id: state for user_id, state in zip(user_ids, stored, strict=True) if state is not None}
    return {
        user_id: sorted({*(int(item) for item in seen), *state.item_ids}) for user_id, (state, seen) in known.items()
    }


def _saturation(
    target: Target, settings: ServiceSettings, user_ids: list[int], k: int, say: Callable[[str], None]
) -> float:
    """Full answers a second at the knee of a short sweep. Raises RecsysError where the service sustains nothing."""
    paths = recommendation_paths(user_ids, k)
    closed = generate(Plan(target.url, paths, 16, seconds=3.0, warmup=50)).achieved

    def at(rate: float) -> Any:
        return generate(Plan(target.url, paths, rate=rate, seconds=3.0, warmup=5))

    found = sweep(at, max(closed, 1.0), settings.budget_ms, lambda text: say(f"soak:   {text}"))
    if found.knee is None:
        raise RecsysError("The service did not sustain even the lowest rate; give --rate to soak it nevertheless.")
    return found.saturation


def _soaked(
    target: Target, settings: ServiceSettings, plan: SoakPlan, options: SoakOptions, say: Callable[[str], None]
) -> tuple[Timeline, dict[str, Any]]:
    """The load in a process, what happens to the service on a thread."""
    timeline, over = Timeline(), threading.Event()
    happening = threading.Thread(
        target=_happen, args=(timeline, over, target, settings, plan, options, say), name="soak-timeline"
    )
    happening.start()
    try:
        result = in_own_process("serving.bench.soak_load", asdict(plan))
    finally:
        over.set()
        happening.join()
    if timeline.failure is not None:
        raise timeline.failure
    return timeline, result


def _happen(
    timeline: Timeline,
    over: threading.Event,
    target: Target,
    settings: ServiceSettings,
    plan: SoakPlan,
    options: SoakOptions,
    say: Callable[[str], None],
) -> None:
    begun = time.monotonic()
    promotions = [plan.seconds * (i + 1) / (options.reloads + 1) for i in range(options.reloads)]
    away_at, away_s = plan.seconds * OUTAGE_AT, min(plan.seconds * OUTAGE_SHARE, LONGEST_OUTAGE_S)
    pending: dict[str, Any] | None = None

    def now() -> float:
        return time.monotonic() - begun

    try:
        registry, next_version = registry_of(settings), 1
        while not over.wait(SAMPLE_S):
            if (mib := target.resident_mib()) is not None:
                timeline.memory.append((now(), mib))
            if pending is not None:
                pending = _seen(target, pending, now())
            elif promotions and now() >= promotions[0]:
                promotions.pop(0)
                version = plan.versions[next_version % len(plan.versions)]
                next_version += 1
                registry.promote(version)
                pending = {"at_s": now(), "version": version, "seen_after_s": None}
                timeline.reloads.append(pending)
            if timeline.outage is None and now() >= away_at and settings.feature_store.online_file is not None:
                say("soak: the online store is taken away")
                left = now()
                with store_away(settings.feature_store.online_file):
                    over.wait(away_s)
                timeline.outage = (left, now())
                say("soak: the online store is back")
    except Exception as error:  # told by whoever waits for this thread
        timeline.failure = error


def _seen(target: Target, pending: dict[str, Any], now_s: float) -> dict[str, Any] | None:
    """The promotion that is waited for; None once it is seen, or waited for long enough."""
    with suppress(RecsysError):  # an answer that is late is asked for again
        if target.card()["version"] == pending["version"]:
            pending["seen_after_s"] = now_s - pending["at_s"]
    return None if pending["seen_after_s"] is not None or now_s - pending["at_s"] > RELOAD_LIMIT_S else pending


def counters(target: Target) -> dict[str, int]:
    """The counters of /metrics that are checked: "degraded.<part>", "shed.<reason>", "reload.<outcome>"."""
    import httpx
    from prometheus_client.parser import text_string_to_metric_families

    try:
        text = httpx.get(f"{target.url}/metrics", timeout=10, trust_env=False).raise_for_status().text
    except httpx.HTTPError as error:
        raise RecsysError(f"No metrics at {target.url}: {error}") from error
    kept = {
        "recsys_degraded": ("degraded", "part"),
        "recsys_shed": ("shed", "reason"),
        "recsys_reloads": ("reload", "outcome"),
    }
    return {
        f"{kept[family.name][0]}.{sample.labels[kept[family.name][1]]}": int(sample.value)
        for family in text_string_to_metric_families(text)
        if family.name in kept
        for sample in family.samples
        if sample.name.endswith("_total")
    }
