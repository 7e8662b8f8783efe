"""`recsys bench freshness`: how long after an accepted rating the recommendations know it, on each online store.

Stage: serving (benchmark). In: `ServiceSettings` of a trained home. Out: one plain dict, written as `freshness.json`.
Absent: the user's own home and servers: everything happens in a copy of the home, with a Redis of its own; and the
requests themselves (`freshness_load`).

For each store, rounds with and without ratings alternate over one running service, in the order ABBA, so that a machine
that slows down meanwhile slows both. All durations of a kind are put together before percentiles are taken.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from recsys.columns import CHAMPION
from recsys.errors import ConfigError, RecsysError
from recsys.evaluation.about import about, load_average, processor
from serving.bench.freshness_load import FreshnessPlan
from serving.bench.generator import in_own_process
from serving.bench.histogram import Durations
from serving.bench.homes import fill_store, own_redis, register, registry_of, temporary_home
from serving.bench.target import Target, own_service, users_of
from serving.settings import ServiceSettings

STORES = ("sqlite", "redis")
REDIS = "redis-server"
WARM_UP_S = 2.0
ORDER = (False, True, True, False)  # rounds: with ratings or without


@dataclass(frozen=True)
class FreshnessOptions:
    """stores     of STORES; None takes those that are there
    seconds    of each of the four rounds
    events     ratings a second, in the rounds that have any
    rate       lists a second that others read
    workers    processes of the service: what one accepts another must know
    limit_ms   p99 from a rating's acceptance until a list shows it
    most_ratio p99 of the others' lists while ratings come in, over the same without
    """

    stores: tuple[str, ...] | None = None
    seconds: float = 15.0
    events: float = 20.0
    rate: float = 20.0
    workers: int = 2
    k: int = 10
    limit_ms: float = 30.0
    most_ratio: float = 1.5

    def __post_init__(self) -> None:
        unknown = [name for name in self.stores or () if name not in STORES]
        if unknown or self.stores == ():
            raise ConfigError(f"unknown store {unknown[0] if unknown else ''!r}; choose of {', '.join(STORES)}")


def run(
    settings: ServiceSettings, options: FreshnessOptions, command: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure. Raises RecsysError where the home has no champion, or a store was asked for by name and is not there."""
    started = time.monotonic()
    user_ids = users_of(settings.home)
    report: dict[str, Any] = {
        "about": {**about(command), "processor": processor(), "load_average_before": load_average()},
        "options": {**asdict(options), "budget_ms": settings.budget_ms, "users": len(user_ids)},
        "stores": {},
        "skipped": {},
    }
    for store in options.stores or STORES:
        if store == "redis" and shutil.which(REDIS) is None:
            why = f"{REDIS} is not on PATH; apt-get install redis-server"
            if options.stores is not None:
                raise RecsysError(f"Freshness on Redis cannot be measured: {why}.")
            report["skipped"][store] = why
            say(f"freshness: {store} skipped: {why}")
            continue
        with _service(settings, store, options.workers, say) as (there, target):
            card = target.card()
            report |= {
                "dataset": card["dataset"],
                "model": {name: card[name] for name in ("version", "bundle_id", "code_version", "n_items")},
            }
            report["stores"][store] = measured(there, target, user_ids, options, say)
    report["about"] |= {"load_average_after": load_average(), "seconds": round(time.monotonic() - started, 1)}
    report["checks"] = checks(report)
    report["passed"] = all(check["passed"] for check in report["checks"])
    return report


@contextmanager
def _service(
    settings: ServiceSettings, store: str, workers: int, say: Callable[[str], None]
) -> Iterator[tuple[ServiceSettings, Target]]:
    """A service over a copy of the home whose online store, filled with everybody, is the named one."""
    say(f"freshness: {store}: copying the home and filling the store")
    with own_redis(store == "redis") as connection, temporary_home(settings, connection) as there:
        bundle = registry_of(settings).download(CHAMPION, to=there.home.root.parent / "made")
        register(there, [bundle])
        fill_store(there)
        with own_service(there, "--workers", str(workers)) as target:
            say(f"freshness: {store}: ready after {target.ready_s:.1f} s")
            yield there, target


