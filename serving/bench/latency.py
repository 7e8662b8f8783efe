"""`recsys bench latency`: the sections in order, and the report that they make.

Stage: serving (benchmark). In: `ServiceSettings` and `Options`. Out: one plain dict, written as `latency.json`, from
which tables and pictures are made. Absent: how each section measures (its own module), text (`report`), argv.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from recsys.errors import ConfigError, RecsysError
from recsys.evaluation.about import PACKAGES, about, load_average, processor, thread_counts
from serving.bench.empty import PATH, empty_service
from serving.bench.generator import Generator, generate
from serving.bench.load import Load, Plan, together
from serving.bench.sweep import LOST, step_of, sweep
from serving.bench.target import Target, own_service, recommendation_paths, users_of
from serving.settings import ServiceSettings

SECTIONS = ("in-process", "closed", "sweep", "open", "catalogue", "device")
CLIENTS = (1, 4, 16)
OPEN_SHARE = 0.6  # of saturation
SEED = 7
WRK_S = 40.0  # of either generator, for a number of clients
SATURATION = "a full answer at saturation"
AIMS_MS = {  # on two cores, with the load generator on the same; 4 ms an answer are 250 a second
    "one client, p50": 4.0,
    "one client, p99": 8.0,
    SATURATION: 4.0,
    f"open loop at {OPEN_SHARE:.0%} of saturation, p99": 25.0,
}
TURNS = 4  # into which a closed loop is divided
LONGEST_CLOSED_S = 20.0  # a slow service ends a closed loop by time


@dataclass(frozen=True)
class Options:
    """sections  of SECTIONS, in any order; those over HTTP share one service
    k           items an answer
    requests    of each closed loop and of each measurement in process
    warmup      of each, unmeasured
    step_s, open_s   seconds of a step of the sweep, and of the open loop at 60 % of saturation
    url         a service that runs already; None starts one, with so many `workers`
    """

    sections: tuple[str, ...] = SECTIONS
    k: int = 10
    requests: int = 500
    warmup: int = 50
    step_s: float = 4.0
    open_s: float = 20.0
    url: str | None = None
    workers: int = 1
    wrk: bool = False
    hnsw: bool = False
    device: str = "cuda"

    def __post_init__(self) -> None:
        unknown = [name for name in self.sections if name not in SECTIONS]
        if unknown or not self.sections:
            raise ConfigError(f"unknown section {unknown[0] if unknown else ''!r}; choose of {', '.join(SECTIONS)}")

    def needs(self, *sections: str) -> bool:
        return any(name in self.sections for name in sections)

    def expected_s(self) -> dict[str, float]:
        """About how long each chosen part takes, starting and stopping included; for the progress line alone."""
        closed = min(LONGEST_CLOSED_S, 0.006 * self.requests)
        parts = {
            "in-process": 12 + 0.06 * self.requests,
            "start the service": 10.0,
            "closed": len(CLIENTS) * (closed + 2),
            "wrk": 2 * 2 * WRK_S + 4,
            "sweep": 11 * (self.step_s + 0.5),
            "open": self.open_s + 1,
            "catalogue": 75 + (600 if self.hnsw else 0),
            "device": 5.0,
        }
        chosen = {*self.sections, *(["wrk"] if self.wrk else [])}
        if self.url is None and self.needs("closed", "sweep", "open"):
            chosen.add("start the service")
        return {name: seconds for name, seconds in parts.items() if name in chosen}


class Progress:
    """Says what is being done and about how long it will take."""

    def __init__(self, expected_s: dict[str, float], say: Callable[[str], None]) -> None:
        self._expected, self._say = dict(expected_s), say

    def begin(self, name: str, doing: str) -> None:
        left = sum(self._expected.values())
        self._expected.pop(name, None)
        self._say(f"bench: {doing} (about {left:.0f} s left)")

    def note(self, text: str) -> None:
        self._say(f"bench:   {text}")


def run(settings: ServiceSettings, options: Options, command: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure. Raises RecsysError where there is no data, no champion or no service."""
    started, progress = time.monotonic(), Progress(options.expected_s(), say)
    user_ids = users_of(settings.home)
    report: dict[str, Any] = {
        "about": {
            **about(command, (*PACKAGES, "fastapi", "uvicorn", "scipy", "hdrhistogram")),
            "processor": processor(),
            "load_average_before": load_average(),
        },
        "options": {**asdict(options), "users": len(user_ids), "seed": SEED, "budget_ms": settings.budget_ms},
    }
    if options.needs("in-process", "catalogue", "device"):
        _in_this_process(settings, options, user_ids, report, progress)
    if options.needs("closed", "sweep", "open"):
        report |= _over_http(settings, options, user_ids, progress)
    report["about"] |= {"load_average_after": load_average(), "seconds": round(time.monotonic() - started, 1)}
    report["verdict"] = verdict(report, settings.budget_ms)
    return report


def verdict(report: dict[str, Any], budget_ms: float) -> dict[str, Any]:
    """Which p99 is held against the budget: over HTTP with one client, else at 60 % of saturation, else in process.
    It is one of full answers, so that it counts only where at most LOST of the requests got none."""
    http, inside = report.get("http", {}), report.get("in_process")
    if "closed" in http:
        where, load = "over HTTP", http["closed"]["1"]
    elif "open" in http:
        where, load = "over HTTP in an open loop", http["open"]
    elif inside is not None:
        where, load = "in process", {"latency": inside["ranked"][inside["headline"]]["stages"]["total"]}
    else:
        return {"where": None, "p99_ms": None, "lost": 0.0, "budget_ms": budget_ms, "within_budget": True}
    p99, requests = load["latency"].get("p99_ms"), load.get("requests", 0)
    lost = 1 - load["latency"].get("n", 0) / requests if requests else 0.0
    within = p99 is not None and p99 <= budget_ms and lost <= LOST
    return {"where": where, "p99_ms": p99, "lost": lost, "budget_ms": budget_ms, "within_budget": within}


def _in_this_process(
    settings: ServiceSettings, options: Options, user_ids: list[int], report: dict[str, Any], progress: Progress
) -> None:
    """The sections that load the champion here, as the service does; before that starts, which would take the other
    core."""
    from recsys.feature_store import FeatureStore
    from serving.bench import catalogue, device, in_process
    from serving.model import ServedModel, freeze_gc

    progress.begin("in-process", "in process: loading the champion")
    store, now = FeatureStore(settings.feature_store), int(time.time())
    model = ServedModel.load(settings, store, now)
    bundle, stats = model.bundle, model.stats
    report["model"] = {"version": model.version, "bundle_id": bundle.facts.bundle_id, "n_items": len(model.catalogue)}
    report["dataset"] = asdict(bundle.facts.dataset) | {"label": bundle.facts.dataset.label}
    try:
        if options.needs("in-process"):
            freeze_gc()
            report["in_process"] = in_process.measure(
                bundle, stats, store, user_ids, now=now, k=options.k, n=options.requests, warmup=options.warmup
            )
            headline = report["in_process"]["ranked"][report["in_process"]["headline"]]
            progress.note(f"{headline['stages']['total']['p50_ms']:.2f} ms, overhead {headline['overhead']:.2f}")
        report["about"]["threads"] = thread_counts()
        if options.needs("catalogue"):
            progress.begin("catalogue", "larger catalogues: indexes, then a service with 62k items")
            report["catalogue"] = catalogue.measure(
                settings, bundle, store, user_ids, options, now=now, report=progress.note
            )
        if options.needs("device"):
            progress.begin("device", f"device {options.device}")
            report["device"] = device.measure(bundle, store, user_ids, options.device, now=now)
    finally:
        store.close()


def _over_http(settings: ServiceSettings, options: Options, user_ids: list[int], progress: Progress) -> dict[str, Any]:
    with _target(settings, options, progress) as target:
        card = target.card()
        if card["dataset"]["name"] != settings.home.name:
            raise RecsysError(
                f"{target.url} serves {card['dataset']['name']}, not {settings.home.name}; give --dataset."
            )
        http: dict[str, Any] = {"url_given": options.url is not None, "ready_s": target.ready_s}
        found: dict[str, Any] = {
            "dataset": card["dataset"],
            "model": {name: card[name] for name in ("version", "bundle_id", "code_version", "n_items")},
            "http": http,
        }
        paths = recommendation_paths(user_ids, options.k)
        if options.needs("closed"):
            progress.begin("closed", "closed loop")
            with empty_service() as nothing:
                http |= closed(target, nothing, paths, options, CLIENTS, progress)
        if options.wrk:
            from serving.bench import wrk

            progress.begin("wrk", "wrk and our closed loop in turns")
            with Generator() as generator:
                http["wrk"] = [
                    wrk.compare(Plan(target.url, paths, clients, seconds=WRK_S), generator.run) for clients in (1, 4)
                ]
        if options.needs("sweep", "open"):
            http |= _opened(target, paths, options, settings.budget_ms, http, progress)
        http["resident_mib"] = target.resident_mib()
        if "closed" in http:
            http["against_bare"] = against_bare(http)
    return found