def measured(
    settings: ServiceSettings,
    target: Target,
    user_ids: Sequence[int],
    options: FreshnessOptions,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The rounds over one running service, and what they add up to."""
    secret = settings.api_key
    plan = FreshnessPlan(
        target.url,
        read_rate=options.rate,
        write_rate=options.events,
        seconds=WARM_UP_S,
        k=options.k,
        readers=tuple(user_ids),
        writers=tuple(user_ids[::2]),
        api_key=secret.get_secret_value() if secret else None,
    )
    in_own_process("serving.bench.freshness_load", asdict(plan))
    rounds: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for number, posting in enumerate(ORDER):
        say(f"freshness:   {options.rate:g} lists/s, {options.events:g} ratings/s" + ("" if posting else " left out"))
        asked = replace(plan, seconds=options.seconds, posting=posting, seed=plan.seed + 10 * number)
        rounds[posting].append(in_own_process("serving.bench.freshness_load", asdict(asked)))
    return {"lists_per_s": options.rate, "ratings_per_s": options.events, **summary(rounds[True], rounds[False])}


def summary(writing: Sequence[dict[str, Any]], quiet: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """From the results (`FreshnessResult`) of rounds with ratings and of rounds without.

    post        a rating until it was accepted
    fresh       from then until a list showed it, whatever had to be asked for again: the promise
    whole       both
    list_quiet  the same list where nothing was rated
    reads       the others' lists, by kind of round; `ratio_p99` of the two
    """
    reads = {"writing": _percentiles(writing, "reads_ms"), "quiet": _percentiles(quiet, "reads_ms")}
    both = all(found["n"] for found in reads.values())
    return {
        "post": _percentiles(writing, "post_ms"),
        "fresh": _percentiles(writing, "own_ms"),
        "whole": _percentiles(writing, "seen_ms"),
        "list_quiet": _percentiles(quiet, "own_ms"),
        "reads": {**reads, "ratio_p99": reads["writing"]["p99_ms"] / reads["quiet"]["p99_ms"] if both else None},
        "events": sum(len(found["post_ms"]) for found in writing),
        **{name: sum(found[name] for found in writing) for name in ("at_once", "stale", "unanswered", "moved")},
        **{name: _added([*writing, *quiet], name) for name in ("statuses", "degraded", "wrong")},
        "told": [text for found in (*writing, *quiet) for text in found["told"]],
    }


def _percentiles(rounds: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    durations = Durations()
    for found in rounds:
        for ms in found[name]:
            durations.add(ms / 1e3)
    return durations.summary()


def _added(rounds: Sequence[dict[str, Any]], name: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for found in rounds:
        total.update(found[name])
    return dict(total)


def checks(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What must hold of each store: name, whether it does, and the figures."""
    options = report["options"]
    out = []
    for store, found in report["stores"].items():
        fresh, ratio = found["fresh"].get("p99_ms"), found["reads"]["ratio_p99"]
        faults = sum(found["wrong"].values()) + found["stale"]
        shown = "no rating was seen" if fresh is None else f"p99 {fresh:.1f} ms"
        reads = "nothing to compare" if ratio is None else f"{ratio:.2f} times"
        told = f"{found['events']} ratings accepted, {found['at_once']} in the very next answer, {faults} lost or late"
        out += [
            _check(store, "fresh", fresh is not None and fresh <= options["limit_ms"], shown, options["limit_ms"]),
            _check(store, "reads", ratio is not None and ratio <= options["most_ratio"], reads, options["most_ratio"]),
            _check(store, "right", faults == 0 and found["events"] > 0, told, None),
        ]
    return out


def _check(store: str, name: str, passed: bool, told: str, limit: float | None) -> dict[str, Any]:
    return {"store": store, "name": name, "passed": bool(passed), "told": told, "limit": limit}


ROWS = (
    ("rating, until it is accepted", "post"),
    ("accepted, until a list shows it", "fresh"),
    ("both: rating, until a list shows it", "whole"),
    ("the same list, nothing rated", "list_quiet"),
)


def text(report: dict[str, Any]) -> str:
    """For the terminal; the last line says what was found."""
    options, lines = report["options"], []
    if "dataset" in report:
        model = report["model"]
        lines.append(f"{report['dataset']['label']}, {model['bundle_id']}, {model['n_items']} items")
    for store, found in report["stores"].items():
        load = f"{found['lists_per_s']:.0f} lists/s by others, {found['ratings_per_s']:g} ratings/s"
        lines += ["", f"{store}: {load}, {found['events']} ratings accepted"]
        lines.append(f"  {'ms':<44} {'p50':>7} {'p99':>7} {'max':>7} {'n':>7}")
        rows = [(name, found[key]) for name, key in ROWS]
        rows += [(f"others' lists, {name}", found["reads"][name]) for name in ("quiet", "writing")]
        lines += [_row(name, values) for name, values in rows]
        lines += [f"  {check['name']}: {_said(check)}" for check in report["checks"] if check["store"] == store]
        lines += [f"  {told}" for told in found["told"]]
    lines += ["", *(f"{store} was not measured: {why}" for store, why in report["skipped"].items())]
    failed = [f"{check['store']} {check['name']}" for check in report["checks"] if not check["passed"]]
    p99s = [f"{found['fresh'].get('p99_ms', float('nan')):.1f} ms ({s})" for s, found in report["stores"].items()]
    verdict = "VIOLATED: " + ", ".join(failed) if failed else f"within {options['limit_ms']:g} ms"
    return "\n".join([*lines, f"p99 from an accepted rating to a list that knows it: {', '.join(p99s)}; {verdict}."])


def _said(check: dict[str, Any]) -> str:
    limit = "" if check["limit"] is None else f", at most {check['limit']:g}"
    return f"{check['told']}{limit}: {'holds' if check['passed'] else 'VIOLATED'}"


def _row(name: str, values: dict[str, float]) -> str:
    if not values["n"]:
        return f"  {name:<44} {'-':>7} {'-':>7} {'-':>7} {0:>7}"
    cells = " ".join(f"{values[key]:7.2f}" for key in ("p50_ms", "p99_ms", "max_ms"))
    return f"  {name:<44} {cells} {values['n']:7.0f}"