@contextmanager
def _target(settings: ServiceSettings, options: Options, progress: Progress) -> Iterator[Target]:
    if options.url is not None:
        with nullcontext(Target(options.url.rstrip("/"))) as target:
            yield target
        return
    progress.begin("start the service", "starting a service")
    with own_service(settings, "--workers", str(options.workers)) as target:
        progress.note(f"ready after {target.ready_s:.1f} s")
        yield target


def closed(
    target: Target,
    nothing: str,
    paths: tuple[str, ...],
    options: Options,
    clients: tuple[int, ...],
    progress: Progress,
) -> dict[str, Any]:
    """Closed loops by number of clients, each in turns with one over an empty FastAPI service at `nothing`."""
    loops: dict[str, Any] = {}
    bare: dict[str, Any] = {}
    ratio: dict[str, float] = {}
    for n in clients:
        plan = Plan(
            target.url,
            paths,
            clients=n,
            requests=-(-options.requests // TURNS),
            seconds=LONGEST_CLOSED_S / TURNS,
            warmup=options.warmup,
        )
        turns: dict[bool, list[Load]] = {True: [], False: []}
        with Generator() as generator:
            for number in range(TURNS):  # in the order ABBA: a machine that changes its speed changes it for both
                for is_empty in (True, False) if number % 2 else (False, True):
                    asked = replace(plan, url=nothing, paths=(PATH,)) if is_empty else plan
                    turns[is_empty].append(generator.run(asked))
                    _answered(turns[is_empty][-1], asked.url)
        empty, load = together(turns[True]), together(turns[False])
        bare[str(n)], loops[str(n)] = asdict(empty), asdict(load)
        ratio[str(n)] = load.latency["p50_ms"] / empty.latency["p50_ms"]
        p50, p99 = (load.latency[name] for name in ("p50_ms", "p99_ms"))
        progress.note(f"{n} client(s): p50 {p50:.1f} ms, p99 {p99:.1f} ms, {load.achieved:.0f}/s")
    return {"closed": loops, "bare": bare, "ratio_to_bare": ratio}


def against_bare(http: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The figures with an aim: ms, how many bare HTTP answers of one client (median, same run) that is, and the aim."""
    bare_ms = http["bare"]["1"]["latency"]["p50_ms"]
    ms = {
        "one client, p50": http["closed"]["1"]["latency"]["p50_ms"],
        "one client, p99": http["closed"]["1"]["latency"]["p99_ms"],
    }
    if "sweep" in http:
        ms[SATURATION] = 1e3 / http["sweep"]["saturation"] if http["sweep"]["saturation"] else float("inf")
    if "open" in http and "p99_ms" in http["open"]["latency"]:
        ms[f"open loop at {OPEN_SHARE:.0%} of saturation, p99"] = http["open"]["latency"]["p99_ms"]
    return {name: {"ms": value, "bare_answers": value / bare_ms, "aim_ms": AIMS_MS[name]} for name, value in ms.items()}


def _opened(
    target: Target,
    paths: tuple[str, ...],
    options: Options,
    budget_ms: float,
    http: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """The sweep to saturation, and the open loop at OPEN_SHARE of it."""
    if "closed" in http:
        closed_rate = max(load["achieved"] for load in http["closed"].values())
    else:
        load = generate(Plan(target.url, paths, max(CLIENTS), seconds=options.step_s, warmup=options.warmup))
        _answered(load, target.url)
        closed_rate = load.achieved
    progress.begin("sweep", "open loop at rising rates")

    def at(rate: float, seconds: float = options.step_s) -> Load:
        return generate(Plan(target.url, paths, rate=rate, seconds=seconds, warmup=5, seed=SEED))

    found = sweep(at, max(closed_rate, 1.0), budget_ms, progress.note)
    out: dict[str, Any] = {"sweep": found.as_dict()}
    if options.needs("open") and found.knee is not None:
        rate = OPEN_SHARE * found.saturation
        progress.begin("open", f"open loop at {rate:.0f}/s, {OPEN_SHARE:.0%} of saturation")
        load, first = at(rate, options.open_s), None
        if why := step_of(rate, load, None, budget_ms).why:  # measured once more, as in the sweep
            first = {"why": why, "p99_ms": load.latency.get("p99_ms"), "late_p99_ms": load.late.get("p99_ms")}
            load = at(rate, options.open_s)
        out["open"] = {"rate": rate, "share": OPEN_SHARE, "first": first, **asdict(replace(load, counted=[]))}
    return out


def _answered(load: Load, url: str) -> None:
    """Raises RecsysError where nothing came back that could be measured."""
    if not load.latency["n"]:
        came = load.statuses or load.errors
        raise RecsysError(f"{url} did not answer a single request with 200; what came: {came}")
